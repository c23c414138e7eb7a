"""CIFAR-10: reading Parquet files of images, normalisation, and augmentation against a slow reference."""

import copy
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fl_lightning.data import base
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.cifar10 import CIFAR10, MEAN, STD, normalize, read_parquet
from fl_lightning.data.crop_and_flip import CropAndFlip, crop_and_flip
from fl_lightning.data.joined import join
from fl_lightning.data.partition import IID
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def random_images(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def png(image: np.ndarray) -> dict:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write(file: Path, images: np.ndarray, labels: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"img": [png(image) for image in images], "label": labels}), file)


def loaded(folder: Path, **settings) -> CIFAR10:
    data = CIFAR10(IID(num_clients=2), path=str(folder), **settings)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.parquet", random_images(12), [i % 10 for i in range(12)])
    write(tmp_path / "test.parquet", random_images(5), [9, 8, 7, 6, 5])
    return tmp_path


def test_reads_images_and_labels(folder: Path) -> None:
    data = loaded(folder)
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    assert train.inputs.dtype == torch.uint8
    assert torch.equal(train.inputs, torch.from_numpy(random_images(12)).permute(0, 3, 1, 2))
    assert torch.equal(test.inputs, torch.from_numpy(random_images(5)).permute(0, 3, 1, 2))
    assert train.targets.tolist() == [*range(10), 0, 1]
    assert test.targets.tolist() == [9, 8, 7, 6, 5]
    assert data.task is not None
    assert data.task.num_classes == 10


def test_reads_the_layout_of_the_hub_in_order_of_shards(tmp_path: Path) -> None:
    images = random_images(6)
    write(tmp_path / "plain_text" / "train-00001-of-00002.parquet", images[4:], [4, 5])
    write(tmp_path / "plain_text" / "train-00000-of-00002.parquet", images[:4], [0, 1, 2, 3])
    read, targets = read_parquet(tmp_path, "train")
    assert torch.equal(read, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert targets.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "other",
    [
        lambda rows: pa.table({"img": rows, "label": pa.array([0, 1], pa.int32())}),
        lambda rows: pa.table({"img": [{**row, "path": "x.png"} for row in rows], "label": [0, 1]}),
        lambda rows: pa.table({"img": [row["bytes"] for row in rows], "label": [0, 1]}),
        lambda rows: pa.table({"label": [0, 1], "extra": ["a", "b"], "img": [dict(reversed(row.items())) for row in rows]}),
        lambda rows: pa.table({"img": rows, "label": [0, 1]}).slice(0, 0),
    ],
    ids=["int32", "paths", "bare bytes", "other order", "empty"],
)
def test_shards_of_one_split_may_be_written_by_different_hands(tmp_path: Path, other) -> None:
    images = random_images(2)
    write(tmp_path / "train-0.parquet", images, [0, 1])
    table = other([png(image) for image in images])
    pyarrow.parquet.write_table(table, tmp_path / "train-1.parquet")
    read, targets = read_parquet(tmp_path, "train")
    assert targets.tolist() == [0, 1] * (1 + (len(table) > 0))
    assert torch.equal(read, random_chw(2).repeat(1 + (len(table) > 0), 1, 1, 1))


def test_grey_images_become_colour_images(tmp_path: Path) -> None:
    grey = random_images(2)[..., 0]
    write(tmp_path / "train.parquet", grey, [0, 1])
    assert torch.equal(read_parquet(tmp_path, "train")[0], torch.from_numpy(grey).unsqueeze(1).expand(2, 3, 32, 32))


def test_augments_training_only_and_only_if_asked(folder: Path) -> None:
    data, plain = loaded(folder), loaded(folder, augment=False)
    every = torch.arange(12)
    clean = normalize(random_chw(12))
    assert torch.equal(data.train.batch(every)[0], clean)
    assert not torch.equal(data.train.batch(every, generator(0, "a"))[0], clean)
    assert torch.equal(plain.train.batch(every, generator(0, "a"))[0], clean)
    assert torch.equal(data.evaluation["clean"].batch(torch.arange(5), generator(0, "a"))[0], normalize(random_chw(5)))


def random_chw(n: int) -> torch.Tensor:
    return torch.from_numpy(random_images(n)).permute(0, 3, 1, 2).contiguous()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    data = CIFAR10(IID(num_clients=2), path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"nowhere holds no train\.parquet.*no such folder.*leave path out"):
        data.prepare_data()


def test_missing_test_set_is_named_before_anything_is_decoded(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", random_images(1), [0])
    with pytest.raises(ConfigurationError, match=r"holds no test\.parquet"):
        CIFAR10(IID(num_clients=1), path=str(tmp_path)).prepare_data()


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"image": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=r"columns image, label"):
        read_parquet(tmp_path, "train")


def test_wrong_image_size_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", random_images(1, size=28), [0])
    with pytest.raises(ConfigurationError, match=r"row 0 has size \(28, 28\)"):
        read_parquet(tmp_path, "train")


def test_images_left_outside_the_file_are_refused(tmp_path: Path) -> None:
    table = pa.table({"img": [{"bytes": None, "path": "0.png"}], "label": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match="row 0 holds no image bytes"):
        read_parquet(tmp_path, "train")


def test_unreachable_hub_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ConfigurationError, match=r"uoft-cs/cifar10 cannot be fetched .*no route.*set data\.path"):
        CIFAR10(IID(num_clients=2)).prepare_data()


