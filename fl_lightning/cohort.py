"""Who takes part in a round, who is malicious, and which rank trains whom.

A cohort is a pure function of (settings, seed, round, client sizes): every rank draws the same one without talking to the
others. Which rank trains whom is a second pure function, of sizes and the number of ranks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fl_lightning.checked import one_of, real, whole, with_checked_arguments
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

Participation = Literal["fixed_share", "random_pool", "fixed_frequency", "single_shot"]

After = Literal["benign", "absent"]

SELDOM = 10
"""Rounds from one attack to the next under `fixed_frequency` where no interval is given."""


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


@with_checked_arguments
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
            `interval`-th round from `start_round` on, and none into the others. `single_shot` lets each malicious client take
            part once: the j-th one in round `rounds[j]`.
        start_round: the first round of the attack, counted from 0; before it malicious clients train like anyone else under
            `fixed_share` and `random_pool`, and stay away under `fixed_frequency` and `single_shot`.
        interval: rounds from one attack to the next, at least 1: rounds `start_round`, `start_round + interval` and so on are
            attacked, and those between are as those before the attack. None is 1, and 10 under `fixed_frequency`.
        attackers: malicious clients in an attacked round under `fixed_frequency`, at least 1.
        rounds: rounds of the attack under `single_shot`, counted from 0; a round may be named more than once.
        end_round: the first round after the attack, more than `start_round`; None for an attack without an end.
        after: what becomes of malicious clients from `end_round` on. `benign`: cohorts are made up as they would be without an
            end, and malicious clients train in them like anyone else, on their clean data. `absent`: all N clients are sampled
            from the benign ones.

    A round without attackers is one of benign clients to everything else: nothing is poisoned or rewritten, no client counts
    as malicious, and attacks are not called. What belongs to benign clients' data (`EdgeCase(shared_fraction=...)`) stays.
    """

    clients_per_round: int = 20
    malicious_fraction: float = 0.2
    participation: Participation = "fixed_share"
    start_round: int = 0
    interval: int | None = None
    attackers: int = 1
    rounds: tuple[int, ...] = ()
    end_round: int | None = None
    after: After = "benign"

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            name: whole(f"model.cohort.{name}", getattr(self, name)) for name in ("start_round", "attackers")
        }
        for name in ("end_round", "interval"):
            given |= {name: None if (value := getattr(self, name)) is None else whole(f"model.cohort.{name}", value)}
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
        if self.attackers < 1:
            raise ConfigurationError(f"model.cohort.attackers must be at least 1, got {self.attackers}")
        if self.attackers != 1 and self.participation != "fixed_frequency":
            raise ConfigurationError(f"model.cohort.attackers is for participation fixed_frequency, not {self.participation}")
        self._check_window()

    def _check_window(self) -> None:
        """Raise `ConfigurationError` for an attack of no round, or in rounds that are not attacked."""
        start, end = self.start_round, self.end_round
        if start < 0:
            raise ConfigurationError(f"model.cohort.start_round counts from 0, got {start}")
        if end is not None and end <= start:
            raise ConfigurationError(
                f"model.cohort.end_round = {end} is the first round after the attack, which begins in start_round = {start}; "
                f"give at least {start + 1}, or null for an attack without an end"
            )
        if self.interval is not None and self.interval < 1:
            raise ConfigurationError(
                f"model.cohort.interval must be at least 1, got {self.interval}; 1 is an attack in every round"
            )
        if one_of("model.cohort.after", self.after, get_args(After)) != "benign" and end is None:
            raise ConfigurationError(
                f"model.cohort.after = {self.after} says what follows the attack, which has no end; give end_round too"
            )
        if bool(self.rounds) != (self.participation == "single_shot"):
            raise ConfigurationError(
                "model.cohort.rounds names the rounds of the attack under participation single_shot, and only there; got "
                f"{list(self.rounds)} with {self.participation}"
            )
        outside = [t for t in self.rounds if not self._in_window(t)]
        if outside:
            every = "" if self._gap == 1 else f", interval = {self._gap}"
            until = "" if end is None else f", end_round = {end}"
            raise ConfigurationError(
                f"model.cohort.rounds = {outside}: not in the attack's window, start_round = {start}{until}{every}; give "
                "rounds in it, or leave the window out"
            )

    def _in_window(self, t: int) -> bool:
        """Whether round t is one of those to attack in."""
        return t >= self.start_round and (t - self.start_round) % self._gap == 0 and not self._is_over(t)

    @property
    def _gap(self) -> int:
        """Rounds from one attack to the next."""
        return self.interval or (SELDOM if self.participation == "fixed_frequency" else 1)

    def _is_over(self, t: int) -> bool:
        return self.end_round is not None and t >= self.end_round

    @property
    def ends(self) -> bool:
        """Whether there is a round from which on nobody attacks."""
        return self.end_round is not None or self.participation == "single_shot" or not self.malicious_fraction

    def attacked_rounds(self, stop: int) -> Sequence[int]:
        """The rounds before `stop` in which malicious clients attack if there are any in the cohort, ascending.

        >>> list(CohortSampler(start_round=2, end_round=9, interval=3).attacked_rounds(100))
        [2, 5, 8]
        """
        if not self.malicious_fraction:
            return range(0)
        if self.participation == "single_shot":
            return sorted({t for t in self.rounds if t < stop})
        return range(self.start_round, stop if self.end_round is None else min(stop, self.end_round), self._gap)

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
        malicious = round(self.malicious_fraction * num_clients)
        if self.after == "absent" and self.clients_per_round > num_clients - malicious:
            raise ConfigurationError(
                f"model.cohort.after = absent: from round {self.end_round} on a round needs {self.clients_per_round} benign "
                f"clients, but malicious_fraction = {self.malicious_fraction} of {num_clients} leaves {num_clients - malicious}"
                "; use more clients, or after: benign"
            )
        if self.participation != "random_pool" and self.malicious_fraction:
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

    def malicious_clients(self, seed: int, num_clients: int) -> Tensor:
        """(number of malicious clients,) int64, their numbers, ascending; the same in every round."""
        return roles(round(self.malicious_fraction * num_clients), seed, num_clients)[0].clone()

    def draw(self, seed: int, round_number: int, sizes: Tensor) -> Cohort:
        """The cohort of a round.

        Args:
            seed: the experiment's seed.
            round_number: t, from 0.
            sizes: (number of clients,) int64, samples per client.
        """
        num_clients = len(sizes)
        draws = generator(seed, "cohort", round_number)
        malicious, benign = roles(round(self.malicious_fraction * num_clients), seed, num_clients)
        if self.after == "absent" and self._is_over(round_number):
            chosen = pick(benign, self.clients_per_round, draws)
        elif self.participation == "random_pool":
            chosen = pick(torch.arange(num_clients), self.clients_per_round, draws)
        else:
            chosen_malicious = self._pick_malicious(malicious, round_number, draws)
            count = self.clients_per_round - len(chosen_malicious)
            chosen = torch.cat([chosen_malicious, pick(benign, count, draws)])
        clients = chosen.sort().values
        attackers = places(clients, malicious) if self._in_window(round_number) else torch.full_like(clients, -1)
        return Cohort(clients=clients, malicious=attackers >= 0, attackers=attackers, weights=sizes[clients].float())

    def _pick_malicious(self, malicious: Tensor, round_number: int, draws: torch.Generator) -> Tensor:
        """The malicious clients of a round in which their number is given."""
        if self.participation == "fixed_share":
            most, least = self._malicious_bounds()
            share = round(self.malicious_fraction * self.clients_per_round, 9)
            return pick(malicious, most if torch.rand((), generator=draws).item() < share - least else least, draws)
        if self.participation == "single_shot":
            return malicious[[j for j, t in enumerate(self.rounds) if t == round_number and j < len(malicious)]]
        since = round_number - self.start_round  # also after the end, where they are benign
        return pick(malicious, self.attackers if since >= 0 and since % self._gap == 0 else 0, draws)


@lru_cache(maxsize=16)  # asked for in every round, and a tenth of one with 100,000 clients otherwise
def roles(num_malicious: int, seed: int, num_clients: int) -> tuple[Tensor, Tensor]:
    """The numbers of the malicious and of the benign clients, (m,) and (num_clients - m,) int64, ascending.

    Others have the same tensors: they are not to be written to.
    """
    chosen = torch.randperm(num_clients, generator=generator(seed, "malicious clients"))[:num_malicious]
    is_malicious = torch.zeros(num_clients, dtype=torch.bool).index_fill_(0, chosen, True)
    return torch.nonzero(is_malicious).flatten(), torch.nonzero(~is_malicious).flatten()


def places(clients: Tensor, among: Tensor) -> Tensor:
    """(N,) int64, where each of `clients` ((N,) int64) stands in `among` ((m,) int64, ascending); -1 for those that do not.

    >>> places(torch.tensor([3, 4, 9]), torch.tensor([1, 3, 7]))
    tensor([ 1, -1, -1])
    """
    if not len(among):
        return torch.full_like(clients, -1)
    place = torch.searchsorted(among, clients).clamp_(max=len(among) - 1)
    return torch.where(among[place] == clients, place, -1)


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
