"""How one client's local steps are taken: as its module has them, recorded and replayed, stacked, or side by side.

It may import `aggregators`, `attacks`, `updates`, `data`, `modules` and what lies below, and nothing of the round or the
machine. Read `local_training.py` first: `LocalTraining.train` is a client's training from top to bottom.
"""
