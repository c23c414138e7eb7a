"""What show-attack finds and how it shows it: pictures, tables and texts."""

from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_data

from fl_lightning import FederatedDataModule
from fl_lightning.attacks import DBA, Attack, EdgeCase, LabelFlip, PixelTrigger, SignFlip, TabularDBA, ValueTrigger
from fl_lightning.attacks.show_attack import Strip, collect, held, show
from fl_lightning.cli import main
from fl_lightning.data import IID, Digits, EdgePool, MapSamples, RotatedDigits, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.errors import ConfigurationError

MALICIOUS = [1, 4, 5, 7, 8]


def pictures(n: int, seed: int) -> TensorSamples:
    """Noise in bytes from 0 to 254, so that no pixel is white, of four classes."""
    pixels = torch.randint(0, 255, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return TensorSamples(pixels, torch.arange(n) % 4, augment=crop_and_flip, prepare=normalize)


def of(train: Any, test: Any) -> FederatedDataModule:
    data = FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=9), num_classes=4)
    data.setup("fit")
    return data


def picture_data() -> FederatedDataModule:
    return of(pictures(180, 0), pictures(40, 1))


def strips(data: FederatedDataModule, *attacks: Attack, malicious: Any = MALICIOUS) -> dict[str, Strip]:
    for attack in attacks:
        attack.validate(4)
    found = collect(data, attacks, malicious, seed=0)
    return {strip.title.replace("\n", " "): strip for strip in found}


def white(picture: torch.Tensor) -> list[list[int]]:
    """Row and column of the pixels that are white in all channels."""
    return torch.nonzero((picture == 255).all(0)).tolist()


# ---- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_raw_and_carry_the_trigger_on_top_of_what_they_were():
    data = picture_data()
    assert data.task is not None
    found = strips(data, PixelTrigger(row=2, column=3, height=1, width=2, target_label=1))
    assert list(found) == ["clean", "PixelTrigger", *(f"client {client} trains on" for client in MALICIOUS[:4])]
    test = held(data.task.test)
    known = {row.numpy().tobytes(): label for row, label in zip(test.inputs, test.targets.tolist(), strict=True)}
    for clean, example in zip(found["clean"].examples, found["PixelTrigger"].examples, strict=True):
        assert clean.before is not None
        assert torch.equal(clean.after, clean.before)
        assert clean.label == clean.true == known[clean.after.numpy().tobytes()]
        assert example.before is not None
        assert torch.equal(example.before, clean.after)
        assert (example.true, example.label) == (clean.true, 1)
        assert white(example.after) == [[2, 3], [2, 4]]
        assert example.after.dtype == torch.uint8
    assert len(found["clean"].examples) == 8


def test_only_what_an_attacker_changed_is_shown_of_its_data():
    found = strips(picture_data(), PixelTrigger(height=1, width=1, target_label=1, poison_fraction=0.1))
    for client in MALICIOUS[:4]:
        examples = found[f"client {client} trains on"].examples
        assert len(examples) == 2  # of 20 samples
        assert all(white(example.after) == [[0, 0]] and example.label == 1 for example in examples)
        assert all(example.true is not None for example in examples)


def test_every_attacker_has_its_own_part_of_a_distributed_trigger():
    found = strips(picture_data(), DBA(strip_length=3, gap=2, poison_fraction=0.5))
    corners = [[0, 0], [0, 5], [3, 0], [3, 5]]
    for i, corner in enumerate(corners):
        assert white(found[f"DBA part{i}"].examples[0].after)[0] == corner
        assert white(found[f"client {MALICIOUS[i]} trains on"].examples[0].after)[0] == corner
    assert len(white(found["DBA"].examples[0].after)) == 12


def test_without_malicious_clients_the_test_set_alone_is_shown():
    assert list(strips(picture_data(), PixelTrigger(), malicious=[])) == ["clean", "PixelTrigger"]


