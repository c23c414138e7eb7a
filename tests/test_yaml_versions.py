"""Values that two versions of YAML read differently."""

import pytest
import yaml

from fl_lightning.yaml_files import Refused, as_argument, read_yaml, write_yaml
from fl_lightning.yaml_versions import check_text

DIFFERENT = [
    "0100",
    "-010",
    "089",
    "0o17",
    "0b11",
    "1:40",
    "1:40.5",
    "1_000",
    "1_0.5",
    "-0x1F",
    "-.5",
    "+.5",
    ".5e3",
    "yes",
    "On",
    "NO",
    "off",
]

ALIKE = [
    *("0", "-3", "+3", "10", "1.5", "-0.5", "1.", ".5", "1e3", "1e-3", "-1E+3", "0x1F", ".inf", "-.INF", ".nan", "012e3"),
    *("true", "False", "null", "~", "y", "n", "2020-01-01", "1:99", "20%", "0.1.2", "nothing", "once"),
]


@pytest.mark.parametrize("text", DIFFERENT)
def test_a_value_with_two_meanings_is_refused_by_name_and_line(text):
    with pytest.raises(Refused, match=r"^line 3: a\.b: ") as refused:
        read_yaml(f"x: 1\na:\n  b: {text}")
    assert text in str(refused.value)
    with pytest.raises(Refused, match=r"^line 1: "):
        read_yaml(f"{text}: 1")
    with pytest.raises(Refused, match=r"^line 2: a: "):
        read_yaml(f"a: [\n{text}]")


@pytest.mark.parametrize("text", DIFFERENT)
def test_in_quotes_it_is_text(text):
    assert read_yaml(f"a: '{text}'") == read_yaml(f'a: "{text}"') == {"a": text}


@pytest.mark.parametrize("text", ALIKE)
def test_a_value_with_one_meaning_is_read(text):
    assert check_text(text) is None
    read_yaml(f"a: {text}")


@pytest.mark.parametrize("text", ["", "-", "+", "1:", "-: {", "0: [", "1, 2", "- 010", "0100 clients"])
def test_what_is_no_single_value_is_nobodys_number(text):
    assert check_text(text) is None


@pytest.mark.parametrize("write", [as_argument, write_yaml])
def test_text_that_is_written_can_be_read_back(write):
    settings = {text: [text, {"a": text}] for text in (*DIFFERENT, *ALIKE)}
    assert read_yaml(write(settings)) == settings
    assert yaml.safe_load(write(settings)) == settings
