"""One run in its folder: `python -m fl_lightning.experiments.job FOLDER -- COMMAND...`."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder, command = Path(sys.argv[1]), sys.argv[3:]
    with (folder / ".lock").open("w") as lock, (folder / "log.txt").open("a") as log:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = folder / "run.json"
        if record.exists() and json.loads(record.read_text())["finished"]:
            return 0
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode


if __name__ == "__main__":
    sys.exit(main())
