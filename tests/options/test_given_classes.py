"""Classes that a configuration names, once it is read."""

import math
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from fl_lightning.aggregators import BackdoorIndicator
from fl_lightning.configuration import build
from fl_lightning.data import Noise, RotatedDigits
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.given_classes import check_read, refused_by_its_class

HERE = __name__
DIGITS = Path(__file__).parents[2] / "configs" / "digits"


class Own:
    """Takes whatever it is given."""

    def __init__(self, size: float = 1.0, **further: int) -> None:
        if size < 0:
            raise ValueError("a fault of its own")


def entry(path: str, **settings: object) -> dict[str, object]:
    return {"class_path": path, "init_args": settings}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": entry("fl_lightning.aggregators.base.Aggregator")}, "a: Aggregator says what .*; known: .*Krum"),
        ({"a": [entry("fl_lightning.attacks.Attack")]}, "a: Attack says what"),
        ({"a": entry("fl_lightning.models.Classifier")}, "a: Classifier says what"),  # which Python itself would make
        ({"a": entry("torch.nn.Module")}, "a: Module says what"),
        ({"a": entry("torch.optim.lr_scheduler.LRScheduler")}, "a: LRScheduler says what"),
        ({"a": entry("fl_lightning.models.MLP", b=entry("lightning.Callback"))}, r"a\.b: Callback says what"),
        (
            {"a": {**entry("fl_lightning.data.IID"), "dict_kwargs": {"x": 1}}},
            r"a\.dict_kwargs: IID has no setting x; it has: num_",
        ),
        ({"a": entry(f"{HERE}.Own", size=math.nan)}, r"a\.size must be a finite number, got nan"),
        ({"a": {"b": [1.0, math.nan]}}, r"a\.b must be a finite number, got nan"),
        ({"a": entry("torch.optim.SGD", weight_decay=math.inf)}, r"a\.weight_decay must be a finite number, got inf"),
        ({"a": entry("torch.optim.Adam", betas=[0.9, -math.inf])}, r"a\.betas must be a finite number, got -inf"),
    ],
)
def test_what_nothing_can_be_made_of(config, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        check_read(config)


@pytest.mark.parametrize(
    "config",
    [
        {"a": entry("fl_lightning.aggregators.Median"), "b": 3, "c": [None, "x"]},
        {"a": {**entry(f"{HERE}.Own", size=math.inf), "dict_kwargs": {"x": 1}}},  # often no limit
        {"a": {"class_path": "math.sqrt"}, "b": {"class_path": "nowhere.Thing"}, "c": {"class_path": "Thing"}},
    ],
)
def test_what_something_can_be_made_of(config):
    check_read(config)


def made(cls: type, **settings: object) -> BaseException:
    """What is raised where a parser makes an object, and hides why that did not go."""
    try:
        try:
            cls(**settings)
        except Exception as error:
            raise ValueError("Does not validate against any of the Union subtypes") from error
    except ValueError as error:
        return error
    raise AssertionError


def test_a_librarys_class_says_itself_what_is_wrong_with_an_argument():
    refused = refused_by_its_class(made(EarlyStopping, monitor="x", mode="up"))
    assert str(refused) == "EarlyStopping: `mode` can be min, max, got up"


def test_an_exception_of_ones_own_class_is_a_fault():
    assert refused_by_its_class(made(Own, size=-1.0)) is None


@pytest.mark.parametrize("base", ["backdoor_indicator", "detection"])  # with noise in the file, and with another rule
@pytest.mark.parametrize(
    ("ood", "said"),
    [
        ("{samples: 30, low: 5, high: 2}", r"^Noise needs numbers with low < high, got 5\.0 and 2\.0"),
        ("{class_path: Noise, init_args: {samples: 0}}", r"^Noise\.samples must be at least 1, got 0"),
        ("{class_path: RotatedDigits, init_args: {digit: 11}}", r"digit must be from 0 to 9, got 11"),
        ("{class_path: RotatedDigits, init_args: {digits: 1}}", r"RotatedDigits has no setting digits; did you mean digit"),
        ("{samples: 30, lo: 5}", r"Noise has no setting lo; did you mean low"),
    ],
)
def test_what_is_wrong_with_one_of_several_kinds_is_said_by_itself(base, ood, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        indicator(base, ood)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["backdoor_indicator", "detection"])
@pytest.mark.parametrize(
    ("ood", "kind"),
    [
        ("{class_path: RotatedDigits, init_args: {digit: 1}}", RotatedDigits),
        ("{samples: 30, low: 0.1}", Noise),
        ("{class_path: Noise, init_args: {samples: 30}}", Noise),
    ],
)
def test_each_of_several_kinds_can_be_given(base, ood, kind):
    assert isinstance(indicator(base, ood).ood, kind)


def test_a_class_of_another_kind_is_taken_by_its_name_and_its_settings_after_it():
    arguments = ["--model.aggregator.ood", "RotatedDigits", "--model.aggregator.ood.digit", "4"]
    made = prepared(["--config", str(DIGITS / "backdoor_indicator.yaml"), *arguments]).ood
    assert isinstance(made, RotatedDigits)
    assert made.label == 4


def prepared(arguments: list[str]) -> BackdoorIndicator:
    """The rule of a run by the command line."""
    rule = build(["fit", *arguments]).model.aggregator
    assert isinstance(rule, BackdoorIndicator)
    return rule


def indicator(base: str, ood: str) -> BackdoorIndicator:
    """One that takes these inputs, on top of a configuration of the digits."""
    given = ["--model.aggregator", "BackdoorIndicator", "--model.aggregator.init_args.ood", ood]
    return prepared(["--config", str(DIGITS / f"{base}.yaml"), *given])
