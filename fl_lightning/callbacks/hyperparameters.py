"""What loggers are told of a run's settings."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def log_settings(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Give every logger the settings as a run begins."""
    for logger in loggers:
        logger.log_hyperparams(dict(config))


def log_results(loggers: Iterable[Logger], config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Give TensorBoard the settings beside what came of them, `final/acc` and `final/asr`: a row of its HPARAMS tab.

    It has no such row without a measure, so not before the end.
    """
    final = {f"final/{name}": record[name] for name in ("acc", "asr") if record[name] is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and final:
            logger.log_hyperparams(dict(config), final, step=record["rounds"])
