"""LSTMs over symbols or words that learn their own vectors: the next character, the next word.

`CharLSTM` is the network of the Shakespeare task in H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, and of S. Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295. `WordLSTM` is that of the Reddit task in E. Bagdasaryan, A. Veit,
Y. Hua, D. Estrin, V. Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, https://arxiv.org/abs/1807.00459, with
output weights tied to the words' vectors as by O. Press, L. Wolf, "Using the Output Embedding to Improve Language Models",
EACL 2017, https://arxiv.org/abs/1608.05859.

Differs from networks of other libraries: an LSTM layer of PyTorch has two biases of 4 h numbers, where one would do. Steps are
not recorded: on CPUs PyTorch's LSTM keeps a workspace for its backward pass that a recording does not hold.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.checked import whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import IGNORED, Classifier

WIDTH = 0.1
"""Vectors of tied words begin uniform in [-.1, .1]: as output weights, those of PyTorch's default would be far too large."""


class TokenLSTM(Classifier):
    """Embedding, LSTM layers, dense layer; a subclass gives sizes their names.

    Texts are padded on the right. As a state depends on what came before alone, whatever stands behind the end does not matter.

    Args:
        num_tokens: V, how many there are, at least 1; also the number of classes.
        dimension: of a token's vector, at least 1.
        hidden: units per layer, at least 1.
        num_layers: at least 1.
        dropout: probability in [0, 1) that a number is dropped in training: of vectors, between layers, before the dense layer.
        tied: whether the dense layer's weights are the tokens' vectors; then `dimension` and `hidden` must be equal.
        every_position: whether there are logits at every position, (b, L, V), or at the last alone, (b, V).
        padding: the target that counts for nothing.
        optimizer: makes the optimizer from the parameters, anew for every client and round.
    """

    def __init__(
        self,
        num_tokens: int,
        dimension: int,
        hidden: int,
        num_layers: int,
        dropout: float,
        tied: bool,
        every_position: bool,
        padding: int,
        optimizer: OptimizerCallable,
    ) -> None:
        super().__init__(optimizer=optimizer)
        name = type(self).__name__
        for setting, value in (("dimension", dimension), ("hidden", hidden), ("num_layers", num_layers)):
            if value < 1:
                raise ConfigurationError(f"{name}.{setting} must be at least 1, got {value}")
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"{name}.dropout must be at least 0 and less than 1, got {dropout}; 0 is none")
        if tied and dimension != hidden:
            raise ConfigurationError(
                f"{name}.tied needs words' vectors as wide as a layer, but dimension is {dimension} and hidden {hidden}; make "
                "them equal, or set tied to false"
            )
        self.every_position, self.padding = every_position, padding
        self.embedding = nn.Embedding(num_tokens, dimension)
        # One module per layer, as dropout inside cuDNN's LSTM draws from a state of its own, which no seed resets.
        self.layers = nn.ModuleList(
            nn.LSTM(before, after, batch_first=True) for before, after in pairwise([dimension] + [hidden] * num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_tokens)
        if tied:
            nn.init.uniform_(self.embedding.weight, -WIDTH, WIDTH)
            nn.init.zeros_(self.head.bias)
            self.head.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of what comes next.

        Args:
            inputs: (b, L) int64 tokens in [0, V), L at least 1.

        Returns:
            (b, L, V) logits, or (b, V) of the last position alone.
        """
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise ConfigurationError(
                f"{type(self).__name__} reads tokens as whole numbers, (b, L), but the data's inputs are {inputs.dtype} of "
                f"shape {tuple(inputs.shape)}; use a task such as Shakespeare or NextWord, or another network"
            )
        states = self.dropout(self.embedding(inputs))
        for layer in self.layers:
            states, _ = layer(states)
            states = self.dropout(states)
        return self.head(states if self.every_position else states[:, -1])


class CharLSTM(TokenLSTM):
    """The next character: vectors of 8 numbers, two layers of 256 units, 819,920 parameters for 80 symbols.

    817,872 where a layer has one bias, as in TensorFlow, and 2,048 for PyTorch's second ones.

    Args:
        num_symbols: V, at least 1; 81 for `Shakespeare`, whose last stands for all other characters.
        dimension: of a symbol's vector, at least 1.
        hidden: units per layer, at least 1.
        num_layers: at least 1.
        dropout: probability in [0, 1) that a number is dropped in training.
        every_position: whether the next character is predicted at every position, as `Shakespeare` may ask for, or once.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = CharLSTM(num_symbols=80)
        >>> sum(p.numel() for p in model.parameters())
        819920
        >>> model(torch.zeros(3, 80, dtype=torch.int64)).shape
        torch.Size([3, 80])
    """

    def __init__(
        self,
        *,
        num_symbols: int = 81,
        dimension: int = 8,
        hidden: int = 256,
        num_layers: int = 2,
        dropout: float = 0.0,
        every_position: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.8),
    ) -> None:
        num_symbols = whole("CharLSTM.num_symbols", num_symbols, 1)
        super().__init__(num_symbols, dimension, hidden, num_layers, dropout, False, every_position, IGNORED, optimizer)


class WordLSTM(TokenLSTM):
    """The next word at every position: tied vectors of 200 numbers, two layers of 200 units.

    With V words 200 V + V numbers for vectors and output biases, and 643,200 for the layers. Targets 0, which is padding, count
    for nothing.

    Args:
        num_words: V, at least 1; `data.num_words` + 2 for `NextWord`, whose first two are padding and unknown words.
        dimension: of a word's vector, at least 1.
        hidden: units per layer, at least 1.
        num_layers: at least 1.
        dropout: probability in [0, 1) that a number is dropped in training: of vectors, between layers, before the output.
        tied: whether output weights are the words' vectors.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = WordLSTM(num_words=1002)
        >>> sum(p.numel() for p in model.parameters())
        844602
        >>> model(torch.zeros(3, 20, dtype=torch.int64)).shape
        torch.Size([3, 20, 1002])
    """

    def __init__(
        self,
        *,
        num_words: int = 10_002,
        dimension: int = 200,
        hidden: int = 200,
        num_layers: int = 2,
        dropout: float = 0.2,
        tied: bool = True,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=20.0),
    ) -> None:
        num_words = whole("WordLSTM.num_words", num_words, 1)
        super().__init__(num_words, dimension, hidden, num_layers, dropout, tied, True, 0, optimizer)
