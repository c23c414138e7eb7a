"""GloVe: files of every kind, row numbers and vectors exactly, what is no file of word vectors, and the download."""

import gzip
import hashlib
import io
import os
import urllib.error
import zipfile
from pathlib import Path

import pytest
import torch

from fl_lightning.data import glove as module
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import GloVe
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError

TEXT = b"the 1 -2.5\n, 0.25 3\nyou 4e-1 5\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "vectors.txt").write_bytes(TEXT)
    return tmp_path / "vectors.txt"


def glove(file: Path, **settings) -> GloVe:
    return GloVe(path=str(file), **{"dimension": 2, **settings})


def test_rows_number_words_in_the_order_of_the_file(file: Path) -> None:
    rows = glove(file).rows([["you", "the"], ["zzyzx", ",", "the", "you"], []], length=3)
    assert rows.dtype == torch.int32
    assert rows.tolist() == [[4, 2, 0], [1, 3, 2], [0, 0, 0]]


def test_vectors_are_those_of_the_file_with_a_mark_for_words(file: Path) -> None:
    vectors = glove(file)(torch.tensor([[2, 3], [4, 1], [1, 0]], dtype=torch.int32))
    expected = [[[1, -2.5, 1], [0.25, 3, 1]], [[0.4, 5, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 0]]]
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.tensor(expected))
    assert not vectors.requires_grad


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("pack", [lambda text: text, gzip.compress])
def test_files_from_windows_hold_the_same_words(tmp_path: Path, file: Path, change, pack) -> None:
    other = tmp_path / ("windows.txt" if pack(TEXT) == TEXT else "windows.txt.gz")
    other.write_bytes(pack(change(TEXT)))
    assert glove(other).vocabulary == glove(file).vocabulary
    assert torch.equal(glove(other)(torch.arange(5)[None]), glove(file)(torch.arange(5)[None]))


def test_reads_compressed_files_and_archives(tmp_path: Path, file: Path) -> None:
    packed = tmp_path / "vectors.txt.gz"
    packed.write_bytes(gzip.compress(TEXT))
    archive = tmp_path / "vectors.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("glove.6B.12d.txt", "the 1\n")
        members.writestr("glove.6B.3d.txt", "the 1 2 3\n")
        members.writestr("glove.6B.2d.txt", TEXT)
    rows = torch.arange(5).unsqueeze(0)
    assert torch.equal(glove(packed)(rows), glove(file)(rows))
    assert torch.equal(glove(archive)(rows), glove(file)(rows))
    assert glove(archive, dimension=3)(torch.tensor([[2]])).tolist() == [[[1, 2, 3, 1]]]


def test_reads_as_many_words_as_asked_for(file: Path) -> None:
    few = glove(file, num_words=2)
    assert few.rows([["the", ",", "you"]], length=3).tolist() == [[2, 3, 1]]
    with pytest.raises(IndexError):
        few(torch.tensor([[4]]))


def test_words_may_hold_blanks_quotes_and_foreign_letters_and_the_first_of_two_counts(tmp_path: Path) -> None:
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b'" 1 1\n. . 2 2\ncaf\xc3\xa9 3 3\n" 4 4\n\xff 5 5\n')
    assert glove(odd).rows([['"', ". .", "café", "\ufffd", "."]], length=5).tolist() == [[2, 3, 4, 6, 1]]
    assert glove(odd)(torch.tensor([[3]])).tolist() == [[[2, 2, 1]]]


def test_equal_settings_share_one_table_and_join_in_one_tensor(file: Path) -> None:
    parts = [
        TensorSamples(g.rows([["you"]], 2), torch.zeros(1), prepare=g)
        for g in (glove(file), glove(file), glove(file, num_words=2))
    ]
    assert isinstance(join(parts[:2]), TensorSamples)
    assert not isinstance(join(parts), TensorSamples)
    assert module._table(glove(file), torch.device("cpu")) is module._table(glove(file), torch.device("cpu"))


