"""The scripts in docs/results, which find each other as they do when they are called."""

import runpy
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def script(name: str) -> dict[str, Any]:
    """What a script defines."""
    sys.path.insert(0, str(RESULTS))
    try:
        return runpy.run_path(str(RESULTS / f"{name}.py"), run_name=name)
    finally:
        sys.path.remove(str(RESULTS))
