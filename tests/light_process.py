"""Commands in a process of their own, which tells what it has imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "lightning"}
SCRIPT = """
import json, sys
from fl_lightning.cli import main
status = 0
try:
    main(json.loads(sys.argv[1]))
except SystemExit as left:
    status = left.code
print("\\0" + json.dumps([status or 0, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def run(*args: str) -> tuple[int, str, set[str]]:
    """Exit status and output of a command in a process of its own, and what that has imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(args)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    shown, _, told = done.stdout.rpartition("\0")
    status, modules = json.loads(told)
    return status, shown + done.stderr, set(modules)
