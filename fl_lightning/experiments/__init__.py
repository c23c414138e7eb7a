"""Many runs: sweeps, how they are run on a machine or by SLURM, and what is reported of them.

They may import the configuration and everything below it; each run is a process of its own. Read `sweep.py` first: the file
format and its runs.
"""
