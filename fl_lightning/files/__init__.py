"""Files that a kill, a full disk or a flipped bit cannot falsify, and the one reader and writer of YAML.

It imports `errors` alone. Read `replacing.py` first: a file takes its name when it is whole and on the disk.
A run's own files are in `run_files.py`.
"""