def test_vectors_can_be_trained_on_after_evaluation(file: Path) -> None:
    with torch.inference_mode():
        glove(file)(torch.tensor([[2]]))
    weight = torch.ones(3, 1, requires_grad=True)
    (glove(file)(torch.tensor([[2, 4]])) @ weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[1.4], [2.5], [2.0]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no word vectors"),
        (b"the 1\n", r"line 1: 1 numbers follow the word, but glove\.dimension is 2"),
        (b"the 1 2 3\n", r"line 1: 3 numbers follow the word, but glove\.dimension is 2; set it"),
        (b"the 1 2\nof 1\n", "line 2: 1 numbers"),
        (b"the 1 2\n\nof 1 2\n", "line 2: 0 numbers"),
        (b"the 1 2\nof 1 x\n", "cannot be read as word vectors .near line 2: .*'x'"),
        (b"the 1 2\nof 1 nan\n", "line 2: a number is not finite"),
        (b"the 1 2\nof inf 2\n", "line 2: a number is not finite"),
        (b"\x89PNG 1 \x00\xff", "cannot be read as word vectors"),
    ],
)
def test_what_is_no_file_of_word_vectors_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(text)
    with pytest.raises(ConfigurationError, match=rf"bad\.txt.*{message}"):
        glove(tmp_path / "bad.txt").rows([["the"]], length=1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("cut.gz", gzip.compress(TEXT * 1000, mtime=0)[:-20], id="cut"),
        pytest.param("noise.gz", gzip.compress(TEXT, mtime=0)[:10] + b"\xff" * 20, id="noise"),
        pytest.param("plain.gz", TEXT, id="not-compressed"),
        pytest.param("plain.zip", TEXT, id="no-archive"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match=f"{name} cannot be read as word vectors"):
        glove(tmp_path / name).rows([["the"]], length=1)


def test_an_archive_without_the_dimension_says_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vectors.zip", "w") as members:
        members.writestr("glove.6B.50d.txt", TEXT)
    with pytest.raises(ConfigurationError, match=r"holds \['glove\.6B\.50d\.txt'\], of which none ends with \.2d\.txt"):
        glove(tmp_path / "vectors.zip").rows([["the"]], length=1)


@pytest.mark.parametrize("name", ["nowhere.txt", ""])
def test_a_path_without_a_file_is_refused_before_reading(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"glove\.path .* is no file.*leave path out"):
        glove(tmp_path / name).prepare()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "x", "dimension": 0}, r"glove\.dimension must be at least 1, got 0"),
        ({"num_words": 0}, r"glove\.num_words must be at least 1, got 0"),
        ({"dimension": 64}, r"glove\.dimension is 64, but GloVe 6B comes in \(50, 100, 200, 300\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GloVe(**settings)


def zipped() -> bytes:
    """An archive like Stanford's, with one word."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as members:
        members.writestr("glove.6B.50d.txt", "the " + " ".join(["0.5"] * 50) + "\n")
    return stream.getvalue()


def test_downloads_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, requests = zipped(), []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        requests.append(url)
        return io.BytesIO(data)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(data).hexdigest())
    vectors = GloVe(dimension=50, num_words=7)  # settings of this test alone, as tables are kept
    vectors.prepare()
    assert vectors.rows([["the", "of"]], length=2).tolist() == [[2, 1]]
    assert [file.name for file in (tmp_path / "fl_lightning" / "glove").iterdir()] == ["glove.6B.zip"]
    assert requests == [module.URL]


def test_a_changed_download_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> io.BytesIO:
        return io.BytesIO(zipped())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(ConfigurationError, match=r"glove\.6B\.zip cannot be fetched \(its SHA-256 is .* instead of 617afb"):
        GloVe().prepare()
    assert not list((tmp_path / "fl_lightning" / "glove").iterdir())


def test_without_network_the_address_and_a_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(ConfigurationError, match=r"glove\.6B\.zip cannot be fetched \(.*no route.*set glove\.path"):
        GloVe().prepare()


@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data() -> None:
    real = GloVe(path=str(Path(os.environ["FL_LIGHTNING_DATA"]) / "glove" / "glove.6B.50d.subset.txt.gz"), dimension=50)
    rows = real.rows([["the", ",", ".", "n't", "lanthimos"]], length=5)
    assert rows[0, :3].tolist() == [2, 3, 4]
    assert rows[0, 3] > 4
    assert rows[0, 4] == 1
    assert real(rows)[0, 0, 0] == torch.tensor(0.418)


def test_vocabulary_names_every_row(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("the 1 2\ncat 3 4\n")
    assert GloVe(path=str(file), dimension=2).vocabulary == {0: "", 1: "<unknown>", 2: "the", 3: "cat"}
