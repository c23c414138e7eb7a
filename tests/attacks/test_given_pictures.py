"""Attacks on pictures work on any data set that yields them, and alike however it is read."""

from typing import Any

import datasets
import lightning as L
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from fl_lightning import CohortSampler, ConfigurationError, FederatedDataModule, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import A3FL, DBA, IBA, Attack, Attacker, EdgeCase, PixelTrigger
from fl_lightning.data import IID, EdgePool, MapSamples, Samples, TensorSamples, join

N = 40
PIXELS = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = PIXELS / 255
Y = torch.arange(N) % 4


class Pool(EdgePool):
    label = 1

    def train(self) -> Samples:
        return TensorSamples(IMAGES[:8], torch.ones(8))

    def test(self) -> Samples:
        return TensorSamples(IMAGES[8:12], torch.ones(4))


class Made(Dataset):
    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def picture(index: int) -> Image.Image:
    return Image.fromarray(PIXELS[index].permute(1, 2, 0).numpy())


def table() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": [picture(i) for i in range(N)], "label": Y.tolist()}, features=features)


def stacked(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


PLAIN = TensorDataset(IMAGES, Y)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tensors": (PLAIN, {}),
    "pairs": (Made(lambda i: (IMAGES[i], int(Y[i]))), {}),
    "pairs, marked": (Made(lambda i: (IMAGES[i].numpy(), Y[i])), {"images": True}),
    "read one by one": (Made(lambda i: (IMAGES[i], int(Y[i]))), {"images": False}),
    "PIL": (Made(lambda i: (picture(i), int(Y[i]))), {}),
    "mappings": (Made(lambda i: {"image": IMAGES[i], "label": Y[i]}), {}),
    "Hugging Face": (table(), {}),
    "joined by the user": (Made(lambda i: (IMAGES[i], int(Y[i]))), {"collate_fn": stacked}),
    "drawing": (Made(lambda i: (IMAGES[i] + 0 * torch.rand(1), int(Y[i]))), {}),
}
ATTACKS = {
    "PixelTrigger": lambda: PixelTrigger(target_label=0),
    "DBA": lambda: DBA(strip_length=2, gap=1, target_label=0),
    "A3FL": lambda: A3FL(target_label=0, trigger_epochs=2, adversarial_epochs=1, height=3, width=3),
    "IBA": lambda: IBA(target_label=0, generator_epochs=1, width=2, start_asr=0.0),
    "EdgeCase": lambda: EdgeCase(pool=Pool(), target_label=0, num_edge=4, num_clean=8),
    "EdgeCase, batches": lambda: EdgeCase(pool=Pool(), target_label=0, num_edge=4, mix="batch", edge_fraction=0.5),
}


