"""How models write down thoughts and tool calls, and back: pure parsers over text that arrives in pieces.

The result depends on the text alone, never on how it was cut.
"""
