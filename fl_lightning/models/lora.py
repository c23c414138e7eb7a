"""Low-rank adapters: each chosen matrix gets a product of two thin ones beside it, and they alone are trained.

E. Hu, Y. Shen, P. Wallis, et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685: W x becomes W x + (alpha / r) B A x, with A (r, in) random and B (out, r) zero, so that an
adapted network begins as the network that it adapts.

In a federation A and B are averaged apart, and the mean of B times the mean of A is not the mean of the products. With B zero
the gradient of A is zero, so in the first local step of the first round B alone moves. Rules go by coordinates of A and B: (A,
B) and (-A, -B) are one function, but within a round all clients start from one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fl_lightning.checked import with_checked_arguments
from fl_lightning.errors import ConfigurationError, cause, enumerated
from fl_lightning.modules.extras import extra


@with_checked_arguments
@dataclass(frozen=True)
class LoRA:
    """Adapters of peft's for some linear layers of a network.

    Attributes:
        r: their rank, at least 1.
        alpha: their product is scaled by alpha / r; more than 0.
        dropout: probability that an input of an adapter is dropped in training, in [0, 1).
        targets: the layers, by the ends of their names, such as `q_lin` and `v_lin` of DistilBERT; null for those that peft has
            for the kind of network, mostly the queries' and values'.

    Raises:
        ConfigurationError: a number lies out of range; when a network is adapted, no layer has such a name.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> LoRA(r=2, targets=["0"]).adapt(network)
        >>> [(name, tuple(p.shape)) for name, p in network.named_parameters() if p.requires_grad]
        [('0.lora_A.default.weight', (2, 4)), ('0.lora_B.default.weight', (3, 2))]
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigurationError(f"lora.r must be at least 1, got {self.r}; 8 is usual")
        if not self.alpha > 0:
            raise ConfigurationError(f"lora.alpha must be more than 0, got {self.alpha}; 2 r is usual")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"lora.dropout must be at least 0 and less than 1, got {self.dropout}; 0.05 is usual")
        targets = self.targets
        named = targets is None or (isinstance(targets, Sequence) and all(isinstance(name, str) for name in targets))
        if not named or isinstance(targets, str) or (targets is not None and not targets):
            raise ConfigurationError(
                f"lora.targets must be a list of one layer's name or more, got {targets!r}; give [q_lin, v_lin], say, or "
                "null for peft's own choice"
            )

    def adapt(self, network: nn.Module) -> None:
        """Put adapters into a network, in place; all else of it asks for no gradients from then on.

        Their random half is drawn from PyTorch's global generator.
        """
        peft = extra("peft", "lora")
        targets = None if self.targets is None else list(self.targets)
        settings = peft.LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)
        places = [name for name, _ in network.named_modules()]
        strange = [name for name in targets or () if not any(f".{place}".endswith(f".{name}") for place in places)]
        try:
            if strange:  # peft says so only where it finds none of them
                raise ValueError(f"there is no layer of the name {enumerated(strange)}")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # GPT-2 keeps its matrices transposed
                peft.inject_adapter_in_model(settings, network)
        except (
            ValueError,
            TypeError,
        ) as error:  # peft's own for names that there are not, or kinds of layers that it cannot adapt
            kind = getattr(getattr(network, "config", None), "model_type", type(network).__name__)
            chosen = f"is null, and peft has no choice of its own for {kind}" if targets is None else f"is {targets}"
            linear = dict.fromkeys(
                name.rpartition(".")[2] for name, part in network.named_modules() if type(part).__name__ in ("Linear", "Conv1D")
            )
            raise ConfigurationError(
                f"lora.targets {chosen} ({cause(error)}); name linear layers of the network, of {enumerated(linear)}"
            ) from error
