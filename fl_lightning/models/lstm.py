"""The LSTM of the Twitter task: two layers of 200 units over word vectors, 643,200 parameters and a head.

S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997. X. Wang, D. Dimitriadis, S. Koyejo,
S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024,
https://arxiv.org/abs/2210.01834, Table 3 (Adam with learning rate 0.0001). The size is that of H. Wang et al., "Attack of the
Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084.

Differs from the latter: its authors train the vectors of words too, and drop out half of the units (`dropout` 0.5).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier


class LSTM(Classifier):
    """Reads a text of word vectors and classifies it by the last layer's state at the last word.

    Texts are padded on the right. As a state depends on what came before alone, whatever stands behind the last word does not
    matter; an empty text is read as one vector of zeros.

    Args:
        dimension: numbers per word, at least 1; `glove.dimension` of the data.
        hidden: units per layer, at least 1.
        num_layers: LSTM layers, at least 1.
        dropout: probability that an output of a layer is dropped in training, in [0, 1); before the head as well.
        num_logits: outputs of the head: one per class, or 1 for two classes split at 0, trained by binary cross entropy.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = LSTM()
        >>> sum(p.numel() for p in model.layers.parameters()), sum(p.numel() for p in model.head.parameters())
        (643200, 402)
        >>> model(torch.zeros(3, 32, 201)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        *,
        dimension: int = 200,
        hidden: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        num_logits: int = 2,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (
            ("dimension", dimension),
            ("hidden", hidden),
            ("num_layers", num_layers),
            ("num_logits", num_logits),
        ):
            if value < 1:
                raise ConfigurationError(f"LSTM.{name} must be at least 1, got {value}")
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"LSTM.dropout must be at least 0 and less than 1, got {dropout}; 0 is none, 0.5 is usual")
        self.dimension = dimension
        # One module per layer, as dropout inside cuDNN's LSTM draws from a state of its own, which no seed resets.
        self.layers = nn.ModuleList(
            nn.LSTM(before, after, batch_first=True) for before, after in pairwise([dimension] + [hidden] * num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of texts.

        Args:
            inputs: (b, L, dimension + 1) float32, L at least 1. The last entry of a word's vector is 1, that of padding 0.

        Returns:
            (b, num_logits) logits.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.dimension + 1:
            raise ConfigurationError(
                f"LSTM.dimension is {self.dimension}, so a text has the shape (words, {self.dimension + 1}), but the data's "
                f"are {tuple(inputs.shape[1:])}; give LSTM.dimension and data.glove.dimension the same value"
            )
        states, is_word = inputs[..., :-1], inputs[..., -1]
        for i, layer in enumerate(self.layers):
            states, _ = layer(self.dropout(states) if i else states)
        # Padding is read too and thrown away: to leave it out, lengths would have to be known on the CPU, and a GPU would wait.
        last = (is_word.sum(1).long() - 1).clamp(min=0)
        return self.head(self.dropout(states[torch.arange(len(last), device=last.device), last]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy of one batch, binary for a single logit: see `Classifier`."""
        if self.head.out_features > 1:
            return super().training_step(batch, batch_idx)
        inputs, targets = batch
        loss = F.binary_cross_entropy_with_logits(self(inputs).squeeze(1), targets.float())
        self.log("loss", loss)
        return loss
