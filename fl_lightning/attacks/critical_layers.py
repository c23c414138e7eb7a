"""Backdoor-critical layers: malicious clients look benign but for those parameter tensors that carry the back door.

H. Zhuang, M. Yu, H. Wang, Y. Hua, J. Li, X. Yuan, "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
2024, https://arxiv.org/abs/2308.04466. Defaults are those of the authors' code,
https://github.com/zhmzm/Poisoning_Backdoor-critical_Layers_Attack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Knowledge, has_own, stamped_sets
from fl_lightning.attacks.company import before, divided, pairs, poisoned_by, refuse
from fl_lightning.attacks.crafted import Like, beside_benign, shadow_clients
from fl_lightning.attacks.edge_case import EdgeCase
from fl_lightning.attacks.poisoning import pooled
from fl_lightning.data.base import Samples
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits
from fl_lightning.updates.shard import UpdateShard

MOMENTUM = 0.9

Rate = Callable[[nn.Module], float]
"""ASR of a model on what the attackers hold back."""


class BackdoorCriticalLayers(Attack):
    """Attackers find the tensors L* that carry the back door, by substitution, and send what they learned only there.

    Before the clients of an attacked round train, the attackers put their data together, hold a share back, and train two
    models from the global one w_G: w_b on the clean rest, w_m on it as poisoned by the attacks before this one. With ASR on
    the stamped samples that they hold back, and tensors as the unit (a weight and its bias are two),

        forward substitution:   value_l = ASR(w_m with w_b's tensor l) - ASR(w_m), the lowest being the most critical
        backward substitution:  L* = the n most critical tensors, for the least n with
                                ASR(w_b with those n of w_m) >= threshold * ASR(w_m)

    Clients then train as ever, malicious ones on poisoned data and once more on clean data. With their updates g and b, old
    minus new, a malicious client sends

        strength * g_l + max(0, 1 - strength) * b_l   for l in L*,   and b_l elsewhere.

    Put it after an attack with a trigger, such as `PixelTrigger` or `DBA`, and with `Collude` for one update in all names.

    Args:
        strength: lambda, more than 0; 1 is the authors' for CIFAR-10, .5 for their small network; above 1 exaggerates.
        threshold: tau, in (0, 1].
        like: whose b: what the client itself would have sent (`own`), or the mean of what the round's attackers would have.
        held_back: share of each attacker's samples that the analysis does not train on, in (0, 1).
        passes: of w_b and w_m over the data, at most, at least 1.
        accuracy: on the data in training at which these models are trained enough, in (0, 1]; authors: .93 for CIFAR-10, else
            .9.
        lr: learning rate of these two, more than 0, by SGD with momentum .9. It should be about that of clients.
        batch_size: largest number of samples in a batch of theirs, at least 1.
        every: attacked rounds from one analysis to the next, at least 1.
        rule: a rule of which the attackers know that the server has it, such as `MultiKrum` or `FLAME`; they keep of L* what it
            takes. In every attacked round they train as many benign clients as there are on random parts of their clean data,
            and leave out the least critical tensors one by one until the rule, given the updates of these and their own,
            counts all of their own; the most critical one is sent in any case. It must say how much clients count, and need
            nothing but updates.

    Raises:
        ConfigurationError: before training, without an attack before it that stamps a test set, and with `EdgeCase`, whose
            stamped samples are nobody's held-back ones. In the first attacked round, if `forward` gives no logits.

    Every rank does the analysis for itself, to the same bits: up to 2 * `passes` passes over the malicious clients' samples,
    and as many evaluations of what they hold back as there are tensors, plus |L*|. Where they can hold back nothing to stamp,
    L* stays what it was; at first it is all tensors.

    Differs from the paper's account and the authors' code, as far as it is known: their w_m learns from a stamped copy of every
    sample, here from what the attacks before this one make of the data; one attacker is trained there and copied to all, which
    here is `Collude`; buffers (BatchNorm's statistics) of an update are those of the poisoned training, where theirs are w_b's;
    their analysis trains at rate .1 whatever the task. Their search for a part of L* and a strength that a known rule accepts,
    and the variant that sends 2 w_G - w_m to spoil accuracy, are not here.

    A reader may take L* for layers, or for the same in all rounds: it is neither.

    Example:
        >>> from fl_lightning.updates.layers import layers_of
        >>> updates, honest = torch.tensor([[-1.0, -1.0]]), UpdateShard.from_updates(torch.tensor([[-0.2, -0.2]]))
        >>> tensors, malicious = layers_of(["a", "b"], [(1,), (1,)]), torch.tensor([True])
        >>> shard = UpdateShard([updates], torch.ones(1), malicious, num_coordinates=2, layers=tensors)
        >>> attack = BackdoorCriticalLayers(strength=0.5)
        >>> attack.critical = ["a"]  # as an analysis may find
        >>> attack.corrupt(shard, Knowledge(lambda s: torch.ones(2, dtype=torch.bool), rehearsed=honest))
        >>> shard.values
        tensor([[-0.6000, -0.2000]])
    """

    def __init__(
        self,
        *,
        strength: float = 1.0,
        threshold: float = 0.8,
        like: Like = "own",
        held_back: float = 0.2,
        passes: int = 30,
        accuracy: float = 0.9,
        lr: float = 0.1,
        batch_size: int = 64,
        every: int = 1,
        rule: nn.Module | None = None,
    ) -> None:
        name = type(self).__name__
        for field, value in (("strength", strength), ("lr", lr)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{name}.{field} must be more than 0 and finite, got {value}")
        for field, share in (("threshold", threshold), ("accuracy", accuracy)):
            if not 0 < share <= 1:
                raise ConfigurationError(f"{name}.{field} must be more than 0 and at most 1, got {share}")
        if not 0 < held_back < 1:
            raise ConfigurationError(f"{name}.held_back must lie in (0, 1), got {held_back}; 0.2 is the default")
        if like not in get_args(Like):
            raise ConfigurationError(f"{name}.like must be own or mean, got {like!r}")
        for field, count in (("passes", passes), ("batch_size", batch_size), ("every", every)):
            if count < 1:
                raise ConfigurationError(f"{name}.{field} must be at least 1, got {count}")
        self.strength = strength
        self.threshold = threshold
        self.like: Like = like
        self.held_back = held_back
        self.passes = passes
        self.accuracy = accuracy
        self.lr = lr
        self.batch_size = batch_size
        self.every = every
        if rule is not None and not getattr(rule, "judges", False):
            raise ConfigurationError(
                f"{name}.rule must be a server rule that judges clients, such as MultiKrum or FLAME, got {type(rule).__name__}"
            )
        if rule is not None and needs_more(rule):
            raise ConfigurationError(
                f"{name}.rule must need nothing but updates, but {type(rule).__name__} needs root samples, or to know whose "
                "updates they are, or to look at models; leave it out, or name another"
            )
        self.rule = rule
        self.before: list[Attack] = []
        self.critical: list[str] | None = None  # L* by name, the most critical first; None for all tensors
        self.turns = 0  # attacked rounds so far

    def meet(self, attacks: Sequence[Attack]) -> None:
        self.before = before(self, attacks)
        why = "its stamped samples are test data, which attackers have not; use a trigger, such as PixelTrigger"
        refuse(self, self.before, lambda other: isinstance(other, EdgeCase), why)
        if not any(has_own(attack, "stamp") for attack in self.before):
            raise ConfigurationError(
                "BackdoorCriticalLayers looks for the tensors that carry a back door, but no attack before it in "
                "model.attacks has a trigger; put one there, such as PixelTrigger"
            )

    # ---- the analysis ------------------------------------------------------------------------------------------------

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        if self.turns % self.every == 0:
            self.critical = self.analyse(module, datasets, attackers)
        self.turns += 1

    def analyse(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> list[str] | None:
        """L* by name, the most critical first; what it was where there is nothing to measure it on."""
        draws = attackers[0].generator(f"critical layers, round {attackers[0].round_number}", shared=True)
        parts = [divided(samples, self.held_back, draws) for samples in datasets]
        held = [held for _, held in parts if len(held)]
        stamped = stamped_sets(self.before, join(held)).get("stamped") if held else None
        if stamped is None:
            return self.critical
        clean = [kept for kept, _ in parts]
        benign = self.trained(module, join(clean), draws)
        malicious = self.trained(module, pooled(poisoned_by(self.before, clean, attackers)), draws)
        rate = partial(self.rate, samples=stamped)
        return critical_tensors(benign, malicious, rate, self.threshold)

    def trained(self, module: nn.Module, samples: Samples, draws: torch.Generator) -> nn.Module:
        """The module after training on the samples; a copy in eval mode."""
        model = copy.deepcopy(module).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=self.lr, momentum=MOMENTUM)
        device = next(model.parameters()).device
        for _ in range(self.passes):
            model.train()
            for inputs, targets in pairs(samples, self.batch_size, draws, device, "BackdoorCriticalLayers"):
                optimizer.zero_grad()
                F.cross_entropy(class_logits(model, inputs, "BackdoorCriticalLayers"), targets).backward()
                optimizer.step()
            if self.rate(model.eval(), samples) >= self.accuracy:
                break
        return model.eval()

    @torch.no_grad()
    def rate(self, model: nn.Module, samples: Samples) -> float:
        """Share of the samples that a model in eval mode takes for what their label says."""
        device, hits = next(model.parameters()).device, 0
        for inputs, targets in pairs(samples, self.batch_size, None, device, "BackdoorCriticalLayers"):
            hits += int((class_logits(model, inputs, "BackdoorCriticalLayers").argmax(1) == targets).sum())
        return hits / len(samples)

    # ---- what is sent ------------------------------------------------------------------------------------------------

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        """Each attacker's clean data, and after them those of simulated clients, where a rule is known."""
        return list(datasets) + ([] if self.rule is None else shadow_clients(datasets, attackers, num_benign))

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        assert knowledge.rehearsed is not None, "the attack has asked for rehearsals"
        honest, simulated = knowledge.rehearsed.split(int(shard.malicious.sum()))
        tensors = [layer.name for layer in shard.layers] if self.critical is None else self.critical
        crafted = self.crafted(shard, honest, tensors)
        simulates = self.rule is not None and simulated.num_clients > 0  # none in a round of malicious clients alone
        while simulates and len(tensors) > 1 and not self.accepted(shard, simulated, crafted):
            tensors = tensors[:-1]
            crafted = self.crafted(shard, honest, tensors)
        shard.rewrite(shard.malicious, lambda _, rows: rows, crafted)

    def crafted(self, shard: UpdateShard, honest: UpdateShard, tensors: Sequence[str]) -> Tensor:
        """(f, S), what malicious clients send if only these tensors are poisoned."""
        critical = torch.zeros(shard.width, dtype=torch.bool, device=shard.weights.device)
        for layer in shard.layers:
            if layer.name in tensors:
                critical[layer.columns(shard.start, shard.width)] = True
        of_benign = max(0.0, 1.0 - self.strength)
        rows = [
            torch.where(critical, self.strength * shard.row(i) + of_benign * benign, benign)
            for i, _, benign in beside_benign(shard, honest, self.like)
        ]
        return torch.stack(rows)

    def accepted(self, shard: UpdateShard, simulated: UpdateShard, crafted: Tensor) -> bool:
        """Whether the known rule counts all of these updates beside those of simulated clients."""
        together = shard.with_rows(torch.cat([simulated.values, crafted]))
        finite = together.finite_rows()
        if not finite[-len(crafted) :].all():
            return True  # nothing that leaves tensors out would help
        together.keep(finite)
        rule = copy.deepcopy(self.rule)
        assert rule is not None
        cast("Callable[[int], None]", rule.expect)(len(crafted))
        rule(together)
        assert together.verdict is not None, "a rule that judges has judged"
        return bool((together.verdict[-len(crafted) :] > 0).all())

    def state_dict(self) -> dict[str, Any]:
        return {"critical": self.critical, "turns": self.turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critical, self.turns = state["critical"], state["turns"]


def needs_more(rule: nn.Module) -> bool:
    """Whether a rule asks for anything beside updates: its own samples, clients' numbers, or models to try out or to edit."""
    asks = ("needs_root", "needs_clients", "probe")
    hooks = [hook for part in rule.modules() if (hook := getattr(type(part), "before_broadcast", None)) is not None]
    return any(hook.__qualname__ != "Aggregator.before_broadcast" for hook in hooks) or any(
        getattr(part, name, None) not in (False, None) for part in rule.modules() for name in asks
    )


def critical_tensors(benign: nn.Module, malicious: nn.Module, rate: Rate, threshold: float) -> list[str]:
    """L* by name, the most critical first; of equally critical ones the first in the model.

    Args:
        benign: w_b; buffers of the models in backward substitution are its own.
        malicious: w_m, likewise in forward substitution.
        rate: ASR.
        threshold: tau.
    """
    of_benign, of_malicious = trainable(benign), trainable(malicious)
    full = rate(malicious)
    values = {name: rate_with(malicious, {name: of_benign[name]}, rate) - full for name in of_malicious}
    ranked = sorted(values, key=values.__getitem__)  # stable
    for n in range(1, len(ranked)):
        if rate_with(benign, {name: of_malicious[name] for name in ranked[:n]}, rate) >= threshold * full:
            return ranked[:n]
    return ranked


@torch.no_grad()
def rate_with(model: nn.Module, others: dict[str, Tensor], rate: Rate) -> float:
    """The rate of a model with some of its tensors replaced; it is as before then."""
    own = dict(model.named_parameters())
    kept = {name: own[name].clone() for name in others}
    for name, tensor in others.items():
        own[name].copy_(tensor)
    found = rate(model)
    for name, tensor in kept.items():
        own[name].copy_(tensor)
    return found


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Its trainable parameter tensors by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
