"""What there is to choose from, read out of the package itself: `fl-lightning list`, `init` to begin with it, and `completion`.

Anything of the package may be imported here, and only the command line imports from here. Read `kinds.py` first: what the
kinds of things are, where their classes are exported, and where in a configuration they go.
"""
