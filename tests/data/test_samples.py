from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from fl_lightning.data import MapSamples, TensorSamples, join
from fl_lightning.data.base import SMALL_BYTES
from fl_lightning.errors import ConfigurationError


class Pairs(Dataset):
    def __init__(self, n: int = 6) -> None:
        self.reads = 0
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return torch.full((2,), float(index)), index % 3


class Entries(Pairs):
    def __getitem__(self, index: int) -> Any:
        return {"text": torch.full((2,), float(index)), "label": index % 3}


def tensors(n: int = 6, **kwargs) -> TensorSamples:
    return TensorSamples(torch.arange(n * 2.0).view(n, 2), torch.arange(n) % 3, **kwargs)


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


class TestTensorSamples:
    def test_batch_augments_in_training_only_and_prepares_always(self):
        def augment(x, generator):
            return x + torch.randint(100, 200, (1,), generator=generator)

        data = tensors(augment=augment, prepare=lambda x: -x)
        plain, targets = data.batch(numbers(4, 1))
        assert plain.tolist() == [[-8, -9], [-2, -3]]
        assert targets.tolist() == [1, 1]
        augmented, _ = data.batch(numbers(4, 1), torch.Generator().manual_seed(0))
        assert (augmented < -100).all()
        assert torch.equal(augmented, data.batch(numbers(4, 1), torch.Generator().manual_seed(0))[0])

    @pytest.mark.parametrize("kind", ["plain", "prepared", "large", "augmented", "stamped", "of a class of its own"])
    def test_batches_are_those_that_batch_gives(self, kind: str):
        class Reversed(TensorSamples):
            def batch(self, indices, generator=None):
                return super().batch(indices.flip(0), generator)

        def shift(x, generator):
            return x + torch.randint(100, 200, (1,), generator=generator)

        given = {"prepared": {"prepare": lambda x: -x}, "augmented": {"augment": shift}}.get(kind, {})
        data = tensors(40, **given)
        if kind == "large":
            data = data.with_inputs(torch.rand(40, SMALL_BYTES // 60))
        if kind == "stamped":
            data = data.stamped(lambda x: x * 0, torch.arange(40) % 2 == 0)
        if kind == "of a class of its own":
            data = Reversed(data.inputs, data.targets)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        sizes = [7, 7, 7, 12]  # some samples are left
        draws = torch.Generator().manual_seed(0)
        expected = [data.batch(indices, draws) for indices in order[:33].split(sizes)]
        found = list(data.batches(order, sizes, torch.Generator().manual_seed(0)))
        for a, b in zip(found, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert list(data.batches(order, [])) == []

    def test_small_batches_are_read_together(self):
        seen = []
        data = tensors(40, prepare=lambda x: seen.append(len(x)) or x)
        batches = data.batches(torch.arange(40), [10] * 4)
        assert len(next(batches)[0]) == 10
        assert seen == [40]

    def test_subset_relabel_and_inputs_leave_the_original_alone(self):
        data = tensors()
        part = data.subset(numbers(5, 5, 0))
        assert part.inputs.tolist() == [[10, 11], [10, 11], [0, 1]]
        assert part.relabel(numbers(7, 8, 9)).targets.tolist() == [7, 8, 9]
        assert part.with_inputs(torch.zeros(3, 2)).targets.tolist() == [2, 2, 0]
        assert data.targets.tolist() == [0, 1, 2, 0, 1, 2]

    def test_what_reads_through_has_inputs_of_its_own_once_they_are_asked_for(self):
        data = tensors(6).stamped(lambda x: x + 100, mask(6, 3))
        part = data.read_through(numbers(5, 4, 3)).read_through(numbers(2, 0))
        batch = part.batch(numbers(1, 0, 1))
        assert part._inputs is data._inputs
        assert data.subset(numbers(5, 4))._inputs is not data._inputs
        assert torch.equal(part.inputs, data.inputs[[3, 5]])
        assert part._inputs is not data._inputs
        assert all(torch.equal(a, b) for a, b in zip(part.batch(numbers(1, 0, 1)), batch, strict=True))
        assert torch.equal(batch[0], data.batch(numbers(5, 3, 5))[0])

    def test_a_subset_of_all_is_no_copy(self):
        data = tensors()
        assert data.subset(torch.arange(6)) is data
        assert data.subset(torch.arange(5)) is not data
        assert data.subset(numbers(1, 0, 2, 3, 4, 5)) is not data

    def test_one_sample_has_no_batch_axis(self):
        inputs, target = tensors()[3]
        assert inputs.tolist() == [6, 7]
        assert int(target) == 0

    def test_lengths_must_agree(self):
        with pytest.raises(ConfigurationError, match="got 3 and 2"):
            TensorSamples(torch.zeros(3, 1), torch.zeros(2))


def add(amount: float):
    """A stamp."""
    return lambda inputs: inputs + amount


def mask(n: int, *carriers: int) -> torch.Tensor:
    return torch.isin(torch.arange(n), torch.tensor(carriers))


def first_column(samples: Any) -> list[float]:
    return samples.batch(torch.arange(len(samples)))[0][:, 0].tolist()


class TestStamps:
    def test_come_after_augmentation_and_before_preparation(self):
        def augment(x, generator):
            return x + 100

        def stamp(x):
            return torch.cat([torch.full_like(x[:, :1], 7.0), x[:, 1:]], dim=1)

        data = tensors(4, augment=augment, prepare=lambda x: -x).stamped(stamp, mask(4, 1, 3))
        inputs, targets = data.batch(torch.arange(4), torch.Generator())
        assert inputs.tolist() == [[-100, -101], [-7, -103], [-104, -105], [-7, -107]]
        assert data.batch(numbers(3))[0].tolist() == [[-7, -7]]
        assert targets.tolist() == [0, 1, 2, 0]

    def test_stay_with_their_samples(self):
        data = tensors().stamped(add(100), mask(6, 1, 4))
        assert first_column(data) == [0, 102, 4, 6, 108, 10]
        part = data.subset(numbers(4, 0, 4, 1))
        assert first_column(part) == [108, 0, 108, 102]
        assert first_column(part.relabel(numbers(1, 1, 1, 1))) == [108, 0, 108, 102]
        assert first_column(part.with_inputs(torch.zeros(4, 2))) == [100, 0, 100, 100]
        assert first_column(part.to(torch.device("cpu"))) == [108, 0, 108, 102]
        assert [float(part[i][0][0]) for i in range(4)] == [108, 0, 108, 102]

    def test_leave_the_original_alone_and_write_on_top_of_each_other(self):
        data = tensors(3)
        twice = data.stamped(add(100), mask(3, 0, 1)).stamped(lambda x: x * 2, mask(3, 1, 2))
        assert first_column(twice) == [100, 204, 8]
        assert first_column(data) == [0, 2, 4]

    def test_are_joined(self):
        stamp = add(100)
        one, other = (
            tensors(2).stamped(stamp, mask(2, 0)),
            tensors(3).stamped(stamp, mask(3, 1)).stamped(add(50), mask(3, 1, 2)),
        )
        both = join([one, tensors(1), other, one])
        assert isinstance(both, TensorSamples)
        assert first_column(both) == [100, 2, 0, 0, 152, 54, 100, 2]
        assert first_column(both.subset(numbers(4, 6, 3))) == [152, 100, 0]

    def test_are_kept_where_samples_are_collated_one_by_one(self):
        both = join([tensors(2).stamped(add(100), mask(2, 1)), MapSamples(Pairs(3))])
        assert first_column(both) == [0, 102, 0, 1, 2]

    def test_may_change_during_a_run(self):
        """As where an attack improves its trigger from round to round."""
        pattern = torch.zeros(2)
        data = join([tensors(1), tensors(2).stamped(lambda x: x + pattern, mask(2, 1))]).subset(numbers(2, 1))
        assert first_column(data) == [2, 0]
        pattern[0] = 5
        assert first_column(data) == [7, 0]

    def test_keep_the_bytes_of_images(self):
        images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
        data = TensorSamples(images, numbers(0, 1)).stamped(lambda x: torch.full_like(x, 255), mask(2, 1))
        inputs, _ = data.batch(numbers(0, 1))
        assert inputs.dtype == torch.uint8
        assert torch.equal(inputs[0], images[0])
        assert (inputs[1] == 255).all()

    @pytest.mark.parametrize("rows", [mask(3, 1), torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    def test_need_one_bool_per_sample(self, rows):
        with pytest.raises(ConfigurationError, match="stamps need one bool per sample, so 2"):
            tensors(2).stamped(add(1), rows)

    @given(st.data())
    def test_whatever_is_done_to_samples_they_keep_what_they_carry(self, data):
        """Against a list of numbers to which the same is done one by one; a stamp adds its own power of two."""
        samples, expected = tensors(3), [0.0, 2.0, 4.0]
        for step in range(data.draw(st.integers(1, 6))):
            n, what = len(expected), data.draw(st.sampled_from(["stamp", "subset", "join", "relabel"]))
            if what == "stamp":
                carriers = data.draw(st.sets(st.integers(0, n - 1)))
                samples = samples.stamped(add(2.0 ** (step + 3)), mask(n, *carriers))
                expected = [x + 2.0 ** (step + 3) * (i in carriers) for i, x in enumerate(expected)]
            elif what == "subset":
                chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
                samples, expected = samples.subset(torch.tensor(chosen)), [expected[i] for i in chosen]
            elif what == "join":
                samples, expected = join([samples, tensors(2), samples]), [*expected, 0.0, 2.0, *expected]
                assert isinstance(samples, TensorSamples)
            else:
                samples = samples.relabel(torch.zeros(n))
        assert first_column(samples) == expected


def test_names_of_features_stay_with_the_table():
    data = tensors(feature_names=["a", "b"])
    for other in (data.subset(numbers(1)), data.relabel(data.targets), join([data, data]), data.stamped(add(1), mask(6, 1))):
        assert isinstance(other, TensorSamples)
        assert other.feature_names == ["a", "b"]
    assert tensors().feature_names is None


class TestMapSamples:
    def test_pairs_are_collated(self):
        inputs, targets = MapSamples(Pairs()).batch(numbers(4, 0))
        assert inputs.tolist() == [[4, 4], [0, 0]]
        assert targets.tolist() == [1, 0]

    def test_mappings_keep_their_entries(self):
        data = MapSamples(Entries()).subset(numbers(5, 3, 1)).relabel(numbers(9, 8, 7))
        batch = data.batch(numbers(2, 0))
        assert batch["label"].tolist() == [7, 9]
        assert batch["text"].tolist() == [[1, 1], [5, 5]]

    def test_subset_of_subset_and_relabel(self):
        data = MapSamples(Pairs()).subset(numbers(5, 4, 3)).subset(numbers(2, 0))
        assert data.targets.tolist() == [0, 2]
        assert data.relabel(numbers(1, 1)).batch(numbers(0, 1))[1].tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            ([], "the given data set is empty"),
            ([{"text": 1}], r"entries text, none of which is the class"),
            ([(1, 2, 3)], r"samples have 3 parts \(int, int, int\), not two; say which is the class with target_key="),
            ([{"label": 1, "y": 2}], "of which any of label, y may be the class"),
            ([7], "got int"),
        ],
    )
    def test_other_samples_are_refused(self, dataset, message):
        with pytest.raises(ConfigurationError, match=message):
            MapSamples(dataset)


class TestJoin:
    def test_alike_tensors_become_one_tensor(self):
        both = join([tensors(2), tensors(3)])
        assert isinstance(both, TensorSamples)
        assert both.targets.tolist() == [0, 1, 0, 1, 2]

    @pytest.mark.parametrize("other", [MapSamples(Pairs(3)), tensors(3, prepare=lambda x: x + 1)])
    def test_unlike_samples_are_collated(self, other):
        both = join([tensors(2), other])
        inputs, targets = both.batch(numbers(1, 3))
        assert inputs.shape == (2, 2)
        assert targets.tolist() == [1, 1]
        assert both.subset(numbers(4)).relabel(numbers(2)).batch(numbers(0))[1].tolist() == [2]

    def test_empty_parts_vanish(self):
        assert len(join([tensors(2).subset(torch.empty(0, dtype=torch.int64)), tensors(3)])) == 3
