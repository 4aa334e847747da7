"""A service of many workers on a Ray cluster: what is wanted is compared with what is there, and the difference done.

plan, placing and autoscale decide (pure); config reads CONFIG.yaml; nodes, lives and controller act; door hears commands.
"""
