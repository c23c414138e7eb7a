"""Every client of every round in one table: who it was, what it sent, what the rule made of it."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.callbacks.trial import is_trial
from fl_lightning.checked import whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.round_tables import RoundTables, files_of
from fl_lightning.files.run_files import CLIENTS
from fl_lightning.server.outcome import RoundOutcome
from fl_lightning.updates.shard import UpdateShard

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)


class ClientRecord(L.Callback):
    """Writes a row per client and round into Parquet files in `clients/`, in `Trainer(default_root_dir=...)`.

    Columns: `round` (t, from 0), `client` (its number), `malicious`, `samples` (the count that it reports), `norm` (Euclidean,
    of its update after attacks), `cosine` (between that and the aggregate), `verdict` (see `UpdateShard.judge`), `excluded`
    (whether the update was not finite), `logged` (what its training logged, by name, such as `loss`). `norm` and `cosine` are
    null for excluded updates, `cosine` where one of the two is zero, `verdict` where the rule does not judge clients. Sums over
    coordinates are in float64, the same bits on any number of ranks.

    `fl_lightning.experiments.clients(run)` reads them. Files are written whole, for several rounds at a time; checkpoints carry
    the rows of the rounds in between. So a killed run that goes on from its checkpoint, on any number of ranks, has each row
    once, and rounds that are done again have their rows anew. In the end there is one file.

    Args:
        every_n_rounds: rounds between files, at least 1.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[ClientRecord()])
    """

    def __init__(self, *, every_n_rounds: int = 20) -> None:
        self.every_n_rounds = whole("ClientRecord.every_n_rounds", every_n_rounds, 1)
        self.tables: RoundTables | None = None  # on rank 0, from the first round on
        self.waiting: list[str] = []  # a JSON list of rows for each round that is in no file yet
        self._geometry: list[tuple[float | None, float | None]] = []  # norm and cosine of each client that stayed

    # ---- a round -----------------------------------------------------------------------------------------------------------

    def on_aggregate(self, federation: Federation, shard: UpdateShard, aggregate: Tensor) -> None:
        self._geometry = norms_and_cosines(shard, aggregate) if shard.num_clients else []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Federation)
        if self.tables is not None:
            assert pl_module.outcome is not None
            self.waiting.append(json.dumps(rows(pl_module.outcome, self._geometry)))
            if len(self.waiting) >= self.every_n_rounds:
                self._write()

    def _write(self) -> None:
        if self.tables is not None and self.waiting:
            written = [row for of_round in self.waiting for row in json.loads(of_round)]
            self.tables.add([{**row, "logged": list(row["logged"].items())} for row in written])
            self.waiting = []

    # ---- before and after ----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tables = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the folder at the first round: what an earlier run left has been put aside by now."""
        if self.tables is not None or is_trial(trainer) or not trainer.is_global_zero:
            return
        if not trainer.global_step:
            self.waiting = []
        folder = Path(trainer.default_root_dir) / CLIENTS
        written = trainer.global_step - len(self.waiting)
        try:
            self.tables = RoundTables(folder, schema(), written)
        except OSError as error:
            raise ConfigurationError(
                f"trainer.default_root_dir: ClientRecord cannot write to {folder}: {error}; give a folder that can be written"
            ) from error
        if written and not files_of(folder):
            log.warning("ClientRecord: the rows of rounds before %d are not in %s; the record begins there", written, folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write()
        if self.tables is not None:
            self.tables.merge()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # which would hide what went wrong
            self._write()
        self.tables = None

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": list(self.waiting)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waiting = list(state_dict["waiting"])


def schema() -> pyarrow.Schema:
    """The columns."""
    import pyarrow as pa  # slow to import, and most runs do without

    return pa.schema(
        [
            ("round", pa.int64()),
            ("client", pa.int64()),
            ("malicious", pa.bool_()),
            ("samples", pa.int64()),
            ("norm", pa.float64()),
            ("cosine", pa.float64()),
            ("verdict", pa.float32()),
            ("excluded", pa.bool_()),
            ("logged", pa.map_(pa.string(), pa.float64())),
        ]
    )


def norms_and_cosines(shard: UpdateShard, aggregate: Tensor) -> list[tuple[float | None, float | None]]:
    """Of each update its norm and its cosine with the aggregate ((S,) float32), None with or of a zero vector.

    Example:
        >>> shard = UpdateShard.from_updates(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> norms_and_cosines(shard, torch.tensor([2.0, 0.0]))
        [(5.0, 0.6), (0.0, None)]
    """
    n = shard.num_clients

    def sums(values: Tensor, aggregate: Tensor) -> Tensor:
        """(N, c) float64 and (c,) float32 -> (2 N + 1,): inner products with the aggregate, squares, the aggregate's square."""
        other = aggregate.double()
        inner = torch.mv(values, other)
        return torch.cat([inner, values.square_().sum(1), other.square_().sum()[None]])

    total = shard.reduce(sums, aggregate).tolist()
    length, norms = math.sqrt(total[2 * n]), [math.sqrt(square) for square in total[n : 2 * n]]
    return [
        (norm, max(-1.0, min(1.0, inner / norm / length)) if norm and length and math.isfinite(length) else None)
        for inner, norm in zip(total[:n], norms, strict=True)
    ]


def rows(outcome: RoundOutcome, geometry: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    """The rows of a round.

    Args:
        outcome: of the round, with what clients logged.
        geometry: norm and cosine of each client that stayed.
    """
    cohort, left = outcome.cohort, iter(geometry)
    verdicts = [None] * len(cohort) if outcome.verdict is None else outcome.verdict.tolist()
    found = []
    for i, stays in enumerate(outcome.stays.tolist()):
        norm, cosine = next(left) if stays else (None, None)
        found.append(
            {
                "round": outcome.round,
                "client": int(cohort.clients[i]),
                "malicious": bool(cohort.malicious[i]),
                "samples": int(cohort.weights[i]),
                "norm": norm,
                "cosine": cosine,
                "verdict": verdicts[i],
                "excluded": not stays,
                "logged": outcome.logs[i],
            }
        )
    return found
