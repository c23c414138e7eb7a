import json
import math

import numpy as np
import pytest

from fl_lightning import ConfigurationError
from fl_lightning.analysis.output import Output
from fl_lightning.analysis.theory import Setting


def test_files(tmp_path, capsys):
    out = Output(tmp_path / "a" / "b")
    out.table("Title", [{"x": 1, "y": 0.123456}, {"x": 2, "y": math.nan}], "rows")
    out.numbers("all", {"setting": Setting(5, 1, 0.2, 0.1), "array": np.arange(3.0), "missing": math.inf})
    with out.figure("picture", panels=2) as axes:
        axes[1].plot([0, 1])
    assert (tmp_path / "a" / "b" / "rows.csv").read_text() == "x,y\n1,0.123456\n2,nan\n"
    written = json.loads((tmp_path / "a" / "b" / "all.json").read_text())
    assert written["setting"] == {"clients": 5, "malicious": 1, "alpha": 0.2, "tau": 0.1, "inclusive": False}
    assert (written["array"], written["missing"]) == ([0.0, 1.0, 2.0], None)
    assert (tmp_path / "a" / "b" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "0.1235" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made():
    with pytest.raises(ConfigurationError, match="output: the folder"):
        Output("/dev/null/results")
