"""The analyses of the paper: what can be computed from theory, from a run, or from a model at hand.

They may import everything but the command line. Read `command.py` first: it lists them.
"""
