"""Questions and answers made from documentation entries. Pure: the random source is an argument."""

import re
from collections.abc import Iterator, Sequence
from random import Random

from engine.models.train_builtin.library import Entry
from engine.models.train_builtin.smalltalk import SMALLTALK

Turns = tuple[str, ...]
"""Question, answer, question, answer, ..."""

WHAT = (
    "What does {0} do?",
    "What is {0}?",
    "What is {0} for?",
    "Explain {0}.",
    "Tell me about {0}",
    "Describe {0}.",
    "what does {0} do",
    "What does `{0}` do?",
    "What does {0} do in Python?",
    "What's {0}?",
    "In Python, what is {0}?",
    "Can you explain {0}?",
    "I want to know what {0} does.",
)
CALL = ("How do I call {0}?", "How do I use {0}?", "What is the signature of {0}?", "What arguments does {0} take?")
CONTENTS = ("What is in the {0} module?", "What functions does {0} have?", "List the functions of {0}.")
EXAMPLE = ("Show an example of {0}.", "Give me an example of {0}", "How is {0} used?")
REVERSE = ("Which Python function does this: {0}", "What is the name of the Python function for this? {0}")
FOLLOW_UP = ("And {0}?", "What about {0}?", "And what does {0} do?")
UNKNOWN = "I do not know {0}. I have only read the documentation of Python's standard library."
MAX_REVERSE = 90
MAX_CONTENTS = 12


def small_talk() -> Iterator[Turns]:
    """Every way to ask of every row of SMALLTALK."""
    for row in SMALLTALK.strip().split("\n\n"):
        asks, answer = row.split("\n")
        for ask in asks.split("|"):
            yield ask, answer
            yield ask.lower().rstrip("?!"), answer


def arithmetic() -> Iterator[Turns]:
    """Sums, differences and products of small numbers."""
    for a in range(13):
        for b in range(13):
            yield f"What is {a} + {b}?", f"{a} + {b} = {a + b}"
            yield f"What is {a} * {b}?", f"{a} * {b} = {a * b}"
            if a >= b:
                yield f"What is {a} - {b}?", f"{a} - {b} = {a - b}"


def about(entry: Entry, random: Random) -> Iterator[Turns]:
    """Questions about one entry, in words that vary."""
    answer = f"{entry.name}: {entry.summary}"
    asks = WHAT if entry.kind in ("module", "function") else WHAT[:8]
    for ask in random.sample(asks, 6):
        yield _said(ask, random).format(_written(entry, random)), answer
    if entry.signature:
        call = f"{entry.name}{entry.signature}"
        yield random.choice(CALL).format(_written(entry, random)), f"{call}\n{entry.summary}"
    if example := _example(entry):
        yield random.choice(EXAMPLE).format(entry.name), example
    if entry.kind == "function" and len(entry.summary) <= MAX_REVERSE:
        yield random.choice(REVERSE).format(entry.summary), entry.name


def contents(module: str, names: Sequence[str], random: Random) -> Turns:
    """What a module holds; the same names whoever asks."""
    listed = ", ".join(names[:MAX_CONTENTS])
    return random.choice(CONTENTS).format(module), f"{module} has {listed}."


def follow_up(first: Entry, second: Entry, random: Random) -> Turns:
    """Two questions in one conversation; the second leans on the first."""
    asks = random.choice(WHAT).format(first.name), random.choice(FOLLOW_UP).format(second.name)
    return asks[0], f"{first.name}: {first.summary}", asks[1], f"{second.name}: {second.summary}"


def unknown(entries: Sequence[Entry], random: Random) -> Turns:
    """A question about a name that does not exist: half of one name and half of another, in the module of a third."""
    owner, first, second = (entry.name for entry in random.sample(entries, 3))
    head, tail = first.split(".")[-1], second.split(".")[-1]
    name = f"{owner.split('.')[0]}.{head[: len(head) // 2 + 1]}{tail[len(tail) // 2 :]}x"
    return random.choice(WHAT).format(name), UNKNOWN.format(name)


def _said(ask: str, random: Random) -> str:
    """A question as people type it: often without capital and question mark."""
    return ask[0].lower() + ask[1:].rstrip("?.") if random.random() < 0.25 else ask


def _written(entry: Entry, random: Random) -> str:
    """The name as people write it."""
    if entry.kind == "module":
        return random.choice((entry.name, f"the {entry.name} module", f"the module {entry.name}"))
    callable_ = entry.kind in ("function", "method")
    return entry.name + ("()" if callable_ and random.random() < 0.25 else "")


def _example(entry: Entry) -> str:
    """The first example of the documentation: interpreter lines up to a blank one."""
    match = re.search(r"^ *>>> .*(?:\n(?! *$).*)*", entry.doc, re.MULTILINE)
    if match is None or not 15 < len(match[0]) < 400:
        return ""
    return "\n".join(line.strip() for line in match[0].splitlines())
