"""What a run can go on from: checkpoints with a digest in them, the one before, and what every rank keeps beside them.

It may import `aggregators`, whose rules remember, `files` and what lies below. Read `resuming.py` first: which of a run's
checkpoints is good, and how one takes another's place.
"""
