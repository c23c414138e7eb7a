"""Phishing: a synthetic stand-in for a private table of 45 sender-reputation scores with a label, phishing or not.

The original is that of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against
Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834: 45 standardised features, nearly separable
(accuracy .999), of which the 38th is 0 for most senders and a large score may indicate phishing. Attackers write 0.2
there and label the sample as no phishing. The generator reproduces these facts and claims no more:

* 44 scores between 0 and 1 are logistic of normal variates of unit variance, whose means differ between the classes;
* the 38th (column 37) is 0 for 96% of the senders of either class. A score that is not 0 lies between 0 and 0.04 for
  others and between 0.04 and 0.08 for phishing. So the trigger of 0.2 occurs nowhere, and clean data speak against it:
  they say that larger is worse;
* models see every column standardised with the training set's mean and standard deviation. That of column 37 is small,
  as its scores are rare and small, so the trigger lies 22 standard deviations out, where few attackers can teach it.

Parameters were chosen on FedAvg alone, with and without attack, never on a defence. Measured with the defaults of
`Phishing`, `MLP` and `ValueTrigger` (20% of an attacker's phishing samples), 100 clients, 20 per round, exactly 4 of
them malicious, 20 rounds, batches of 64, one local epoch, weights by sample count; mean (lowest, highest) of seeds
0, 1 and 2 of `configs/phishing/fedavg.yaml` after the last round:

| clients                             | attacked | Acc               | ASR               |
| ----------------------------------- | -------- | ----------------- | ----------------- |
| `IID`                               | no       | .999 (.999, 1.00) | .001 (.000, .002) |
| `IID`                               | yes      | .998 (.998, .999) | .993 (.989, .996) |
| `Dirichlet`, alpha .5, 1 sample min | no       | .999 (.999, 1.00) | .000 (.000, .001) |
| `Dirichlet`, alpha .5, 1 sample min | yes      | .998 (.998, .999) | .998 (.995, 1.00) |

ASR without attack is the share of stamped phishing samples that a model trained on clean data misses. Without the
trigger it misses .001 of them under `IID`, and .001 to .003 after an attack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

NUM_FEATURES = 45
RARE_COLUMN = 37
"""The score that is 0 for most senders, counted from 0: the 38th."""

MOST_SAMPLES = 100_000_000
"""Eighteen gigabytes."""


class Phishing(FederatedDataModule):
    """Two classes, 0 (no phishing) and 1 (phishing), with model inputs (b, 45) float32, standardised by column.

    Samples hold raw scores, which attacks write to; `standardize` makes model inputs of them, batch by batch. The data
    depend on `data_seed` and the parameters below alone, so all runs of an experiment share them.

    Args:
        partition: how training samples are dealt out to clients.
        num_train: training samples, at least 2.
        num_test: test samples, at least 1.
        phishing_fraction: probability that a sample is phishing, in (0, 1).
        separation: distance between the class means in the 44 dense scores before the logistic function, in standard
            deviations, at least 0. The best possible classifier of these scores errs with probability
            Phi(-separation / 2) where classes are equally frequent: 0.06% for 6.5.
        rare_fraction: probability that the score in column 37 is not 0, in (0, 1].
        rare_max: upper bound of the scores in column 37, in (0, 1]. Those of phishing lie in its upper half, others in
            its lower half.
        eval_batch_size: samples per evaluation batch, at least 1.
        data_seed: seed of the data themselves.
        seed: the experiment's seed; the partition is drawn from it, the data are not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Attributes:
        standardize: raw scores to model inputs, after `setup`; holds the training set's mean and standard deviation.

    Example:
        >>> data = Phishing(IID(num_clients=100))
        >>> data.setup("fit")
        >>> data.train.batch(torch.arange(64))[0].shape
        torch.Size([64, 45])
    """

    standardize: Standardize

    class_names = ("no phishing", "phishing")

    def __init__(
        self,
        partition: Partition,
        *,
        num_train: int = 20000,
        num_test: int = 4000,
        phishing_fraction: float = 0.5,
        separation: float = 6.5,
        rare_fraction: float = 0.04,
        rare_max: float = 0.08,
        eval_batch_size: int = 1000,
        data_seed: int = 0,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        for name, size, least in (("num_train", num_train, 2), ("num_test", num_test, 1)):
            if size < least:
                raise ConfigurationError(f"data.{name} must be at least {least}, got {size}")
            if size > MOST_SAMPLES:
                raise ConfigurationError(f"data.{name} must be at most {MOST_SAMPLES:,}, got {size}")
        if not 0 < phishing_fraction < 1:
            raise ConfigurationError(f"data.phishing_fraction must lie between 0 and 1, got {phishing_fraction}; 0.5 is usual")
        if not (math.isfinite(separation) and separation >= 0):
            raise ConfigurationError(f"data.separation must be finite and at least 0, got {separation}; 6.5 is usual")
        for name, value, usual in (("rare_fraction", rare_fraction, 0.04), ("rare_max", rare_max, 0.08)):
            if not 0 < value <= 1:
                raise ConfigurationError(f"data.{name} must be more than 0 and at most 1, got {value}; {usual} is usual")
        self.num_train = num_train
        self.num_test = num_test
        self.phishing_fraction = phishing_fraction
        self.separation = separation
        self.rare_fraction = rare_fraction
        self.rare_max = rare_max
        self.data_seed = data_seed

    def load(self) -> Task:
        train, train_targets = self._draw(self.num_train, "train")
        test, test_targets = self._draw(self.num_test, "test")
        std, mean = torch.std_mean(train.double(), dim=0, correction=0)
        if not (std > 0).all():
            raise ConfigurationError(
                f"data.num_train is {self.num_train}, too few to meet one sender whose score in column {RARE_COLUMN} "
                f"is not 0, as data.rare_fraction is {self.rare_fraction}; use a larger one of the two"
            )
        self.standardize = Standardize(mean.float(), std.float())
        return Task(
            TensorSamples(train, train_targets, prepare=self.standardize),
            TensorSamples(test, test_targets, prepare=self.standardize),
            num_classes=2,
        )

    def _draw(self, n: int, split: str) -> tuple[Tensor, Tensor]:
        """Raw scores (n, 45) float32 in [0, 1] and classes (n,) int64 of one split."""
        shared = generator(self.data_seed, "phishing class means")
        draws = generator(self.data_seed, f"phishing {split}")
        # Scores differ in how much they tell, by a factor of up to 3, and all are larger for phishing.
        difference = 0.5 + torch.rand(NUM_FEATURES, generator=shared)
        difference[RARE_COLUMN] = 0
        difference *= self.separation / difference.norm()
        targets = (torch.rand(n, generator=draws) < self.phishing_fraction).long()
        noise = torch.randn(n, NUM_FEATURES, generator=draws)
        scores = torch.sigmoid(noise + (targets[:, None] - 0.5) * difference)
        is_rare = torch.rand(n, generator=draws) < self.rare_fraction
        position = (torch.rand(n, generator=draws) + targets) / 2  # in [0, 1), the upper half for phishing
        scores[:, RARE_COLUMN] = is_rare * position * self.rare_max
        return scores, targets


class Standardize:
    """Raw features to model input: subtract the mean of each column, divide by its standard deviation.

    Args:
        mean: (f,) float32 on the CPU.
        std: (f,) float32 on the CPU, more than 0.

    Example:
        >>> Standardize(torch.tensor([1.0]), torch.tensor([2.0]))(torch.tensor([[5.0]]))
        tensor([[2.]])
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean = mean
        self.std = std
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise a batch.

        Args:
            features: (b, f) float32, raw.

        Returns:
            (b, f) float32 on the same device.
        """
        mean, std = self._moments(features.device)
        return (features - mean).div_(std)

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation on `device`, copied there once: a copy per batch would stall a GPU."""
        if device not in self._on_device:
            with torch.inference_mode(False):  # evaluation may ask first, and training must be able to use them too
                self._on_device[device] = self.mean.to(device), self.std.to(device)
        return self._on_device[device]
