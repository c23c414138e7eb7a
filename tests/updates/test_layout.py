"""Modules as flat vectors: what is in them, in what order, and that the way back changes nothing else."""

import pytest
import torch
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.copying import copy_each
from fl_lightning.updates.layout import (
    Layout,
    Snapshot,
    buffer_layout,
    clamp_variances,
    parameter_layout,
)


class Mixed(nn.Module):
    """Tied and frozen parameters, and every kind of buffer."""

    averages: Tensor
    counter: Tensor
    scratch: Tensor
    phase: Tensor
    flags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3, bias=False)
        self.second = nn.Linear(2, 3, bias=False)
        self.second.weight = self.first.weight  # tied
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Parameter(torch.tensor(5.0))  # a scalar
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("averages", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        self.register_buffer("counter", torch.tensor([7, 8]))
        self.register_buffer("scratch", torch.tensor([9.0]), persistent=False)
        self.register_buffer("phase", torch.tensor([1j]))
        self.register_buffer("flags", torch.tensor([True, False]))


def everything(module: nn.Module) -> dict[str, Tensor]:
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in everything(module).items() if not torch.equal(tensor, before[name])}


def test_parameters_are_trainable_ones_once_in_module_order() -> None:
    layout = parameter_layout(Mixed())
    assert layout.names == ["last", "first.weight", "norm.weight", "norm.bias"]
    assert layout.sizes == [1, 6, 2, 2]
    assert layout.num_coordinates == 11


def test_buffers_are_floating_ones_that_a_checkpoint_holds() -> None:
    layout = buffer_layout(Mixed())
    assert layout.names == ["averages", "norm.running_mean", "norm.running_var"]
    assert layout.sizes == [4, 2, 2]
    assert layout.num_coordinates == 8


def test_no_buffers_where_nothing_is_asked_for() -> None:
    module = Mixed()
    layout = buffer_layout(module, nothing=True)
    assert (layout.names, layout.sizes, layout.num_coordinates) == ([], [], 0)
    assert layout.flatten(module).shape == (0,)
    layout.load(module, torch.empty(0))


@pytest.mark.parametrize("take", [parameter_layout, buffer_layout])
def test_flatten_and_load_are_inverse(take) -> None:
    module = Mixed()
    layout: Layout = take(module)
    before = everything(module)
    vector = layout.flatten(module)
    assert vector.dtype == torch.float32
    assert not vector.requires_grad
    assert torch.equal(vector, torch.cat([before[name].reshape(-1) for name in layout.names]))

    other = torch.arange(layout.num_coordinates) + 100.0
    layout.load(module, other)
    assert torch.equal(layout.flatten(module), other)
    assert changed(module, before) == set(layout.names)
    layout.load(module, vector)
    assert changed(module, before) == set()


def test_tied_parameters_stay_tied() -> None:
    module = Mixed()
    layout = parameter_layout(module)
    layout.load(module, torch.arange(11.0))
    assert module.second.weight is module.first.weight
    assert torch.equal(module.second.weight, torch.arange(1.0, 7.0).view(3, 2))


def test_values_are_read_into_views_and_do_not_share_memory() -> None:
    module = Mixed()
    layout = parameter_layout(module)
    room = torch.full((20,), -1.0)
    pieces = layout.pieces(room[:11])
    copy_each(pieces, layout.tensors(module))
    assert [piece.shape for piece in pieces] == layout.shapes
    assert torch.equal(room[:11], layout.flatten(module))
    assert (room[11:] == -1).all()
    before = everything(module)
    room.zero_()
    assert changed(module, before) == set()


def test_a_vector_of_the_wrong_length_is_refused() -> None:
    module = Mixed()
    with pytest.raises(RuntimeError):
        parameter_layout(module).load(module, torch.zeros(12))


def test_layout_fits_any_module_of_the_same_kind() -> None:
    first, second = Mixed(), Mixed()
    layout = parameter_layout(first)
    with torch.no_grad():
        second.first.weight.add_(1)
    layout.load(first, layout.flatten(second))
    assert torch.equal(first.first.weight, second.first.weight)