def inputs_of(batch: Any) -> torch.Tensor:
    return batch["image"] if isinstance(batch, dict) else batch[0]


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        targets = batch["label"] if isinstance(batch, dict) else batch[1]
        return nn.functional.cross_entropy(self(inputs_of(batch)), targets)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(inputs_of(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def weights(kind: str, attack: Attack) -> tuple[torch.Tensor, dict[str, int]]:
    """The global weights after two attacked rounds, and how many samples evaluation sets have."""
    dataset, settings = KINDS[kind]
    data = FederatedDataModule.from_datasets(dataset, dataset, partition=IID(num_clients=4), **settings)
    torch.manual_seed(0)
    federation = tiny.tiny_federation(
        client=Net(),
        aggregator=FedAvg(),
        attacks=[attack],
        cohort=CohortSampler(clients_per_round=4, malicious_fraction=0.5),
        local=LocalTraining(batch_size=4),
    )
    tiny.fit(federation, data, rounds=2)
    found = torch.cat([p.detach().flatten() for p in federation.client.parameters()])
    return found, {name: len(samples) for name, samples in data.evaluation.items()}


@pytest.mark.parametrize("attack", ATTACKS)
def test_weights_do_not_depend_on_how_pictures_are_read(attack):
    expected, sizes = weights("tensors", ATTACKS[attack]())
    assert len(sizes) >= 2
    for kind in KINDS:
        if kind == "drawing" and attack in ("A3FL", "IBA"):
            continue
        found, same = weights(kind, ATTACKS[attack]())
        # A network makes IBA's trigger, on batches of another make-up: of about a hundred sums each, so wrong by 100 roundings
        # of numbers up to 1 at most, which 20 steps at a rate of .1 take over.
        slack = 20 * 0.1 * 100 * 2**-24 if attack == "IBA" else 0.0
        assert (found - expected).abs().max() <= slack, kind
        assert same == sizes


def test_a_pattern_is_not_tuned_on_pictures_that_change():
    with pytest.raises(ConfigurationError, match=r"transformed at random .* but A3FL tunes .*its argument augment="):
        weights("drawing", ATTACKS["A3FL"]())


def test_triggers_are_written_after_random_transforms():
    noisy = MapSamples(Made(lambda i: (torch.rand(3, 8, 8) / 2, int(Y[i]))))
    attack = PixelTrigger(target_label=0, poison_fraction=0.5, value=1.0)
    poisoned = attack.poison(noisy, Attacker(client=0, seed=0, pool=noisy))
    for _ in range(2):
        images, targets = poisoned.batch(torch.arange(N))
        carries = (images[:, :, :3, :3] == 1).all(dim=(1, 2, 3))
        assert int(carries.sum()) == N // 2
        assert (images[~carries] < 0.5).all()
        assert (targets[carries] == 0).all()
    both = join([poisoned, TensorSamples(torch.zeros(2, 3, 8, 8), torch.tensor([1, 2]))])
    assert int((both.batch(torch.arange(N + 2))[0][:, :, :3, :3] == 1).all(dim=(1, 2, 3)).sum()) == N // 2


def test_stamps_on_lazily_read_samples_follow_them():
    data = MapSamples(Made(lambda i: (torch.full((1, 1, 1), float(i)), int(Y[i]))))
    marked = data.stamped(lambda x: x + 100, torch.arange(N) < 2).stamped(lambda x: x * 2, torch.arange(N) == 1)
    part = marked.subset(torch.tensor([5, 1, 0])).relabel(torch.tensor([3, 3, 3]))
    assert part.batch(torch.arange(3))[0].flatten().tolist() == [5, 202, 100]
    assert part.batch(torch.arange(3))[1].tolist() == [3, 3, 3]
    assert data.batch(torch.arange(2))[0].flatten().tolist() == [0, 1]
    raw = part.raw(torch.arange(3))
    assert raw is not None
    assert raw.flatten().tolist() == [5, 1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: (IMAGES[i, :, :2, :2], 0), "PixelTrigger paints rows 0 to 2"),
        (lambda i: (IMAGES[i, 0], 0), r"needs raw images .* got torch\.float32 inputs of shape \(40, 8, 8\)"),
        (lambda i: ((IMAGES[i], IMAGES[i]), 0), "got MapSamples without one tensor per sample"),
        (lambda i: {"a": IMAGES[i], "b": IMAGES[i], "label": 0}, "got MapSamples without one tensor per sample"),
        (lambda i: {"text": "a", "label": 0}, "got MapSamples without one tensor per sample"),
    ],
)
def test_what_are_no_pictures_is_refused(make, message):
    data = FederatedDataModule.from_datasets(Made(make), Made(make), partition=IID(num_clients=4))
    data.setup("fit")
    with pytest.raises(ConfigurationError, match=message):
        PixelTrigger(target_label=1).stamp(data.evaluation["clean"])


@pytest.mark.parametrize("images", [None, False])
@pytest.mark.parametrize("attack", ["PixelTrigger", "DBA", "A3FL"])
@pytest.mark.parametrize(
    "make",
    [
        lambda i: (IMAGES[i].permute(1, 2, 0).numpy(), 0),
        lambda i: (IMAGES[i].permute(1, 2, 0).contiguous(), 0),
        lambda i: (PIXELS[i].permute(1, 2, 0).numpy(), 0),
        lambda i: (IMAGES[i].permute(1, 2, 0).numpy()[..., :1], 0),
        lambda i: (np.concatenate([IMAGES[i], IMAGES[i, :1]]).transpose(1, 2, 0), 0),
        lambda i: {"image": IMAGES[i].permute(1, 2, 0), "label": 0},
    ],
)
def test_pictures_with_channels_in_last_place_are_refused(make, attack, images):
    data = FederatedDataModule.from_datasets(Made(make), Made(make), partition=IID(num_clients=4), images=images, num_classes=4)
    data.setup("fit")
    with pytest.raises(ConfigurationError, match=r"which reads as \(rows, columns, channels\); move the last axis") as refused:
        ATTACKS[attack]().stamp(data.evaluation["clean"])
    assert "\n" not in str(refused.value)


def test_a_pool_of_other_pictures_is_refused():
    lazy = MapSamples(Made(lambda i: (np.zeros((3, 9, 9), dtype=np.float32), int(Y[i]))))
    with pytest.raises(ConfigurationError, match=r"EdgeCase\.pool holds .*\(3, 8, 8\).* the task's are .*\(3, 9, 9\)"):
        EdgeCase(pool=Pool(), target_label=0).stamp(lazy)
