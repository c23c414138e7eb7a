"""The server's side of a round beside its rule: what fits together, which updates count, the step, what is evaluated when.

It may import everything below the federation, which alone it does not know. Read `setting_up.py` first, what comes before the
first round, then `step.py`: it applies the aggregate, or takes the step back.
"""
