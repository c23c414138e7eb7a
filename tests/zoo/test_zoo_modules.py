"""Networks and LightningModules of other packages as clients: each trains as a loop without a federation, or is refused.

Run by `make zoo`. `docs/reference/zoo.md` lists what came out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import Wrapped, needed, outcome
from torch import Tensor, nn

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "zoo.md"

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 3}


def transformers(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        package = needed("transformers")
        config = getattr(package, name.partition("For")[0].removesuffix("Model") + "Config")(**settings)
        return Wrapped(getattr(package, name)(config))

    return make


class Pooled(nn.Module):
    """A network over sequences, averaged over time, and a layer for the classes."""

    def __init__(self, net: nn.Module, width: int, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.net, self.head = embed or nn.Identity(), net, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(self.embed(x)).mean(1))


def x_transformers() -> Any:
    package = needed("x_transformers")
    layers = package.Encoder(dim=16, depth=1, heads=2)
    return Wrapped(Pooled(package.ContinuousTransformerWrapper(dim_in=6, dim_out=8, max_seq_len=8, attn_layers=layers), 8))


def linformer() -> Any:
    net = needed("linformer").Linformer(dim=8, seq_len=8, depth=1, heads=2, k=4)
    return Wrapped(Pooled(net, 8, nn.Embedding(20, 8)))


def reformer() -> Any:
    net = needed("reformer_pytorch").Reformer(dim=8, depth=1, heads=2, bucket_size=4, n_hashes=1)
    return Wrapped(Pooled(net, 8, nn.Embedding(20, 8)))


def mambapy() -> Any:
    package = needed("mambapy.mamba")
    return Wrapped(Pooled(package.Mamba(package.MambaConfig(d_model=6, n_layers=1)), 6))


def tcn() -> Any:
    net = needed("pytorch_tcn").TCN(num_inputs=6, num_channels=[8, 8], kernel_size=3)
    return Wrapped(net, lambda net, x: net(x.transpose(1, 2))[:, :3, -1])


def perceiver() -> Any:
    return Wrapped(
        needed("perceiver_pytorch").Perceiver(
            input_channels=6,
            input_axis=1,
            num_freq_bands=2,
            max_freq=4.0,
            depth=1,
            num_latents=4,
            latent_dim=8,
            num_classes=3,
            latent_heads=2,
        )
    )


def closed_form(first: bool) -> Callable[[], Any]:
    def make() -> Any:
        net = needed("ncps.torch").CfC(6, 8, proj_size=3, return_sequences=False)
        return Wrapped(net, (lambda net, x: net(x)[0]) if first else None)

    return make


def liquid() -> Any:
    wiring = needed("ncps.wirings").AutoNCP(8, 3, seed=0)
    return Wrapped(needed("ncps.torch").LTC(6, wiring, return_sequences=False), lambda net, x: net(x)[0])


def mixer() -> Any:
    return Wrapped(
        needed("mlp_mixer_pytorch").MLPMixer(
            image_size=32, channels=3, patch_size=8, dim=16, depth=1, num_classes=10, dropout=0.1
        )
    )


def gmlp() -> Any:
    return Wrapped(needed("g_mlp_pytorch").gMLPVision(image_size=32, patch_size=8, num_classes=10, dim=16, depth=2))


def efficientnet() -> Any:
    return Wrapped(needed("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b0", num_classes=10, image_size=32))


def resnet() -> Any:
    return Wrapped(needed("resnet_pytorch").ResNet.from_name("resnet18", {"num_classes": 10}))


def rtdl(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: Wrapped(getattr(needed("rtdl_revisiting_models"), name)(**settings))


def ft_transformer() -> Any:
    package = needed("rtdl_revisiting_models").FTTransformer
    settings = {**package.get_default_kwargs(n_blocks=1), "d_block": 8, "attention_n_heads": 2}
    return Wrapped(package(n_cont_features=6, cat_cardinalities=[], d_out=3, **settings), lambda net, x: net(x, None))


def tab_transformer() -> Any:
    net = needed("tab_transformer_pytorch").FTTransformer(
        categories=(), num_continuous=6, dim=8, depth=1, heads=2, dim_head=4, dim_out=3
    )
    return Wrapped(net, lambda net, x: net(x.new_zeros(len(x), 0).long(), x))


def tabm(average: bool) -> Callable[[], Any]:
    def make() -> Any:
        net = needed("tabm").TabM.make(n_num_features=6, d_out=3, k=4, d_block=16, n_blocks=1)
        return Wrapped(net, (lambda net, x: net(x).mean(1)) if average else None)

    return make


def tabnet() -> Any:
    network = needed("pytorch_tabnet.tab_network").TabNet
    return Wrapped(network(6, 3, n_d=4, n_a=4, n_steps=2, virtual_batch_size=4, group_attention_matrix=torch.eye(6)))


class Spiking(nn.Module):
    def __init__(self, package: Any) -> None:
        super().__init__()
        self.first, self.leaky, self.last = nn.Linear(6, 16), package.Leaky(beta=0.9), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory, total = self.leaky.reset_mem(), x.new_zeros(len(x), 3)
        for _ in range(4):
            spikes, memory = self.leaky(self.first(x), memory)
            total = total + self.last(spikes)
        return total


def spiking() -> Any:
    return Wrapped(Spiking(needed("snntorch")))


def kan() -> Any:
    return Wrapped(needed("kan").KAN(width=[6, 4, 3], grid=3, k=3, seed=0, auto_save=False, symbolic_enabled=False))


def graph_network() -> Any:
    package = needed("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = package.DenseGCNConv(1, 8), package.MLP([48, 8, 3], dropout=0.1)
            self.register_buffer("edges", torch.ones(1, 6, 6).tril())

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x[..., None], self.edges).relu().flatten(1))

    return Wrapped(Net())


def entmax() -> Any:
    package = needed("entmax")
    return Wrapped(nn.Sequential(nn.Linear(6, 8), package.Entmax15(dim=1), nn.Linear(8, 3)))


def deepfm() -> Any:
    inputs, models = needed("deepctr_torch.inputs"), needed("deepctr_torch.models")
    columns = [inputs.DenseFeat(f"x{i}", 1) for i in range(6)]
    return Wrapped(models.DeepFM(columns, columns, dnn_hidden_units=(8,), task="binary"))


def scarf() -> Any:
    modules, config = needed("ts3l.pl_modules"), needed("ts3l.utils.scarf_utils")
    embedding = needed("ts3l.utils.embedding_utils").IdentityEmbeddingConfig(input_dim=6)
    backbone = needed("ts3l.utils.backbone_utils").MLPBackboneConfig(input_dim=6, hidden_dims=8, output_dim=8)
    module = modules.SCARFLightning(
        config.SCARFConfig(
            task="classification",
            loss_fn="CrossEntropyLoss",
            metric="accuracy_score",
            embedding_config=embedding,
            backbone_config=backbone,
            output_dim=3,
        )
    )
    module.set_second_phase()
    return module


def fingerprints() -> Any:
    """Several labels may be right for it: classes become rows of zeros and ones."""
    module = needed("torch_np_classifier.models.lightning_module").NPClassifierLightning

    class OneOfThree(module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0], nn.functional.one_hot(batch[1], 3).float()), batch_idx)

    return OneOfThree(num_categories=3)


BERT = {"vocab_size": 20, "max_position_embeddings": 8, **TINY}
VISION = {"image_size": 32, "patch_size": 8, **TINY, "num_labels": 10}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 10}

ZOO: dict[str, tuple[Callable[[], Any], str, str]] = {
    "transformers BertForSequenceClassification": (
        transformers("BertForSequenceClassification", **BERT),
        "tokens",
        "works",
    ),
    "transformers RobertaForSequenceClassification": (
        transformers("RobertaForSequenceClassification", vocab_size=20, max_position_embeddings=16, pad_token_id=0, **TINY),
        "tokens",
        "works",
    ),
    "transformers GPT2ForSequenceClassification": (
        transformers(
            "GPT2ForSequenceClassification",
            vocab_size=20,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            num_labels=3,
            pad_token_id=0,
        ),
        "tokens",
        "works",
    ),
    "transformers ViTForImageClassification": (transformers("ViTForImageClassification", **VISION), "pictures", "works"),
    "transformers ResNetForImageClassification": (transformers("ResNetForImageClassification", **RESNET), "pictures", "works"),
    "transformers BertModel": (
        transformers("BertModel", **BERT),
        "tokens",
        r"last_hidden_state: shape \(2, 8, 8\), pooler_output: shape \(2, 8\), in which any of several tensors",
    ),
    "transformers BertForMaskedLM": (
        transformers("BertForMaskedLM", **BERT),
        "tokens",
        r"gives an output of shape \(2, 8, 20\) for 2 samples, but the task has 3 classes",
    ),
    "x-transformers ContinuousTransformerWrapper": (x_transformers, "series", "works"),
    "linformer Linformer": (linformer, "tokens", "works"),
    "reformer-pytorch Reformer": (reformer, "tokens", "works"),
    "mambapy Mamba": (mambapy, "series", "works"),
    "pytorch-tcn TCN": (tcn, "series", "works"),
    "perceiver-pytorch Perceiver": (perceiver, "series", "works"),
    "ncps CfC": (closed_form(first=True), "series", "works"),
    "ncps CfC, with its state": (
        closed_form(first=False),
        "series",
        r"returns a tuple of 0: shape \(2, 3\), 1: shape \(2, 8\), in which any of several tensors could be the logits",
    ),
    "ncps LTC": (liquid, "series", "works"),
    "mlp-mixer-pytorch MLPMixer": (mixer, "pictures", "works"),
    "g-mlp-pytorch gMLPVision": (gmlp, "pictures", "works"),
    "efficientnet-pytorch EfficientNet": (efficientnet, "pictures", "works"),
    "resnet-pytorch ResNet": (resnet, "pictures", "works"),
    "rtdl-revisiting-models MLP": (rtdl("MLP", d_in=6, d_out=3, n_blocks=1, d_block=16, dropout=0.1), "rows", "works"),
    "rtdl-revisiting-models ResNet": (
        rtdl(
            "ResNet", d_in=6, d_out=3, n_blocks=1, d_block=8, d_hidden=None, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.1
        ),
        "rows",
        "works",
    ),
    "rtdl-revisiting-models FTTransformer": (ft_transformer, "rows", "works"),
    "tab-transformer-pytorch FTTransformer": (tab_transformer, "rows", "works"),
    "tabm TabM": (tabm(average=False), "rows", r"gives an output of shape \(2, 4, 3\) for 2 samples"),
    "tabm TabM, averaged": (tabm(average=True), "rows", "works"),
    "pytorch-tabnet TabNet": (tabnet, "rows", "works"),
    "snntorch Leaky": (spiking, "rows", "works"),
    "pykan KAN": (kan, "rows", "works"),
    "torch-geometric DenseGCNConv, MLP": (graph_network, "rows", "works"),
    "entmax Entmax15": (entmax, "rows", "works"),
    "deepctr-torch DeepFM": (deepfm, "pairs", "gives one output after a sigmoid"),
    "ts3l SCARFLightning": (scarf, "rows", "works"),
    "torch-np-classifier NPClassifierLightning": (fingerprints, "fingerprints", "works"),
}
"""What is made, the kind of its inputs, and what becomes of it: `works`, or what its refusal says."""


@pytest.mark.parametrize("name", ZOO)
def test_works_as_by_hand_or_is_refused(name):
    make, kind, expected = ZOO[name]
    found = outcome(make, kind)
    assert re.search(expected, found), found


def test_the_page_lists_every_one():
    page = PAGE.read_text()
    assert [name for name in ZOO if f"| {name} |" not in page] == []
