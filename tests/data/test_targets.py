"""Classes in whatever form data sets state them: taken where there is one reading, refused by the sample's number elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch

from fl_lightning.data.targets import Stated, agreed, in_order, read_classes
from fl_lightning.errors import ConfigurationError

NUMBERS = [0, 2, 1, 2]
ROWS = torch.eye(3)[NUMBERS]


def stated(values: Any) -> Stated:
    return read_classes(values, "the data")


@pytest.mark.parametrize(
    "values",
    [
        NUMBERS,
        tuple(NUMBERS),
        [float(number) for number in NUMBERS],
        torch.tensor(NUMBERS, dtype=torch.uint8),
        torch.tensor(NUMBERS)[:, None],
        torch.tensor(NUMBERS).double()[:, None, None],
        [torch.tensor(number) for number in NUMBERS],
        [torch.tensor([number]) for number in NUMBERS],
        [torch.tensor(0), 2, np.int32(1), [2]],
        np.array(NUMBERS, dtype=np.int16),
        np.array(NUMBERS, dtype=">f8"),
        np.array(NUMBERS, dtype=object),
        [np.array([number]) for number in NUMBERS],
    ],
)
def test_whole_numbers_of_any_type_are_classes(values):
    found = stated(values)
    assert (found.kind, found.numbers.tolist(), found.numbers.dtype) == ("numbers", NUMBERS, torch.int64)


def test_truth_values_are_two_classes():
    assert stated([True, False]).numbers.tolist() == stated(torch.tensor([True, False])).numbers.tolist() == [1, 0]


@pytest.mark.parametrize(
    "values", [ROWS, ROWS.bool(), ROWS.int(), ROWS.tolist(), list(ROWS), [row.numpy() for row in ROWS], ROWS.numpy()]
)
def test_one_hot_rows_are_the_place_of_their_one(values):
    found = stated(values)
    assert (found.kind, found.numbers.tolist(), found.width) == ("one-hot rows", NUMBERS, 3)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda texts: np.array(texts, dtype=object)])
def test_texts_are_numbered_in_sorted_order(kind):
    found = stated(kind(["dog", "ant", "cat", "ant"]))
    assert (found.kind, found.numbers.tolist(), found.names) == ("texts", [2, 0, 1, 0], ("ant", "cat", "dog"))


def test_texts_that_are_numbers_are_in_the_order_of_numbers():
    assert in_order(["10", "9", "1"]) == ("1", "9", "10")
    assert in_order(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2.7], r"sample 2 in the data is 2\.7, which is no class; .* from 0 \(others: outcome=Regression\(\)\)"),
        ([0, float("nan")], "sample 1 in the data is nan"),
        ([0, float("inf")], "sample 1 in the data is inf"),
        ([0, -1], r"sample 1 in the data is -1\.0, which is no class"),
        ([0, 10**400], "sample 1 in the data is inf"),
        ([0, 2**40], "sample 1 in the data is 1099511627776"),
        ([f"text {i}" for i in range(20)], r"texts, such as 'text 0', but 20 different ones for 20 samples; .* target_key="),
        ([0, None], "sample 1 in the data is None, which says nothing; remove"),
        (["a", ""], "sample 1 in the data is '', which says nothing"),
        (["a", float("nan")], "sample 1 in the data is nan, but that of sample 0 is 'a'; state all as"),
        ([0, "a"], "sample 1 in the data is 'a', but that of sample 0 is 0"),
        ([0, {"boxes": 1}], "sample 1 in the data is {'boxes': 1}, a dict; give one class number per sample"),
        ([torch.tensor(0), torch.tensor([1, 0])], r"sample 1 .* of shape \(2,\), but that of sample 0 is of shape \(\)"),
        (
            [[1, 0], [1, 1]],
            r"sample 1 in the data is \[1\.0, 1\.0\], which is no class number .*, or say by outcome= .*: MultiLabel\(\)",
        ),
        ([[1, 0], [0, 0]], r"sample 1 in the data is \[0\.0, 0\.0\]"),
        ([[1, 0], [0.5, 0.5]], r"sample 1 in the data is \[0\.5, 0\.5\]"),
        (torch.zeros(3, 8, 8), r"sample 0 .* of shape \(8, 8\), such as a mask; give one class number"),
        (torch.tensor([1j]), "sample 0 in the data is 1j"),
        (torch.tensor(3), "the data state one class, 3, for all"),
    ],
)
def test_what_is_no_class_is_refused_by_the_number_of_the_sample(values, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        stated(values)
    assert "\n" not in str(refused.value)


def test_both_data_sets_share_one_numbering_of_texts():
    train, test, count, names = agreed(stated(["dog", "ant", "cat"]), stated(["cat", "dog"]), None)
    assert (train.tolist(), test.tolist(), count, names) == ([2, 0, 1], [1, 2], 3, ("ant", "cat", "dog"))
    train, test, count, names = agreed(stated(["dog", "ant"]), stated(["cat"]), 3)
    assert (train.tolist(), test.tolist(), count, names) == ([2, 0], [1], 3, ("ant", "cat", "dog"))
    train, test, count, names = agreed(stated(["neg", "pos"]), stated(["pos"]), None, ["pos", "neg"])
    assert (train.tolist(), test.tolist(), count, names) == ([1, 0], [0], 2, ("pos", "neg"))


def test_names_and_rows_say_how_many_classes_there_are():
    numbers = stated([0, 1])
    assert agreed(numbers, numbers, None)[2:] == (2, ())
    assert agreed(numbers, numbers, 5)[2:] == (5, ())
    assert agreed(numbers, numbers, None, ["a", "b", "c"])[2:] == (3, ("a", "b", "c"))
    assert agreed(stated(ROWS), stated(ROWS), None)[2:] == (3, ())
    named = Stated("numbers", numbers.numbers, ("a", "b", "c"))
    assert agreed(named, numbers, None)[2:] == agreed(numbers, named, 3)[2:] == (3, ("a", "b", "c"))
    assert agreed(named, stated([0, 3]), None)[2:] == (2, ())  # names of other classes than these


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        (["a"], [0], {}, "training data state their classes as texts, the test data as numbers"),
        ([[1, 0]], [0], {}, "training data state their classes as one-hot rows, the test data as numbers"),
        ([[1, 0]], [[1, 0, 0]], {}, "have 2 entries in the training data and 3 in the test data"),
        ([[1, 0]], [[1, 0]], {"num_classes": 3}, "and num_classes is 3; all must be the same"),
        (["a", "b"], ["a", "z"], {}, r"class of sample 1 in the test data is 'z', which is none of the 2 classes \['a', 'b'\]"),
        (["a", "b"], ["a"], {"class_names": ["a"]}, "sample 1 in the training data is 'b', which is none of the 1 classes"),
        ([0], [0], {"num_classes": 0}, "num_classes must be a whole number, at least 1, got 0"),
        ([0], [0], {"num_classes": 2.5}, "num_classes must be a whole number"),
        ([0], [0], {"class_names": ["a", "a"]}, "class_names holds a name twice"),
        ([0], [0], {"class_names": ["a", "b"], "num_classes": 3}, "class_names has 2 names, but num_classes is 3"),
    ],
)
def test_data_sets_that_contradict_each_other_are_refused(train, test, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        agreed(stated(train), stated(test), settings.get("num_classes"), settings.get("class_names", ()))


def test_the_same_number_must_have_the_same_name():
    cats, dogs = (Stated("numbers", torch.tensor([0, 1]), names) for names in (("cat", "dog"), ("dog", "cat")))
    with pytest.raises(ConfigurationError, match=r"called \['cat', 'dog'\] in the training data, but \['dog', 'cat'\]"):
        agreed(cats, dogs, None)
    assert agreed(cats, dogs, None, ["x", "y"])[3] == ("x", "y")  # the user's word
