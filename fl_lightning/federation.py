"""The federated round, top to bottom.

A run is one `Trainer.fit` over a `Federation`. A training step is a round and an epoch has one step, so `max_epochs` is the
number of rounds and every Trainer flag, logger, callback and checkpoint works as for any LightningModule.

Letters: N clients report in a round, K_r of them trained on rank r of W; d coordinates (trainable parameters); S of them are
this rank's after the exchange.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator, per_coordinate
from fl_lightning.attacks.base import Attack, Broadcast, Knowledge
from fl_lightning.checked import made_of, maker, one_of, shown, whole
from fl_lightning.checkpoints.trained import Loadable
from fl_lightning.checkpoints.warm_start import WarmStart
from fl_lightning.clients import Clients
from fl_lightning.cohort import CohortSampler
from fl_lightning.data.module import FederatedDataModule, data_of
from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.fresh_memory import unfilled
from fl_lightning.machine.strategy import FederatedStrategy
from fl_lightning.modules.lightning_modules import ClientModule
from fl_lightning.modules.subclasses import Made, check_methods
from fl_lightning.modules.undisturbed import Undisturbed
from fl_lightning.options.monitors import check_logged
from fl_lightning.options.trainer_options import check_trainer, make_trial
from fl_lightning.seeding import drawn_by_chance, warn_of_chance
from fl_lightning.server import progress
from fl_lightning.server.edits import Edits
from fl_lightning.server.examination import Examination
from fl_lightning.server.exclusion import exclude_nonfinite
from fl_lightning.server.last_round import Evaluations
from fl_lightning.server.outcome import RoundOutcome, observers
from fl_lightning.server.outcome_checks import accepted
from fl_lightning.server.phases import EXTRA_WORK, Phases
from fl_lightning.server.quiet_ends import watch
from fl_lightning.server.resources import Compile
from fl_lightning.server.round_checks import check_round
from fl_lightning.server.setting_up import set_up
from fl_lightning.server.step import take_step
from fl_lightning.server.taken_names import WatchedNames
from fl_lightning.training.client_checks import check_kind
from fl_lightning.training.client_logs import average_logs, sort_logs
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.peak_memory import PeakMemory
from fl_lightning.training.recipe import Attackers, recipe_of
from fl_lightning.training.stopwatch import ATTACKERS_TRAINING
from fl_lightning.updates.agreement import check_agreement, check_same_start
from fl_lightning.updates.exchange import BUCKET_BYTES, Exchange
from fl_lightning.updates.layout import Layout, clamp_variances, named_state
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class Federation(Made, Loadable, WatchedNames):
    """A server, its clients, and those among them that attack.

    Args:
        client: any LightningModule with one optimizer, of `lightning` or `pytorch_lightning`; its weights are the global model.
            Local training calls its `training_step`, its `configure_optimizers` and the hooks in `hooks.CALLED`; its `trainer`
            shows it its own training alone, and what it keeps in Python is put back after every client. Evaluation calls its
            `predict_step` if it defines one, else `forward` on the inputs of an `(inputs, targets)` batch, and expects logits
            (b, C), or (b,) or (b, 1) for two classes: a tensor, or what `outputs.read_logits` can find one in. Tasks that ask
            for something else than a class per sample expect what `data.outcomes` says.
        aggregator: the server's rule.
        attacks: what malicious clients do, in this order. With `cohort.malicious_fraction: 0` they only stamp the test set, so
            that the attack-free ASR is measured.
        cohort: how clients are sampled.
        local: how a client trains.
        attackers: what malicious clients do otherwise in rounds that they attack, or a `LocalTraining` of their own.
        attackers_optimizer: makes a malicious client's optimizer in such a round, in place of its own with its scheduler.
        attackers_scheduler: makes the scheduler of its learning rate, which steps after every local epoch.
        server_optimizer: makes the optimizer that applies the aggregate as a gradient; SGD with learning rate 1 is FedAvg's
            plain replacement of the model.
        server_scheduler: makes the scheduler of its learning rate, which steps after every round; left out, there is none.
        buffers: what becomes of floating-point buffers (BatchNorm's running statistics): `trimmed` combines them by the rule's
            own location estimate without mask (a trimmed mean for trimming rules, the weighted mean for FedAvg), `mean` by the
            weighted mean, `keep` leaves the global ones as they are.
        seed: the experiment's seed; all draws are keyed by it. The initial weights are those that `client` was made with: seed
            torch before that (`L.seed_everything(0)`), as the command line does, or they differ from one run to the next.
        bucket_bytes: memory for one bucket of coordinates during the exchange.
        compile_rules: whether rules that can (TrimmedMean, Median, Invariant, MeanVarianceRatio, but not inside others) run
            compiled, with the same bits: `auto` if the rounds save more time than compiling takes, `always`, or `never`.
        start_from: where the first round's weights (parameters and buffers) come from, in place of the client's own: a run's
            folder, a checkpoint, or a file of `torch.save` with a `state_dict`, of the same model. Rounds count from 0. A run
            that goes on from its checkpoint needs it no more.

    Example:
        >>> from fl_lightning.aggregators import Invariant
        >>> from fl_lightning.models import MLP
        >>> federation = Federation(MLP(), Invariant(tau=0.6), cohort=CohortSampler(clients_per_round=20))
    """

    # What `setup` lays out.
    parameters_layout: Layout
    buffers_layout: Layout
    exchange: Exchange
    buffer_exchange: Exchange
    clients: Clients
    examination: Examination
    edits: Edits
    peak_memory: PeakMemory

    def __init__(
        self,
        client: ClientModule,
        aggregator: Aggregator,
        attacks: Sequence[Attack] = (),
        cohort: CohortSampler = CohortSampler(),  # noqa: B008  frozen
        local: LocalTraining = LocalTraining(),  # noqa: B008  frozen
        attackers: Attackers | None = None,
        attackers_optimizer: OptimizerCallable | None = None,
        attackers_scheduler: LRSchedulerCallable | None = None,
        server_optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        server_scheduler: LRSchedulerCallable | None = None,
        buffers: Literal["trimmed", "mean", "keep"] = "trimmed",
        seed: int = 0,
        bucket_bytes: int = BUCKET_BYTES,
        compile_rules: Compile = "auto",
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        check_kind(client)
        if isinstance(attacks, Attack) or not isinstance(attacks, Iterable):
            raise ConfigurationError(f"model.attacks must be a list of attacks, [] for none, got {shown(attacks)}; give [...]")
        if not 0 <= (seed := whole("the seed", seed)) < 2**32:
            raise ConfigurationError(f"the seed must lie in [0, 2**32), got {seed}")
        self.automatic_optimization = False
        check_methods(self, Federation)
        self.client = client
        self.aggregator = made_of("model.aggregator", aggregator, Aggregator, "FedAvg()")
        self.attacks = [made_of("each of model.attacks", attack, Attack, "SignFlip()") for attack in attacks]
        self.cohort = made_of("model.cohort", cohort, CohortSampler, "CohortSampler()")
        self.local = made_of("model.local", local, LocalTraining, "LocalTraining()")
        self.recipe = recipe_of(self.local, attackers, attackers_optimizer, attackers_scheduler)
        self.server_optimizer = maker("model.server_optimizer", server_optimizer)
        self.server_scheduler = None if server_scheduler is None else maker("model.server_scheduler", server_scheduler)
        self.buffer_policy = one_of("model.buffers", buffers, ("trimmed", "mean", "keep"))
        self.seed = seed
        self.bucket_bytes = whole("model.bucket_bytes", bucket_bytes, 1)
        self.compile_rules: Compile = one_of("model.compile_rules", compile_rules, get_args(Compile))
        self.warm_start = WarmStart.at(start_from)
        self.last_step: Tensor | None
        self.register_buffer("last_step", None)  # (d,), old minus new, where an attack watches it
        self.seconds: dict[str, float] = defaultdict(float)
        self.stopwatch = Phases()
        self.client_updates = 0
        self.excluded_updates = 0
        self.evaluations = Evaluations()
        self.by_chance = drawn_by_chance()
        self.refused_rounds = 0
        self.rounds_done = 0  # of the weights here, also where they are of a checkpoint
        self.undisturbed = Undisturbed(seed)
        self.outcome: RoundOutcome | None = None

    # ---- one round ---------------------------------------------------------------------------------------------------

    @unfilled()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Round t: local training, exchange, attack, aggregation, server step."""
        t = self.global_step
        refused = self.edits.before_broadcast(t, self.last_step)
        self.clients.check_module(t)
        cohort = self.cohort.draw(self.seed, t, self.data.sizes)  # N clients
        broadcast = Broadcast(self.parameters_layout.flatten(self.client), self.last_step, t)  # (d,)

        with self.phase("local_training"):
            trained = self.clients.train(t, cohort, broadcast)  # K_r of N clients and E others

        with self.phase("exchange"):
            travelling = self.exchange.begin_collecting((trained.logs, trained.attackers_seconds))  # beside the updates
            everyone = trained.owner, trained.weights, trained.malicious, trained.clients  # (N + E,) each
            rows = self.exchange.to_coordinates(trained.updates, *everyone, seed=self.seed, round_number=t)  # (N + E, S)
            buffer_rows = self.buffer_exchange.to_coordinates(trained.buffer_updates, *everyone, seed=self.seed, round_number=t)
            rows.broadcast = broadcast.weights[self.exchange.start : self.exchange.stop]
            shard, others = rows.split(len(cohort))  # (N, S)
            buffer_shard, _ = buffer_rows.split(len(cohort))
            if self.aggregator.needs_root:
                root, others = others.split(1)
                shard.root = root.values[0]

        if cohort.malicious.any():
            with self.phase("attack"):
                self.attack(shard, buffer_shard, others, trained.rehearsed)
                shard.look_again(shard.malicious)
                buffer_shard.look_again(shard.malicious)

        with self.phase("aggregation"):
            stays = exclude_nonfinite(cohort, shard, buffer_shard)  # (N,)
            self.examination.offer(shard, buffer_shard, broadcast.weights)
            aggregate = self.aggregator(shard) if shard.num_clients else torch.zeros(shard.width, device=self.device)  # (S,)
            shard.settle()  # whatever the rule looked at
            self.outcome = RoundOutcome.of(cohort, stays, shard, self.aggregator.judges)

        with self.phase("exchange"):
            gradient = self.exchange.to_all(aggregate)  # (d,)

        for callback in observers(self.trainer.callbacks):  # pyrefly: ignore[missing-attribute]
            callback.on_aggregate(self, shard, aggregate)

        with self.phase("aggregation"):
            unchanged = self.server_step(gradient if shard.num_clients else None, broadcast)
            if not unchanged:
                self.update_buffers(buffer_shard)
        refused |= unchanged | self.edits.after_step(t)
        if self.last_step is not None:
            self.last_step = broadcast.weights - self.parameters_layout.flatten(self.client)
        self.rounds_done = self.global_step
        self.client_updates += len(cohort)
        excluded = int((~stays).sum())
        self.excluded_updates += excluded
        self.refused_rounds += refused
        # Loggers take `step` as their x-axis: rounds done, the same for what is logged in training and in evaluation.
        logged = {"step": float(self.global_step), "round/excluded_updates": float(excluded), "round/refused": float(refused)}
        of_ranks = travelling()
        self.seconds[ATTACKERS_TRAINING] += sum(seconds for _, seconds in of_ranks)
        self.outcome.logs = sort_logs([logs for logs, _ in of_ranks])
        logged |= average_logs(self.outcome.logs)
        self.log_numbers(logged)
        check_logged(self.trainer, logged)
        if self.trainer._detect_anomaly:
            check_agreement(self.client, self.exchange, f"after round {t}")

    def attack(self, shard: UpdateShard, buffer_shard: UpdateShard, rehearsed: UpdateShard, counts: list[int]) -> None:
        """Let every attack rewrite the malicious rows, in order, each knowing what came of its own `counts` rehearsals."""
        step = None if self.last_step is None else self.last_step[self.exchange.start : self.exchange.stop]
        for attack, count in zip(self.attacks, counts, strict=True):
            own, rehearsed = rehearsed.split(count)
            attack.corrupt(shard, Knowledge(self.aggregator.mask, own if count else None, step))
            attack.corrupt_buffers(buffer_shard)

    def server_step(self, gradient: Tensor | None, broadcast: Broadcast) -> bool:
        """Step the server optimizer with the aggregate (d,) as gradient; tell if the round is refused for what comes of it."""
        t, optimizer = self.global_step, self.optimizers()
        assert not isinstance(optimizer, list), "the server has one optimizer"
        reason = take_step(optimizer, self.client, self.parameters_layout, broadcast.weights, gradient)
        if reason is not None:
            log.warning("round %d is refused: %s; model and server optimizer stay as they are", t, reason)
        for config in self.trainer.lr_scheduler_configs:  # a round is a step and an epoch
            if self.global_step % config.frequency == 0:
                config.scheduler.step()  # pyrefly: ignore[missing-argument]
        return reason is not None

    def update_buffers(self, shard: UpdateShard) -> None:
        """Move the global buffers by the combined updates of the clients' buffers."""
        if not shard.num_coordinates or not shard.num_clients:
            return
        trimmed = self.buffer_policy == "trimmed"
        combined = self.aggregator.aggregate_buffers(shard) if trimmed else shard.mean(shard.shares)  # (S,) of the buffers
        combined = per_coordinate(combined, shard, f"{type(self.aggregator).__name__}.aggregate_buffers")
        new = self.buffers_layout.flatten(self.client) - self.buffer_exchange.to_all(combined)
        if not new.isfinite().all():
            log.warning("round %d: the combined buffers are not finite; they stay as they are", self.global_step)
            return
        self.buffers_layout.load(self.client, new)
        clamp_variances(self.client)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    @unfilled()
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        """Predict a batch of an evaluation set; None where this rank has none left.

        Returns:
            What `data.outcome` makes of it: `hits`, `counted` and `undefined` (b,) or (b, L) bool, see `Judged`; with the
            `targets` and the `output`, the logits.
        """
        if batch is None:
            return None
        inputs, targets = batch
        with self.undisturbed.batch(self.client, self._trainer, batch_idx, dataloader_idx):
            output = self.predict(inputs)
        judged = self.data.outcome.judge(output, targets, partial(accepted, self.aggregator))
        return {**vars(judged), "targets": targets, "output": output}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits of a batch, for `Trainer.predict`."""
        with self.undisturbed.batch(self.client, self._trainer, batch_idx, dataloader_idx):
            return self.predict(batch)

    def predict(self, batch: Any) -> Tensor:
        """Logits of the global model for a batch as `training_step` takes it."""
        return self.aggregator.predict(self.client, batch, self.undisturbed.generator("predict", self.rounds_done))

    def on_validation_start(self) -> None:
        self.warm_start.begin(self.client, self.trainer, anew=False)
        self._evaluation_began = time.perf_counter()
        self.evaluations.round = self.global_step
        self.undisturbed.begin()

    def on_validation_end(self) -> None:
        self.undisturbed.end()
        self.seconds["evaluation"] += time.perf_counter() - self._evaluation_began

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_predict_start(self) -> None:
        self.warm_start.begin(self.client, self.trainer, anew=False)
        self.undisturbed.begin()

    def on_predict_end(self) -> None:
        self.undisturbed.end()

    def on_train_epoch_end(self) -> None:
        self.evaluations.close(self.trainer)
        if isinstance(self.trainer.strategy, FederatedStrategy):
            self.trainer.strategy.agree_to_stop()

    def on_train_end(self) -> None:
        self.evaluations.close(self.trainer)  # where a callback found at the end of the round that it was the last
        check_agreement(self.client, self.exchange, f"at the end, after {self.global_step} rounds,")

    # ---- before and after --------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        """Add none, but look at the Trainer and its callbacks: Lightning asks for more before it checks or fetches anything."""
        watch(self.trainer)
        check_trainer(self.trainer)
        make_trial(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Check everything that can be checked without training, and lay out vectors and evaluation sets."""
        set_up(self, stage)

    def check(self, data: FederatedDataModule) -> None:
        """Raise `ConfigurationError` if cohort, rule, client or attacks do not fit the data that were dealt out."""
        settings = self.cohort, self.aggregator, self.attacks, self.local, self.recipe
        check_round(self.client, data, *settings, self.configure_optimizers)

    def prepare_data(self) -> None:
        """Fetch what attacks need, on one process per node."""
        for attack in self.attacks:
            attack.prepare()

    def configure_optimizers(self) -> Any:
        """The server's optimizer over the client's trainable parameters, and its scheduler if there is one."""
        optimizer = self.server_optimizer([p for p in self.client.parameters() if p.requires_grad])
        if self.server_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.server_scheduler(optimizer)}

    def on_fit_start(self) -> None:
        """Give every rank rank 0's weights, once all go on from the same round."""
        check_same_start(self.client, self.exchange, None if self.trainer.ckpt_path is None else self.rounds_done)
        self.warm_start.begin(self.client, self.trainer)
        if self.by_chance and self.warm_start.path is None and self.trainer.ckpt_path is None:
            warn_of_chance(self.seed)
        for _, tensor in named_state(self.client):
            tensor.copy_(self.exchange.broadcast(tensor.contiguous()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "clients"):  # somebody saves what was refused before its setup
            return
        progress.write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress.read(self, checkpoint)

    # ---- small things ------------------------------------------------------------------------------------------------

    @property
    def data(self) -> FederatedDataModule:
        """The data module that the Trainer was given."""
        return data_of(self.trainer)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Add the time of a part of the round to `seconds[name]`, but for phases inside it; note the memory of extra work."""
        watched = self.peak_memory.during(name) if name in EXTRA_WORK else None
        return self.stopwatch.phase(name, self.seconds, self.device, watched)
