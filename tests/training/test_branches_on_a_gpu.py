"""Clients side by side in one CUDA graph: acted out on a CPU, and on a GPU."""

from typing import Any

import pytest
import torch
from branched_clients import Net, assert_same, by, in_turn, ragged, rng, samples, sent, side_by_side
from cuda_graphs import Graph, act_out

from fl_lightning import LocalTraining
from fl_lightning.models import CNN, MLP
from fl_lightning.training import recorded_steps
from fl_lightning.training.branched_training import BranchedTraining
from fl_lightning.training.flat_state import look
from fl_lightning.updates.layout import Snapshot, parameter_layout


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    return act_out(monkeypatch)


def test_a_cuda_graph_holds_a_branch_for_each_client(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8, branches=3), ragged(), rounds=4)
    assert max(len(graph.calls) for graph in graphs) == 3
    for graph in graphs:
        count = len(graph.calls)
        assert len(set(graph.streams)) == count
        assert len({places[0].data_ptr() for _, places, _ in graph.calls}) == count, "clients share weights"
        if count > 1:  # all branch off from the stream of the capture, which waits for all of them in the end
            assert graph.forked
            assert graph.joined == graph.streams


def test_clients_that_are_alone_in_a_kind_of_step_share_its_cuda_graph(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    training = assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8, branches=3), ragged(), rounds=5)
    alone = [graph for graph in graphs if len(graph.calls) == 1]
    assert len(alone) > 1
    for graph in alone:
        ((_, tensors, _),) = graph.calls
        assert tensors[0] is training.alone[0]
    kinds = [tuple(look(tensor) for tensor in graph.calls[0][1]) for graph in alone]
    assert len(set(kinds)) == len(kinds), "a kind was recorded twice"


CHANGING = (56, 35, 56, 11, 35, 56, 35)
"""Batches of eight: the three of 35 end with a batch of three, while those of 56 in the seats before theirs go on."""


def test_a_cuda_graph_of_several_clients_is_one_of_the_first_seats(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = BranchedTraining._to_the_front, []

    def to_the_front(self: BranchedTraining, seats: Any, places: list[int]) -> list[int]:
        moved.append(places != list(range(len(places))))
        return real(self, seats, places)

    monkeypatch.setattr(BranchedTraining, "_to_the_front", to_the_front)
    torch.manual_seed(0)
    clients = [samples(n, seed=i) for i, n in enumerate(CHANGING)]
    training = assert_same(Net(), LocalTraining(batch_size=8, branches=5), clients, rounds=4)
    assert any(moved)
    several = [graph for graph in graphs if len(graph.calls) > 1]
    for graph in several:
        assert all(tensors[0] is training.states[b][0] for b, (_, tensors, _) in enumerate(graph.calls))
    kinds = [(len(graph.calls), tuple(look(tensor) for tensor in graph.calls[0][1])) for graph in several]
    assert len(set(kinds)) == len(kinds), "a kind was recorded twice"


def test_those_who_change_seats_keep_their_learning_rates(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    clients = [samples(n, seed=i) for i, n in enumerate(CHANGING)]
    assert_same(Net(configure=by("step")), LocalTraining(batch_size=8, branches=5), clients, rounds=4)
    assert graphs


def test_one_client_is_a_cuda_graph_without_branches(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    module, local = Net(), LocalTraining(epochs=2.0, batch_size=8)
    expected = in_turn(module, local, ragged())
    stepper, start = recorded_steps.RecordedSteps(module, local), Snapshot(module)
    for i, data in enumerate(ragged()):
        logs = local.train(module, data, rng(i), stepper=stepper)
        assert all(torch.equal(x, y) for x, y in zip(expected[i][0], sent(module), strict=True))
        assert logs == expected[i][1]
        start.restore(module)
    assert graphs
    assert {len(graph.calls) for graph in graphs} == {1}
    assert parameter_layout(module).num_coordinates > 0


def test_a_buffer_that_comes_later_finds_room() -> None:
    torch.manual_seed(0)
    module: Any = MLP(sizes=(6, 16, 3))
    local, clients = LocalTraining(batch_size=8, branches=3), ragged()
    training = BranchedTraining(module, local)
    side_by_side(training, clients)
    module.register_buffer("late", torch.ones(5))
    for (a, _), (b, _) in zip(in_turn(module, local, clients), side_by_side(training, clients), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_branches_of_a_cuda_graph_give_the_same_bits() -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.manual_seed(0)
    module = CNN(image_size=8, channels=[4, 6], hidden=8).cuda()
    images = [samples(n, (3, 8, 8), seed=i).to(torch.device("cuda")) for i, n in enumerate((*CHANGING, 41, 24))]
    training = assert_same(module, LocalTraining(batch_size=8, branches=5), images, rounds=4)
    assert training.steps.recordings
