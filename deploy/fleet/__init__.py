"""A service of many workers on a Ray cluster: what is wanted is compared with what is there, and the difference done.

plan, adopt, placing and autoscale decide (pure); config, recipes and updating say what is wanted; nodes, lives, routers
and controller act; memory, found and take_over hand a fleet from one controller to the next; door hears commands;
measuring and scaling feed the autoscaler.
"""