def test_transposed_parameters() -> None:
    module = nn.ParameterList([torch.arange(6.0).view(2, 3).T])  # not contiguous
    layout = parameter_layout(module)
    vector = layout.flatten(module)
    assert vector.tolist() == [0, 3, 1, 4, 2, 5]
    layout.load(module, vector + 1)
    assert torch.equal(module[0], torch.arange(6.0).view(2, 3).T + 1)


def test_a_snapshot_restores_everything_in_its_own_type() -> None:
    module = Mixed()
    module.register_parameter("third", nn.Parameter(torch.ones(2, dtype=torch.float64) / 3, requires_grad=False))
    before = everything(module)
    third = module.get_parameter("third").clone()
    snapshot = Snapshot(module)
    for _ in range(2):
        module.norm.train()
        module.norm(torch.randn(4, 2))
        module.counter += 1
        module.flags[:] = True
        module.phase *= 2
        module.scratch = torch.tensor([-1.0])  # replaced, not written into
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 1
        snapshot.restore(module)
        assert changed(module, before) == set()
        assert torch.equal(module.get_parameter("third"), third)  # to the last of 64 bits


def test_buffers_may_be_replaced_while_training() -> None:
    module = Mixed()
    layout = buffer_layout(module)
    module.averages = torch.zeros(2, 2)
    assert torch.equal(layout.flatten(module)[:4], torch.zeros(4))
    layout.load(module, torch.ones(8))
    assert torch.equal(module.averages, torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_pass_through_float32(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(dtype)
    for layout in (parameter_layout(module), buffer_layout(module)):
        vector = layout.flatten(module)
        assert vector.dtype == torch.float32
        layout.load(module, vector + 1)
        assert all(tensor.dtype == dtype for tensor in layout.tensors(module))
        torch.testing.assert_close(layout.flatten(module), (vector + 1).to(dtype).float(), rtol=0, atol=0)
    layout = parameter_layout(module)
    layout.load_gradients(module, torch.arange(10.0))
    assert all(p.grad is not None and p.grad.dtype == dtype for p in module.parameters())


def test_gradients_reach_exactly_the_parameters_of_the_layout() -> None:
    module = Mixed()
    layout = parameter_layout(module)
    before = everything(module)
    layout.load_gradients(module, torch.arange(11.0))
    assert changed(module, before) == set()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert list(gradients) == layout.names
    assert all(gradients[name].shape == before[name].shape for name in layout.names)
    assert torch.equal(torch.cat([gradients[name].reshape(-1) for name in layout.names]), torch.arange(11.0))

    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0).step()
    assert changed(module, before) == {"first.weight", "norm.weight", "norm.bias"}  # `last` has gradient 0
    assert torch.equal(module.first.weight, before["first.weight"] - torch.arange(1.0, 7.0).view(3, 2))


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BatchNorm1d has no trainable parameter"):
        parameter_layout(nn.BatchNorm1d(2, affine=False))
    with pytest.raises(ConfigurationError, match="Linear has no trainable parameter"):
        parameter_layout(nn.Linear(2, 2).requires_grad_(False))


def test_complex_parameters_are_refused_by_name() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigurationError, match=r"1\.weight has dtype torch\.complex64"):
        parameter_layout(module)
    module[1].requires_grad_(False)
    assert parameter_layout(module).num_coordinates == 6  # frozen, so nobody's business


def test_clamp_variances() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2, track_running_stats=False)))
    one, two = module.get_submodule("0"), module.get_submodule("1.0")
    assert isinstance(one, nn.BatchNorm1d)
    assert isinstance(two, nn.BatchNorm2d)
    assert one.running_var is not None
    assert two.running_var is not None
    assert one.running_mean is not None
    one.running_var.copy_(torch.tensor([-1e-9, 0.0, 2.0]))
    two.running_var.copy_(torch.tensor([-3.0, 1e-9]))
    one.running_mean.fill_(-1)
    before = everything(module)
    clamp_variances(module)
    assert one.running_var.tolist() == [0, 0, 2]
    assert torch.equal(two.running_var, torch.tensor([0, 1e-9]))
    assert changed(module, before) == {"0.running_var", "1.0.running_var"}
