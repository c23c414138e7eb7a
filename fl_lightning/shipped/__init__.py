"""What a user gets beside the code: configurations, sweeps and launch scripts, also out of a wheel.

`configs` and `launch` are links to the folders at the root of the checkout, which stay the one source; a wheel has copies in
their place. Any module may import these paths; this file is all there is to read.
"""

from pathlib import Path

CONFIGS = (Path(__file__).parent / "configs").resolve()
"""The folder of configurations, with the sweeps in `sweeps/`."""

LAUNCH = (Path(__file__).parent / "launch").resolve()
"""The folder of scripts for torchrun and SLURM."""
