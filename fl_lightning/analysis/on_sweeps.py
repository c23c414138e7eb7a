"""The command that reads a sweep."""

from __future__ import annotations

from pathlib import Path

from fl_lightning.analysis.output import Output
from fl_lightning.errors import ConfigurationError, enumerated
from fl_lightning.experiments.figures import draw_sensitivity, numeric_axes, same_bytes
from fl_lightning.experiments.results import locate, read_results, records


def figure6(sweep: str, runs: str = "runs", output: str = "runs/analysis/figure6") -> None:
    """Figure 6: Acc and ASR by tau, alpha and clients per round, or whatever numbers a sweep varies.

    Args:
        sweep: a sweep's file, such as configs/sweeps/phishing/figure6.yaml, or its folder; `fl-lightning sweep` runs it.
        runs: the folder of all runs, where a file is given.
        output: folder for figure6.csv and figure6.png.
    """
    results = read_results(*locate(Path(sweep), Path(runs)))
    varied = numeric_axes(results)
    if not varied:
        raise ConfigurationError(f"{sweep} varies no number over three values or more; its axes are {enumerated(results.axes)}")
    out = Output(output)
    names = [*results.axes, "acc", "acc_sd", "asr", "asr_sd", "n"]
    out.table(results.title, [{name: cell[name] for name in names} for cell in records(results.cells)], "figure6")
    with same_bytes(), out.figure("figure6", panels=len(varied)) as panels:
        for panel, axis in zip(panels, varied, strict=True):
            draw_sensitivity(panel, results, axis)
    out.close()
