"""How long a backdoor lives after the attack has ended, in a run's record, its loggers and the summary of its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from fl_lightning.callbacks.backdoor_metrics import BackdoorMetrics
from fl_lightning.callbacks.history import History
from fl_lightning.callbacks.lifespan import Lifespan, columns, lifespan
from fl_lightning.callbacks.run_record import RunRecord
from fl_lightning.checked import real, whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation

log = logging.getLogger(__name__)


class BackdoorLifespan(L.Callback):
    """Tells how long a backdoor lives after the last attack: for runs with `model.cohort.end_round`, or with `single_shot`.

    A_l is the ASR l rounds after the last attacked round. It is measured at evaluations alone, so a lifespan has two bounds,
    equal where every round is evaluated; `trainer.check_val_every_n_epoch` decides how far apart they are.

    - `first_fall`: rounds before ASR first falls to `kappa` or below, min { l >= 1 : A_l <= kappa } - 1.
    - `last_above`: the last round with ASR above `kappa`, max { l >= 0 : A_l > kappa }, as Neurotoxin's paper counts. It is
      longer where ASR rises again.
    - `half`, `clean`: as `first_fall`, for half of A_0 and for `margin` above the ASR without attack in place of `kappa`.
    - `retention`: A_K / A_0 for each K of `horizons` that the run reaches, and the mean of A_1 to A_K.

    What had not fallen by the last evaluation is censored, ">= 80", with `most: null` and `censored: true`. Where A_0 is not
    above `kappa` the backdoor was not injected, and its lifespan is 0: compare lifespans at equal A_0 alone.

    `run.json` gets them as `lifespan` (see `lifespan.Lifespan` for its keys), loggers as `lifespan/...` as a run ends, `runs()`
    as columns and a sweep's report as a table. They are computed from the evaluations in the record, so that a resumed run has
    those of one that was never interrupted. Needs `RunRecord` and `BackdoorMetrics`, which every command has.

    Args:
        kappa: the ASR above which a backdoor lives, in [0, 1).
        horizons: the K of `retention`, at least 1 each.
        clean_asr: the ASR without attack, in [0, 1]; None takes the last evaluation before the first attacked round.
        margin: what ASR has beyond that until it counts as gone, in [0, 1].
        excess: whether all of this is about A_l less the ASR without attack, for tasks where that is not near 0.

    Raises:
        ConfigurationError: before training, if the attack has no end, or nothing measures ASR or records it.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[BackdoorMetrics(), RunRecord(), BackdoorLifespan(kappa=0.5)])
    """

    def __init__(
        self,
        kappa: float = 0.5,
        horizons: Sequence[int] = (100, 200, 400),
        clean_asr: float | None = None,
        margin: float = 0.1,
        excess: bool = False,
    ) -> None:
        self.kappa = share("kappa", kappa)
        if self.kappa == 1:
            raise ConfigurationError("BackdoorLifespan.kappa must lie in [0, 1), got 1: no ASR is above it; 0.5 is usual")
        if isinstance(horizons, str) or not isinstance(horizons, Sequence):
            raise ConfigurationError(f"BackdoorLifespan.horizons must be a list of whole numbers, got {horizons!r}")
        self.horizons = sorted({whole("each of BackdoorLifespan.horizons", k, 1) for k in horizons})
        self.clean_asr = None if clean_asr is None else share("clean_asr", clean_asr)
        self.margin = share("margin", margin)
        if not isinstance(excess, bool):
            raise ConfigurationError(f"BackdoorLifespan.excess must be true or false, got {excess!r}")
        self.excess = excess

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        for needed in (RunRecord, BackdoorMetrics):
            if not any(isinstance(callback, needed) for callback in trainer.callbacks):  # pyrefly: ignore[missing-attribute]
                raise ConfigurationError(f"BackdoorLifespan needs {needed.__name__}; add it to the Trainer's callbacks")
        if "stamped" not in pl_module.data.evaluation:
            raise ConfigurationError(
                "BackdoorLifespan needs an ASR, but model.attacks stamps no test samples; use an attack that does, or leave "
                "BackdoorLifespan out"
            )
        if not pl_module.cohort.ends:
            raise ConfigurationError(
                "BackdoorLifespan: the attack has no end; give model.cohort.end_round, the first round after it, or leave "
                "BackdoorLifespan out"
            )
        first, last = attacks_of(pl_module)
        if self.excess and self.clean_asr is None and not evaluated_before(trainer, first):
            raise ConfigurationError(
                "BackdoorLifespan.excess counts from the ASR without attack, but no round is evaluated before the first one "
                f"under attack, {first}; give clean_asr, a later model.cohort.start_round, or a smaller "
                "trainer.check_val_every_n_epoch"
            )
        ends = [n for n in (trainer.max_epochs, trainer.max_steps) if n is not None and n >= 0]
        if last is not None and ends and min(ends) <= last + 1:
            log.warning(
                "BackdoorLifespan: the last attack is in round %d of %d, counted from 0; a longer run (trainer.max_epochs) "
                "shows what becomes of the backdoor",
                last,
                min(ends),
            )

    def found(self, federation: Federation, history: History) -> Lifespan:
        """The lifespan as far as a run's evaluations tell."""
        first, last = attacks_of(federation)
        return lifespan(
            history.entries,
            first,
            last,
            kappa=self.kappa,
            horizons=self.horizons,
            clean_asr=self.clean_asr,
            margin=self.margin,
            excess=self.excess,
        )

    def for_run_json(self, federation: Federation, history: History) -> dict[str, Any]:
        """What `RunRecord` adds to `run.json`."""
        return {"lifespan": self.found(federation, history).as_json()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        record = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecord))  # pyrefly: ignore
        numbers = columns(self.found(pl_module, record.history).as_json())
        known = {f"lifespan/{name.removeprefix('lifespan_')}": n for name, n in numbers.items() if not math.isnan(n)}
        for logger in trainer.loggers if known and trainer.is_global_zero else ():
            logger.log_metrics(known, step=trainer.global_step)


def attacks_of(federation: Federation) -> tuple[int | None, int | None]:
    """The first and the last round with attackers in them, None where no round has any.

    By chance a round of the window may have none, under `random_pool`; it counts as one without attack.
    """
    cohort, sizes = federation.cohort, federation.data.sizes
    stop = cohort.end_round if cohort.end_round is not None else max(cohort.rounds, default=-1) + 1
    rounds = cohort.attacked_rounds(stop) if federation.attacks else range(0)

    def attacked(t: int) -> bool:
        return bool(cohort.draw(federation.seed, t, sizes).malicious.any())

    return next(filter(attacked, rounds), None), next(filter(attacked, reversed(rounds)), None)


def evaluated_before(trainer: L.Trainer, first: int | None) -> bool:
    """Whether there is an evaluation before the first attacked round, counted from 0; true where nobody attacks."""
    return first is None or first >= (trainer.check_val_every_n_epoch or 1)


def share(name: str, value: Any) -> float:
    """A setting that is a share."""
    if not 0 <= real(f"BackdoorLifespan.{name}", value) <= 1:
        raise ConfigurationError(f"BackdoorLifespan.{name} is a share and lies in [0, 1], got {value}")
    return value
