"""What a run stands on: processes and how they start, end and wait for each other, cores, and memory.

It may import `checkpoints` and what lies below, and knows nothing of clients or of training. Read `strategy.py` first: it is
Lightning's strategy for ranks that train different clients.
"""