class Planes(EdgePool):
    """White pictures of class 0, unlike any of the task's."""

    label = 0

    def train(self) -> TensorSamples:
        return TensorSamples(torch.full((12, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(12), prepare=normalize)

    test = train


@pytest.mark.parametrize("mix", ["dataset", "batch"])
def test_edge_cases_stand_beside_clean_pictures_of_their_class(mix):
    found = strips(picture_data(), EdgeCase(pool=Planes(), target_label=3, num_edge=4, num_clean=10, mix=mix))
    assert all((e.true, e.label) == (0, 0) and len(white(e.after)) < 64 for e in found["clean"].examples)
    assert all((e.true, e.label) == (0, 3) and len(white(e.after)) == 64 for e in found["EdgeCase"].examples)
    assert all(e.before is None for e in found["EdgeCase"].examples)
    assert list(found) == ["clean", "EdgeCase", "client 1 trains on"]  # all attackers have the same
    assert len(found["client 1 trains on"].examples) == 4


def test_flipped_labels_are_found():
    data = picture_data()
    found = strips(data, LabelFlip(mode="pair", source_label=2, target_label=3))
    assert all((e.true, e.label) == (2, 3) for e in found["LabelFlip"].examples)
    assert all((e.true, e.label) == (2, 3) for e in found["client 1 trains on"].examples)
    assert len(found["client 1 trains on"].examples) == min(8, int((data.client(1).targets == 2).sum()))


def test_attacks_act_one_after_the_other():
    found = strips(
        picture_data(), LabelFlip(mode="all_to_one", target_label=3), PixelTrigger(height=1, width=1, target_label=1)
    )
    labels = {(e.label, len(white(e.after))) for client in MALICIOUS[:4] for e in found[f"client {client} trains on"].examples}
    assert labels == {(3, 0), (1, 1)}


def test_a_sheet_of_grey_pictures_of_any_number_of_strips(tmp_path):
    data = Digits(IID(num_clients=20))
    data.setup("fit")
    heights = []
    for attack in (
        EdgeCase(pool=RotatedDigits(), target_label=7, num_edge=3, num_clean=5),
        DBA(strip_length=3, gap=2, value=0.7),
    ):
        show(data, [attack], [0, 3], 0, str(tmp_path / "new" / "sheet.png"))
        with Image.open(tmp_path / "new" / "sheet.png") as sheet:
            assert sheet.format == "PNG"
            assert sheet.width == 900
            heights.append(sheet.height)
    assert heights == [3 * 140, 8 * 140]


def test_class_names_are_used_where_a_task_has_some(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("fl_lightning.attacks.show_attack.write_sheet", lambda *sheet: seen.append(list(sheet[1])))
    data = picture_data()
    show(data, [PixelTrigger()], [], 0, str(tmp_path / "sheet.png"))
    data.class_names = ("cat", "dog", "bird", "fish")  # pyrefly: ignore[missing-attribute]
    show(data, [PixelTrigger()], [], 0, str(tmp_path / "sheet.png"))
    assert seen == [["0", "1", "2", "3"], ["cat", "dog", "bird", "fish"]]


# ---- tables and texts --------------------------------------------------------------------------------------------------


def test_changed_features_of_a_table_are_printed(capsys):
    data = tiny_data()
    data.setup("fit")
    attack = ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)
    show(data, [attack], MALICIOUS, 0, None)
    shown = capsys.readouterr().out
    assert data.task is not None
    inputs = data.task.test.inputs[data.task.test.targets == 1]  # pyrefly: ignore[missing-attribute]
    assert f"5: {inputs[0, 5]:.4g} -> 4 " in shown
    assert "1 -> 0" in shown
    assert "client 4 trains on" in shown
    assert "clean" not in shown


def test_features_go_by_their_names_and_every_part_is_shown(capsys):
    names = ["age", "income", "rate [%]"]
    table = TensorSamples(torch.arange(180.0).view(60, 3), torch.arange(60) % 2, feature_names=names)
    attack = TabularDBA(columns=["age", "rate [%]"], values=[-1.0, -2.0])
    show(of(table, table), [attack], MALICIOUS, 0, None)
    shown = capsys.readouterr().out
    assert "age: 3 -> -1" in shown
    assert "rate [%]: 5 -> -2" in shown
    assert "TabularDBA part1" in shown
    assert "income" not in shown


def test_rows_of_no_sample_of_the_task_are_called_that(capsys):
    class Rare(Planes):
        def train(self) -> TensorSamples:
            return TensorSamples(torch.full((12, 3), 0.5), torch.zeros(12))

        test = train

    table = TensorSamples(torch.arange(180.0).view(60, 3), torch.arange(60) % 2)
    show(of(table, table), [EdgeCase(pool=Rare(), target_label=1, num_edge=4, num_clean=3)], [0], 0, None)
    assert "not made from a sample of the task" in capsys.readouterr().out


class Words:
    """Turns rows of numbers into vectors, as `GloVe` does."""

    vocabulary = ("", "[unknown]", "good", "film", "bad")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.eye(5)[rows.long()]


@pytest.mark.parametrize("prepare", [Words(), None])
def test_texts_are_decoded_if_they_can_be(capsys, prepare):
    words = TensorSamples(
        torch.tensor([[4, 3, 0, 0], [2, 3, 0, 0]] * 20, dtype=torch.int32), torch.arange(40) % 2, prepare=prepare
    )

    class Praise(EdgePool):
        label = 1

        def train(self) -> TensorSamples:
            return TensorSamples(torch.tensor([[2, 1, 3, 0]] * 8, dtype=torch.int32), torch.ones(8), prepare=prepare)

        test = train

    data = of(words, words)
    data.class_names = ("negative", "positive")  # pyrefly: ignore[missing-attribute]
    show(data, [EdgeCase(pool=Praise(), target_label=0, num_edge=4, num_clean=3)], [0], 0, None)
    shown = capsys.readouterr().out
    assert ("good [unknown] film" if prepare else "2 1 3 0") in shown
    assert "positive -> negative" in shown
    assert ("good film" if prepare else "2 3 0 0") in shown  # a clean one of the same class


# ---- what cannot be shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "attacks", "message"),
    [
        (picture_data, [SignFlip()], r"model\.attacks \(SignFlip\) changes no data"),
        (picture_data, [], r"model\.attacks \(none\) changes no data"),
        (
            lambda: of(*[MapSamples([(torch.zeros(3), i % 2) for i in range(20)])] * 2),
            [LabelFlip(mode="pair", source_label=0, target_label=1)],
            "data are read by MapSamples; load them into TensorSamples",
        ),
        (
            lambda: of(*[TensorSamples(torch.zeros(20, 2, 3), torch.arange(20) % 2)] * 2),
            [LabelFlip(mode="pair", source_label=0, target_label=1)],
            r"data are of shape \(20, 2, 3\)",
        ),
    ],
)
def test_what_cannot_be_shown_is_said(data, attacks, message):
    with pytest.raises(ConfigurationError, match=message):
        show(data(), attacks, MALICIOUS, 0, None)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"output .*sheet\.png cannot be written: .*; give another file"):
        show(picture_data(), [PixelTrigger()], [], 0, str(tmp_path / "file" / "sheet.png"))


def test_nothing_is_written_for_an_attack_that_cannot_be_shown(tmp_path, capsys):
    task = ["--data", "Digits", "--data.partition", "IID", "--data.partition.num_clients", "20"]
    model = ["--model.client", "MLP", "--model.client.sizes", "[64, 8, 10]", "--model.aggregator", "FedAvg"]
    with pytest.raises(SystemExit) as left:
        main(["show-attack", *task, *model, "--model.attacks+", "SignFlip", "--trainer.accelerator", "cpu"])
    assert left.value.code == 2
    assert "changes no data" in capsys.readouterr().err
    assert not (tmp_path / "attack.png").exists()
