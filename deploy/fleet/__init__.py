"""A service of many workers on a Ray cluster: what is wanted is compared with what is there, and the difference done.

plan, placing and autoscale decide (pure); config and recipes say what is wanted; nodes, lives, routers and controller
act; door hears commands; measuring and scaling feed the autoscaler.
"""
