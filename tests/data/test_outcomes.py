"""What a task asks for: how targets are read and checked, and when a prediction is right."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fl_lightning.data import ByKey, Dirichlet, FederatedDataModule, MapSamples, RootSet, Shards, TensorSamples
from fl_lightning.data.outcomes import Classes, Tokens
from fl_lightning.data.vectors import MultiLabel, Regression
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import WordLSTM


def accepts(probabilities):
    return torch.ones(len(probabilities), dtype=torch.bool)


def logits_of(classes, number):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), number) * 3.0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 9))
def test_token_hits_are_those_of_each_position_but_padding(rows, seed):
    outcome = Tokens(padding=0)
    targets = outcome.read(rows, "here")
    predicted = torch.randint(0, 5, targets.shape, generator=torch.Generator().manual_seed(seed))
    judged = outcome.judge(logits_of(predicted, 5), targets, accepts)
    expected = [
        [position < len(row) and row[position] != 0 and row[position] == int(guess) for position, guess in enumerate(guesses)]
        for row, guesses in zip(rows, predicted, strict=True)
    ]
    assert judged.hits.tolist() == expected
    assert int(judged.counted.sum()) == sum(token != 0 for row in rows for token in row)
    held = [row for row in rows if any(row)]
    if held:
        last = [[token for token in row if token][-1] for row in held]
        assert outcome.classes(outcome.read(held, "here")).tolist() == last


def test_a_position_without_a_number_is_no_prediction():
    outcome, targets = Tokens(padding=0), torch.tensor([[1, 2, 0]])
    logits = logits_of([[1, 2, 0]], 3)
    logits[0, 1:] = torch.nan
    judged = outcome.judge(logits, targets, accepts)
    assert judged.hits.tolist() == [[True, False, False]]
    assert judged.undefined.tolist() == [[False, True, False]]  # padding is asked for nothing


def test_of_several_labels_all_must_be_right():
    targets = MultiLabel().read([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], "here")
    output = torch.tensor([[2.0, -1, 0.1], [-1, -2, -3], [1, 1, -1], [-1, math.nan, -1]])
    judged = MultiLabel().judge(output, targets, accepts)
    assert judged.hits.tolist() == [True, True, False, False]
    assert judged.undefined.tolist() == [False, False, False, True]
    hits, classes = MultiLabel().by_class(output, targets, judged.hits, judged.counted)
    shares = [hits[classes == label].double().mean().item() for label in range(3)]
    assert shares == [1.0, 0.75, 0.75]


def test_numbers_are_hit_within_the_tolerance():
    outcome = Regression(tolerance=0.25)
    targets = outcome.read(np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 5.0]]), "here")
    output = torch.tensor([[0.25, 0.75], [0.0, 1.5], [math.inf, 5.0]])
    judged = outcome.judge(output, targets, accepts)
    assert judged.hits.tolist() == [True, False, False]
    assert judged.undefined.tolist() == [False, False, True]
    one = Regression(tolerance=1.0)
    assert one.judge(torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 1.0]), accepts).hits.tolist() == [True, False]


@pytest.mark.parametrize(
    ("outcome", "targets", "message"),
    [
        (Tokens(), torch.zeros(3), r"torch.float32 of shape \(3,\), but there must be a whole number at every position"),
        (Tokens(), [[1], ["a"]], "are no rows of whole numbers"),
        (MultiLabel(), [[1, 2], [0, 1]], r"must be rows of 0 and 1.* with other numbers"),
        (MultiLabel(), [1, 0], r"must be rows of 0 and 1.*got shape \(2,\)"),
        (MultiLabel(), [[1], [1, 0]], "are no numbers of one shape"),
        (Regression(), [1.0, math.nan], "must be finite real numbers.*some that are not finite"),
        (Regression(), torch.zeros(2, 2, 2), r"got shape \(2, 2, 2\)"),
        (Tokens(), torch.zeros(2, 0, dtype=torch.int64), r"have shape \(2, 0\), so that nothing is asked for"),
        (Regression(), torch.zeros(2, 0), r"have shape \(2, 0\), so that nothing is asked for"),
        (MultiLabel(), torch.zeros(2, 0), r"have shape \(2, 0\), so that nothing is asked for"),
    ],
)
def test_targets_of_another_kind_are_refused(outcome, targets, message):
    with pytest.raises(ConfigurationError, match=f"(?s)the targets in here.*{message}"):
        outcome.read(targets, "here")


@pytest.mark.parametrize(
    ("outcome", "targets", "classes", "message"),
    [
        (Tokens(padding=0), [[1, 2], [0, 0]], 3, r"sample 1 of the test data has nothing but padding \(0\)"),
        (Tokens(), [[1, 3]], 3, "labels from 1 to 3, but the task has 3 classes"),
        (MultiLabel(), [[1, 0]], 3, "state 2 labels per sample, but the task has 3"),
        (Regression(), [1.0], 1, "1 samples of 1 numbers, but R2 needs two samples"),
        (Regression(), [[1.0, 2.0], [3.0, 2.0]], 2, "all 2 samples of the test data have the same number as target"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(outcome, targets, classes, message):
    with pytest.raises(ConfigurationError, match=message):
        outcome.check(outcome.read(targets, "here"), classes, "test")


@pytest.mark.parametrize(
    ("outcome", "output", "targets", "message"),
    [
        (Tokens(), (2, 5), [[0, 1], [1, 0]], r"shape \(2, 5\) for 2 samples of 2 positions.*logits \(b, 2, V\) with V >= 3"),
        (Tokens(), (2, 2, 2), [[0, 1], [1, 0]], r"one of 3 classes at every position"),
        (MultiLabel(), (2, 2), [[0, 1, 1], [1, 0, 1]], r"the task has 3 labels; it must give a logit for each, \(b, 3\)"),
        (Regression(), (2, 2), [0.0, 1.0], r"asks for 3 numbers each"),
        (Classes(), (2, 2), [0, 1], r"logits \(b, C\) with C >= 3"),
    ],
)
def test_outputs_that_cannot_be_judged_are_refused(outcome, output, targets, message):
    with pytest.raises(ConfigurationError, match=f"the client gives an output of {message}|the client gives.*{message}"):
        outcome.check_output(torch.zeros(output), outcome.read(targets, "here"), 3, "the client")


def test_padding_counts_for_nothing_in_the_loss():
    torch.manual_seed(0)
    model = WordLSTM(num_words=7, dimension=4, hidden=4, dropout=0.0)
    inputs, targets = torch.randint(2, 7, (3, 5)), torch.randint(2, 7, (3, 5))
    targets[:, 3:] = 0
    expected = cross_entropy(model(inputs)[:, :3].reshape(9, 7), targets[:, :3].reshape(9))
    torch.testing.assert_close(model.training_step((inputs, targets), 0), expected)


ROWS: Any = [[1, 2, 0], [2, 2, 2], [1, 0, 0], [2, 1, 1]]


def test_any_data_set_may_ask_for_several_labels_or_numbers():
    pairs: Any = [(torch.full((2,), float(i)), [i % 2, 1]) for i in range(6)]
    data = FederatedDataModule.from_datasets(pairs, pairs, partition=ByKey(), keys=[0, 0, 1, 1, 2, 2], outcome=MultiLabel())
    data.setup("fit")
    assert (data.load().num_classes, len(data.clients)) == (2, 3)
    assert data.train.batch(torch.tensor([3, 0]))[1].tolist() == [[1, 1], [0, 1]]
    numbers: Any = [(torch.zeros(2), float(i)) for i in range(6)]
    made = FederatedDataModule.from_datasets(numbers, numbers, partition=ByKey(), keys=[0] * 6, outcome=Regression())
    made.setup("fit")
    assert made.train.targets.dtype == torch.float32
    assert next(iter(made.val_dataloader()[0]))[1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    joined = MapSamples([(torch.zeros(2), row) for row in ROWS], collate_fn=stacked, outcome=Tokens(padding=0))
    assert joined.batch(torch.tensor([2, 1]))[1].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert joined.subset(torch.tensor([3])).relabel(torch.tensor([[5, 5, 5]])).targets.tolist() == [[5, 5, 5]]


def stacked(samples):
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def test_samples_say_themselves_what_is_asked_for():
    samples = TensorSamples(torch.zeros(4, 3), ROWS, outcome=Tokens(padding=0))
    data = FederatedDataModule.from_datasets(samples, samples, partition=[[0, 1], [2, 3]])
    data.setup("fit")
    assert data.outcome == Tokens(padding=0)
    assert data.load().num_classes == 3
    other = TensorSamples(torch.zeros(4, 3), torch.ones(4, 1).long(), outcome=Tokens(padding=0))
    with pytest.raises(ConfigurationError, match=r"the test data are Samples that ask for Classes\(\), but outcome is Tokens"):
        FederatedDataModule.from_datasets(other, TensorSamples(torch.zeros(1, 3), torch.tensor([1])), partition=ByKey())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": Dirichlet(num_clients=2, min_samples=1)}, "data.partition is Dirichlet, which deals by class"),
        ({"partition": Shards(num_clients=2)}, "data.partition is Shards, which deals by class"),
        ({"partition": ByKey(), "root": RootSet(samples=1, biased_class=1)}, "data.root.biased_class is 1, but the task asks"),
        ({"partition": ByKey(), "test_keys": [0, 1]}, "test_keys must be one per test sample, got 2 for 4"),
    ],
)
def test_what_needs_one_class_per_sample_is_refused(settings, message):
    samples = TensorSamples(torch.zeros(4, 3), ROWS, outcome=Tokens(padding=0))
    with pytest.raises(ConfigurationError, match=message):
        FederatedDataModule.from_datasets(samples, samples, keys=[0, 0, 1, 1], **settings).setup("fit")


def test_an_outcome_is_one():
    pairs: Any = [(1, 2)]
    name: Any = "tokens"
    with pytest.raises(ConfigurationError, match=r"outcome must be one such as Tokens\(\).*got 'tokens'"):
        FederatedDataModule.from_datasets(pairs, pairs, partition=ByKey(), outcome=name)
    with pytest.raises(ConfigurationError, match=r"Regression.tolerance must be more than 0 and finite, got 0"):
        Regression(tolerance=0)


@pytest.mark.parametrize("padding", [True, 1.5, "0"])
def test_padding_is_a_whole_number(padding):
    with pytest.raises(ConfigurationError, match=r"Tokens\.padding must be a whole number"):
        Tokens(padding=padding)
    with pytest.raises(ConfigurationError, match=r"Tokens: perplexity must be True or False, got 'no'"):
        Tokens(perplexity=cast("bool", "no"))


def test_padding_is_no_class():
    assert Tokens(padding=99).count(torch.tensor([[1, 4, 99], [2, 99, 99]])) == 5
    with pytest.raises(ConfigurationError, match="sample 0 of the training data has nothing but padding"):
        FederatedDataModule.from_datasets(
            *[torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.full((4, 2), -100))] * 2,
            partition=ByKey(),
            keys=[0, 0, 1, 1],
            outcome=Tokens(),
        ).setup("fit")


def test_outputs_that_are_not_of_all_positions_are_told_what_to_do():
    with pytest.raises(ConfigurationError, match=r"must give logits \(b, 8, V\) with V >= 3: pad all inputs to 8 positions"):
        Tokens(padding=0).check_output(torch.zeros(2, 7, 3), torch.ones(2, 8).long(), 3, "the client Net")
    with pytest.raises(ConfigurationError, match=r"with V >= 3: give output\.transpose\(1, 2\), as classes come last"):
        Tokens(padding=0).check_output(torch.zeros(2, 3, 8), torch.ones(2, 8).long(), 3, "the client Net")
    with pytest.raises(ConfigurationError, match=r"with V >= 3$"):
        Tokens(padding=0).check_output(torch.zeros(2, 9, 2), torch.ones(2, 8).long(), 3, "the client Net")