def test_reads_a_data_set_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, split: str) -> datasets.Dataset:
        assert name == "uoft-cs/cifar10"
        n = {"train": 12, "test": 5}[split]
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict(
            {"img": [png(image) for image in random_images(n)], "label": list(range(n))[::-1]}, features=features
        )

    monkeypatch.setattr("datasets.load_dataset", load)
    task = CIFAR10(IID(num_clients=2)).load()
    assert isinstance(task.train, TensorSamples)
    assert torch.equal(task.train.inputs, random_chw(12))
    assert task.test.targets.tolist() == [4, 3, 2, 1, 0]


def test_normalize_is_to_tensor_then_standardise() -> None:
    images = random_chw(4)
    scaled = images.double() / 255
    expected = torch.stack([(scaled[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    assert normalize(images).dtype == torch.float32
    torch.testing.assert_close(normalize(images), expected.float(), rtol=0, atol=1e-5)


def test_normalize_can_be_differentiated_after_evaluation() -> None:
    with torch.inference_mode():
        normalize(random_chw(1))
    pixels = random_chw(1).float().requires_grad_()
    normalize(pixels).sum().backward()
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad[0, 2], torch.full((32, 32), 1 / (255 * STD[2])))


@pytest.mark.parametrize("b", [1, 2, 33])
def test_crop_and_flip_matches_a_loop_over_images(b: int) -> None:
    images = random_chw(b)
    draws = generator(b, "a")
    top, left = torch.randint(0, 9, (2, b), generator=draws).tolist()
    flip = torch.randint(0, 2, (1, b), generator=draws)[0].tolist()
    expected = []
    for image, y, x, mirrored in zip(images, top, left, flip, strict=True):
        padded = torch.zeros(3, 40, 40, dtype=torch.uint8)
        padded[:, 4:36, 4:36] = image
        crop = padded[:, y : y + 32, x : x + 32]
        expected.append(crop.flip(2) if mirrored else crop)
    before = images.clone()
    result = crop_and_flip(images, generator(b, "a"))
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))
    assert torch.equal(images, before)


def test_batches_that_are_augmented_at_once_are_those_that_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (50, 3, 32, 32), generator=generator(0, "images"), dtype=torch.uint8)
    data = TensorSamples(images, torch.arange(50), augment=crop_and_flip, prepare=normalize)
    order, sizes = torch.randperm(50, generator=generator(0, "order")), [16, 16, 16, 2]
    applied, real = [], CropAndFlip.apply
    monkeypatch.setattr(
        CropAndFlip, "apply", lambda self, inputs, drawn: applied.append(len(inputs)) or real(self, inputs, drawn)
    )
    draws = generator(0, "draws")
    expected = [data.batch(part, draws) for part in order.split(16)]
    monkeypatch.setattr(base, "SMALL_BYTES", 2 * 16 * images[0].nbytes)
    others = generator(0, "draws")
    found = list(data.batches(order, sizes, others))
    assert applied == [16, 16, 16, 2, 32, 18]
    assert torch.equal(draws.get_state(), others.get_state())
    for (a, of_a), (b, of_b) in zip(expected, found, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(of_a, of_b)


def test_copies_of_a_data_set_can_be_joined() -> None:
    data = TensorSamples(torch.zeros(3, 3, 32, 32), torch.arange(3), augment=crop_and_flip, prepare=normalize)
    assert isinstance(join([data, copy.deepcopy(data), pickle.loads(pickle.dumps(data))]), TensorSamples)


def test_crop_and_flip_reaches_all_shifts_and_both_sides_about_equally_often() -> None:
    n = 20_000
    images = torch.zeros(n, 1, 11, 11, dtype=torch.uint8)
    images[:, 0, 5, 5] = 1  # shows the shift
    images[:, 0, 5, 6] = 2  # shows the side
    result = crop_and_flip(images, generator(0, "a"))[:, 0]
    one, two = (result == 1).flatten(1).int().argmax(1), (result == 2).flatten(1).int().argmax(1)
    mirrored = (two < one).float().mean()
    rows = (one // 11).bincount(minlength=11)
    assert abs(float(mirrored) - 0.5) < 0.02
    assert rows.nonzero().squeeze(1).tolist() == list(range(1, 10))
    assert (rows[1:10] / n - 1 / 9).abs().max() < 0.012


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_augmentation_is_the_same_on_a_gpu() -> None:
    images = random_chw(64)
    on_cpu = crop_and_flip(images, generator(0, "a"))
    on_gpu = crop_and_flip(images.cuda(), generator(0, "a"))
    assert torch.equal(on_gpu.cpu(), on_cpu)
    torch.testing.assert_close(normalize(on_gpu).cpu(), normalize(on_cpu), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data() -> None:
    folder = Path(os.environ["FL_LIGHTNING_DATA"]) / "cifar10"
    images, targets = read_parquet(folder, "test")
    assert images.shape == (10_000, 3, 32, 32)
    assert targets.bincount().tolist() == [1000] * 10
    standardised = normalize(images)
    assert standardised.mean((0, 2, 3)).abs().max() < 0.1
    assert (standardised.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigurationError, match=r"train\.parquet cannot be read"):
        read_parquet(tmp_path, "train")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    rows = [png(image) for image in random_images(2)]
    rows[1]["bytes"] = rows[1]["bytes"][:60]
    pyarrow.parquet.write_table(pa.table({"img": rows, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match="image of row 1 cannot be decoded"):
        read_parquet(tmp_path, "train")


@pytest.mark.parametrize(("labels", "shown"), [([0, None], "None"), ([0.0, 1.5], "0.0"), (["a", "b"], "'a'")])
def test_labels_must_be_whole_numbers(tmp_path: Path, labels: list, shown: str) -> None:
    rows = [png(image) for image in random_images(2)]
    pyarrow.parquet.write_table(pa.table({"img": rows, "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=f"is {shown}; it must be a whole number"):
        read_parquet(tmp_path, "train")
