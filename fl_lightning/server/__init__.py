"""The server's side of a round beside its rule: what fits together, which updates count, the step, what is evaluated when.

It may import `training` and everything below that, but neither the clients of a round nor the federation. Read `step.py`
first: it applies the aggregate, or takes the step back.
"""
