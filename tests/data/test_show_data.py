"""The table and the picture of what a partition made."""

import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from fl_lightning import FederatedDataModule
from fl_lightning.cli import main
from fl_lightning.data import DirichletOverClients, MapSamples, TensorSamples
from fl_lightning.data.show_data import MOST_SHOWN, as_table, draw, show
from fl_lightning.data.skew import Skew
from fl_lightning.errors import ConfigurationError


def data_of(num_clients: int, num_classes: int = 4, n: int = 600) -> FederatedDataModule:
    samples = TensorSamples(torch.zeros(n, 2), torch.arange(n) % num_classes)
    partition = DirichletOverClients(num_clients=num_clients, alpha=0.5, min_samples=1)
    data = FederatedDataModule.from_datasets(samples, samples, partition=partition, num_classes=num_classes)
    data.setup("fit")
    return data


def rows(skew: Skew, names: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The table's cells by the name of their row."""
    Console(width=200).print(as_table(skew, 10, names))
    lines = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_table_counts(capsys):
    sizes, counts = torch.tensor([4, 0, 2]), torch.tensor([[2, 2, 0], [0, 0, 0], [0, 2, 0]])
    found = rows(Skew(sizes, counts), ["cat", "dog", "eel"], capsys)
    assert found["clients"][0] == "3"
    assert found["clients without samples"][0] == "1"
    assert found["samples per client"][1:] == ["0", "2", "4"]
    assert found["classes that nobody has"][0] == "1: eel"
    assert found["classes that a client lacks"][1:] == ["1", "2", "3"]
    assert found["effective classes per client"][1:] == ["1.00", "1.00", "2.00"]


def test_without_classes_sizes_are_shown_alone(capsys, tmp_path):
    show(data_of(5, num_classes=1), str(tmp_path / "sizes.svg"))
    shown = capsys.readouterr().out
    assert "samples per client" in shown
    assert "effective" not in shown
    assert ">client<" in (tmp_path / "sizes.svg").read_text()
    assert ">class<" not in (tmp_path / "sizes.svg").read_text()


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("many", [False, True])
def test_many_clients_are_drawn_as_quantiles(num_classes, many):
    data = data_of(MOST_SHOWN + many, num_classes)
    figure = draw(Skew.of(data.clients, data.train.targets, num_classes), ["a", "b", "c", "d"][:num_classes], "title")
    labels = [axes.get_xlabel() for axes in figure.axes]
    expected = {
        (1, False): ["client"],
        (4, False): ["", "client", ""],  # the last is the colour bar
        (1, True): ["% of clients with no more"],
        (4, True): ["% of clients with no more"] * 2 + ["class"],
    }
    assert labels == expected[num_classes, many]
    if not many:
        assert [bar.get_height() for bar in figure.axes[0].patches] == data.sizes.tolist()  # pyrefly: ignore
    if (num_classes, many) == (4, False):
        shares = torch.from_numpy(figure.axes[1].images[0].get_array().data)  # (C, N)  # pyrefly: ignore
        torch.testing.assert_close(shares.sum(0), torch.ones(MOST_SHOWN))


def test_a_curve_goes_from_the_least_to_the_most():
    sizes = torch.cat([torch.arange(1, 1000), torch.tensor([1_000_000])])
    (line,) = draw(Skew(sizes, None), [], "title").axes[0].lines
    ends = [line.get_ydata()[place] for place in (0, -1)]  # pyrefly: ignore
    assert ends == [1, 1_000_000]
    assert line.axes is not None
    assert line.axes.get_yscale() == "log"


def test_formats_and_bytes(tmp_path):
    data = data_of(7)
    for name in ("a.svg", "b.svg", "new/c.PNG"):
        show(data, str(tmp_path / name))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with Image.open(tmp_path / "new" / "c.PNG") as picture:
        assert picture.format == "PNG"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"output .*cannot be written.*give another file"):
        show(data, str(tmp_path / "file" / "a.svg"))


def test_samples_that_are_read_one_by_one(tmp_path, capsys):
    pairs = [(f"text {i}", i % 3) for i in range(60)]
    samples = MapSamples(pairs)
    partition = DirichletOverClients(num_clients=6, alpha=0.5, min_samples=1)
    data = FederatedDataModule.from_datasets(samples, samples, partition=partition)
    data.setup("fit")
    show(data, str(tmp_path / "a.svg"))
    assert re.search(r"classes +│ 3 ", capsys.readouterr().out)


def test_the_command_takes_a_runs_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--data.num_train", "600", "--data.num_test", "20", "--data.partition.num_clients", "6"]
    model = ["--model.client", "MLP", "--model.aggregator", "FedAvg"]
    data = ["--data", "Phishing", "--data.partition", "DirichletOverClients"]
    main(["show-data", *data, *settings, *model, "--trainer.accelerator", "cpu"])
    shown = capsys.readouterr().out
    assert "wrote data.svg" in shown
    assert re.search(r"clients +│ 6 ", shown)
    assert "no phishing" in (tmp_path / "data.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["data.svg"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--output", "data.gif"], "output = data.gif must end in .svg or .png"),
        (["--data.partition.num_clients", "900"], "deals 600 training samples out to 900 clients"),
    ],
)
def test_mistakes_end_in_a_line(args, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = ["--data", "Phishing", "--data.partition", "IID", "--data.num_train", "600", "--data.num_test", "20"]
    model = ["--model.client", "MLP", "--model.aggregator", "FedAvg", "--trainer.accelerator", "cpu"]
    with pytest.raises(SystemExit) as left:
        main(["show-data", *task, *model, *args])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
