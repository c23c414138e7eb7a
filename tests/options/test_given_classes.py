"""Classes that a configuration names, once it is read."""

import math

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from fl_lightning.errors import ConfigurationError
from fl_lightning.options.given_classes import check_read, refused_by_its_class

HERE = __name__


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
