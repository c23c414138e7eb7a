"""Who takes part in a round, who is malicious, and which rank trains whom.

A cohort is a pure function of (settings, seed, round, client sizes): every rank draws the same one without talking to the
others. Which rank trains whom is a second pure function, of sizes and the number of ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fl_lightning.checked import real, whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

Participation = Literal["fixed_share", "random_pool", "fixed_frequency", "single_shot"]


@dataclass(frozen=True)
class Cohort:
    """The N clients of one round, in ascending order of their numbers.

    Attributes:
        clients: (N,) int64, client numbers.
        malicious: (N,) bool.
        attackers: (N,) int64, each client's position among all malicious clients of the experiment; -1 for benign ones.
        weights: (N,) float32, the sample counts that the clients report: the sizes of their clean partitions.
    """

    clients: Tensor
    malicious: Tensor
    attackers: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.clients)


@dataclass(frozen=True)
class CohortSampler:
    """How clients are sampled in each round.

    The malicious clients are round(malicious_fraction * number of clients) numbers drawn once from the seed.

    Attributes:
        clients_per_round: N, sampled without replacement.
        malicious_fraction: share of all clients that is malicious, in [0, 1).
        participation: `fixed_share` puts malicious_fraction * N malicious clients into every round; where that is not whole,
            the number is rounded up or down at random so that it is right on average (1.5 of 15: one or two, equally likely).
            `random_pool` samples all clients alike, so the number varies (hypergeometric): with 20 of 100 malicious and
            N = 20 it exceeds five in about one round in six. `fixed_frequency` puts `attackers` malicious clients into every
            `every`-th round from `start_round` on, and none into the others. `single_shot` lets each malicious client take
            part once: the j-th one in round `rounds[j]`.
        start_round: the round from which malicious clients attack; before it they train like anyone else under `fixed_share`
            and `random_pool`, and stay away under `fixed_frequency`.
        every: rounds from one attack to the next under `fixed_frequency`, at least 1.
        attackers: malicious clients in an attacked round under `fixed_frequency`, at least 1.
        rounds: rounds of the attack under `single_shot`, counted from 0; a round may be named more than once.
    """

    clients_per_round: int = 20
    malicious_fraction: float = 0.2
    participation: Participation = "fixed_share"
    start_round: int = 0
    every: int = 10
    attackers: int = 1
    rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            name: whole(f"model.cohort.{name}", getattr(self, name)) for name in ("start_round", "every", "attackers")
        }
        given |= {"clients_per_round": whole("model.cohort.clients_per_round", self.clients_per_round, 1)}
        given |= {"malicious_fraction": real("model.cohort.malicious_fraction", self.malicious_fraction)}
        if not isinstance(self.rounds, Iterable):
            raise ConfigurationError(f"model.cohort.rounds must be a list of whole numbers, got {self.rounds!r}")
        given |= {"rounds": tuple(whole("each of model.cohort.rounds", t) for t in self.rounds)}
        vars(self).update(given)  # frozen from here on
        if self.participation not in get_args(Participation):
            raise ConfigurationError(
                f"model.cohort.participation must be one of {', '.join(get_args(Participation))}, got {self.participation!r}"
            )
        if not 0 <= self.malicious_fraction < 1:
            raise ConfigurationError(f"model.cohort.malicious_fraction must lie in [0, 1), got {self.malicious_fraction}")
        if self.start_round < 0:
            raise ConfigurationError(f"model.cohort.start_round counts from 0, got {self.start_round}")
        for name, default in (("every", 10), ("attackers", 1)):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"model.cohort.{name} must be at least 1, got {value}")
            if value != default and self.participation != "fixed_frequency":
                raise ConfigurationError(f"model.cohort.{name} is for participation fixed_frequency, not {self.participation}")
        if bool(self.rounds) != (self.participation == "single_shot"):
            raise ConfigurationError(
                "model.cohort.rounds names the rounds of the attack under participation single_shot, and only there; got "
                f"{list(self.rounds)} with {self.participation}"
            )
        if any(t < self.start_round for t in self.rounds):
            raise ConfigurationError(
                f"model.cohort.rounds must not lie before start_round = {self.start_round}, got {list(self.rounds)}"
            )

    @property
    def malicious_per_round(self) -> int:
        """What rules that assume a number of malicious clients take it to be: round(malicious_fraction * N), and the most in a
        round where participation names the rounds."""
        if self.malicious_fraction and self.participation in ("fixed_frequency", "single_shot"):
            return self._malicious_bounds()[0]
        return round(self.malicious_fraction * self.clients_per_round)

    def check(self, num_clients: int) -> None:
        """Raise `ConfigurationError` unless every round can be filled from that many clients."""
        if self.clients_per_round > num_clients:
            raise ConfigurationError(
                f"model.cohort.clients_per_round = {self.clients_per_round}, but the data are dealt out to {num_clients} "
                "clients; lower it, or raise num_clients of data.partition"
            )
        if self.participation != "random_pool" and self.malicious_fraction:
            malicious = round(self.malicious_fraction * num_clients)
            most, least = self._malicious_bounds()
            if len(self.rounds) > malicious:
                raise ConfigurationError(
                    f"model.cohort.rounds names {len(self.rounds)} attacks, but malicious_fraction = {self.malicious_fraction} "
                    f"of {num_clients} clients makes {malicious} malicious ones, each of which attacks once; name fewer rounds"
                )
            if most > self.clients_per_round:
                raise ConfigurationError(
                    f"model.cohort puts {most} malicious clients into a round of {self.clients_per_round}; use fewer attackers"
                )
            if most > malicious or self.clients_per_round - least > num_clients - malicious:
                raise ConfigurationError(
                    f"model.cohort: rounds of {self.clients_per_round} clients need up to {most} malicious and "
                    f"{self.clients_per_round - least} benign ones, but malicious_fraction = {self.malicious_fraction} of "
                    f"{num_clients} clients makes {malicious} malicious and {num_clients - malicious} benign; change the "
                    "fraction, use more clients, or set participation to random_pool"
                )

    def _malicious_bounds(self) -> tuple[int, int]:
        """Most and least malicious clients in a round."""
        if self.participation == "fixed_frequency":
            return self.attackers, 0
        if self.participation == "single_shot":
            return max(self.rounds.count(t) for t in self.rounds), 0
        share = round(self.malicious_fraction * self.clients_per_round, 9)
        return -int(-share // 1), int(share // 1)

    def may_attack(self, round_number: int) -> bool:
        """Whether a malicious client may be active in a round, counted from 0, as far as settings alone tell.

        >>> [CohortSampler(start_round=2).may_attack(t) for t in (1, 2)]
        [False, True]
        """
        if not self.malicious_fraction or round_number < self.start_round:
            return False
        if self.participation == "fixed_frequency":
            return (round_number - self.start_round) % self.every == 0
        return self.participation != "single_shot" or round_number in self.rounds

    def malicious_clients(self, seed: int, num_clients: int) -> Tensor:
        """(number of malicious clients,) int64, their numbers, ascending; the same in every round."""
        order = torch.randperm(num_clients, generator=generator(seed, "malicious clients"))
        return order[: round(self.malicious_fraction * num_clients)].sort().values

    def draw(self, seed: int, round_number: int, sizes: Tensor) -> Cohort:
        """The cohort of a round.

        Args:
            seed: the experiment's seed.
            round_number: t, from 0.
            sizes: (number of clients,) int64, samples per client.
        """
        num_clients = len(sizes)
        draws = generator(seed, "cohort", round_number)
        everyone = torch.arange(num_clients)
        attackers = torch.full((num_clients,), -1)
        malicious = self.malicious_clients(seed, num_clients)
        attackers[malicious] = torch.arange(len(malicious))
        if self.participation == "random_pool":
            chosen = pick(everyone, self.clients_per_round, draws)
        else:
            chosen_malicious = self._pick_malicious(malicious, round_number, draws)
            count = self.clients_per_round - len(chosen_malicious)
            chosen = torch.cat([chosen_malicious, pick(everyone[attackers < 0], count, draws)])
        clients = chosen.sort().values
        if round_number < self.start_round:
            attackers[:] = -1
        return Cohort(
            clients=clients,
            malicious=attackers[clients] >= 0,
            attackers=attackers[clients],
            weights=sizes[clients].float(),
        )

    def _pick_malicious(self, malicious: Tensor, round_number: int, draws: torch.Generator) -> Tensor:
        """The malicious clients of a round in which their number is given."""
        if self.participation == "fixed_share":
            most, least = self._malicious_bounds()
            share = round(self.malicious_fraction * self.clients_per_round, 9)
            return pick(malicious, most if torch.rand((), generator=draws).item() < share - least else least, draws)
        if self.participation == "single_shot":
            return malicious[[j for j, t in enumerate(self.rounds) if t == round_number and j < len(malicious)]]
        since = round_number - self.start_round
        return pick(malicious, self.attackers if since >= 0 and since % self.every == 0 else 0, draws)


def pick(candidates: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """`count` of the candidates ((m,) int64), without replacement."""
    return candidates[torch.randperm(len(candidates), generator=draws)[:count]]


def assign_owners(sizes: Tensor, world: int) -> Tensor:
    """Which rank trains each client: the largest first, each to the rank with the fewest samples so far.

    Args:
        sizes: (N,) int64, samples per client.
        world: W.

    Returns:
        (N,) int64, ranks; ties go to the lower client and the lower rank. Ranks without a client are possible.
    """
    owner, load = [0] * len(sizes), [0] * world
    samples = sizes.tolist()
    for i in sorted(range(len(samples)), key=lambda i: -samples[i]):  # a stable sort
        owner[i] = min(range(world), key=lambda r: (load[r], r))
        load[owner[i]] += samples[i]
    return torch.tensor(owner, dtype=torch.int64)
