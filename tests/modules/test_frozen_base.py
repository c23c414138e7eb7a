"""A frozen base: held once, neither copied nor saved nor sent, and the same one after a resume."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from killed import KillAt, KilledError
from ranks import on_ranks
from tiny import CLASSES, FEATURES, fit, tiny_data, tiny_federation
from torch import nn

import fl_lightning.updates.exchange as exchange_file
from fl_lightning import CohortSampler, ConfigurationError, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.models import Classifier
from fl_lightning.modules.frozen_base import SHA256, FrozenBase, base_bytes
from fl_lightning.modules.undisturbed import Keepsake
from fl_lightning.updates.layout import Snapshot, named_state

WIDTH = 64
TRAINED = (WIDTH + 1) * CLASSES
COHORT = CohortSampler(clients_per_round=7, malicious_fraction=0.0)


class Headed(FrozenBase, Classifier):
    """A frozen layer, and a head that is trained."""

    def __init__(self, seed: int = 0, *, harm: str = "") -> None:
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        self.harm = harm
        self.body, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for parameter in self.body.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
                parameter.requires_grad_(False)
        self.freeze_base()

    def forward(self, inputs):
        return self.head(torch.tanh(self.body(inputs)))

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            if self.harm == "in place":
                self.body.bias.add_(1)
            elif self.harm == "behind the back":
                self.body.bias.data.add_(1)
        return super().training_step(batch, batch_idx)


def federation(**given: Any) -> Federation:
    torch.manual_seed(0)
    client = Headed(**given)
    return tiny_federation(client=client, aggregator=FedAvg(), attacks=[], cohort=COHORT, local=LocalTraining(batch_size=8))


def ended(**given: Any) -> str:
    """The digest of the weights after three rounds."""
    run = federation(**given)
    fit(run, tiny_data())
    return weights_sha256(run)


def test_state_has_a_digest_in_its_place():
    module = Headed()
    assert set(module.state_dict()) == {SHA256, "head.weight", "head.bias"}
    assert set(nn.ModuleDict({"a": module}).state_dict()) == {f"a.{SHA256}", "a.head.weight", "a.head.bias"}
    assert {name for name, _ in named_state(module)} == {SHA256, "head.weight", "head.bias"}
    assert base_bytes(module) == 4 * WIDTH * (FEATURES + 1)
    assert len(Snapshot(module)) == 3
    assert sum(values.numel() for values in Keepsake(module).values.values()) == TRAINED + len(module.base_sha256)


@pytest.mark.parametrize("nested", [False, True])
def test_weights_of_another_base_are_refused(nested):
    def around(module: nn.Module) -> nn.Module:
        return nn.ModuleDict({"a": module}) if nested else module

    module, same, other = Headed(), Headed(), Headed(seed=1)
    with torch.no_grad():
        module.head.bias.fill_(7)
    around(same).load_state_dict(around(module).state_dict())
    assert torch.equal(same.head.bias, module.head.bias)
    with pytest.raises(ConfigurationError, match=r"another frozen base \(SHA-256 \w{12}\.\.\.\) than that of Headed here"):
        around(other).load_state_dict(around(module).state_dict())


def test_copies_share_it():
    module = Headed()
    copied = copy.deepcopy(module)
    assert copied.body.weight is module.body.weight
    assert copied.head.weight is not module.head.weight
    assert torch.equal(copied.head.weight, module.head.weight)
    assert copied.base_names == module.base_names


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("in place", "the client Headed writes into its frozen base as it trains"),
        ("behind the back", r"at the end, after 3 rounds, the frozen base of Headed is not what it was"),
    ],
)
def test_who_writes_into_it_is_refused(harm, message):
    with pytest.raises(ConfigurationError, match=message):
        ended(harm=harm)


def test_what_is_thawed_later_is_refused():
    run = federation()
    run.client.body.bias.requires_grad_(True)  # pyrefly: ignore[missing-attribute]
    with pytest.raises(ConfigurationError, match=r"parameter body\.bias .* asks for gradients, but is part of its frozen base"):
        fit(run, tiny_data())


class Around(Classifier):
    """A client that is no `FrozenBase` itself and holds one."""

    def __init__(self, seed: int = 0, *, harm: str = "", freeze: bool = True, thaw: bool = False) -> None:
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        self.inner = Headed(seed, harm=harm)
        if not freeze:
            del self.inner.base_sha256
        self.inner.body.requires_grad_(thaw)

    def forward(self, inputs):
        return self.inner(inputs)

    def training_step(self, batch, batch_idx):
        self.inner.training_step(batch, batch_idx)  # which writes into the base, where there is to be harm
        return super().training_step(batch, batch_idx)


def around(**given: Any) -> Federation:
    torch.manual_seed(0)
    client = Around(**given)
    return tiny_federation(client=client, aggregator=FedAvg(), attacks=[], cohort=COHORT, local=LocalTraining(batch_size=8))


def test_one_inside_a_client_is_left_out_as_well(caplog):
    run = around()
    assert {name for name, _ in named_state(run.client)} == {f"inner.{SHA256}", "inner.head.weight", "inner.head.bias"}
    assert base_bytes(run.client) == 4 * WIDTH * (FEATURES + 1)
    assert len(Snapshot(run.client)) == 3
    fit(run, tiny_data())
    plain = federation()
    fit(plain, tiny_data())
    assert f"{TRAINED} of {TRAINED + WIDTH * (FEATURES + 1)} parameters of Around are trained" in caplog.text
    trained = plain.client.head.weight  # pyrefly: ignore[missing-attribute]
    assert torch.equal(run.client.inner.head.weight, trained)  # pyrefly: ignore[missing-attribute]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"harm": "in place"}, "the client Around writes into its frozen base as it trains"),
        ({"harm": "behind the back"}, r"at the end, after 3 rounds, the frozen base of Headed is not what it was"),
        ({"thaw": True}, r"parameter inner\.body\.weight .* asks for gradients, but is part of its frozen base"),  # unsaved
        (
            {"freeze": False},
            r"client Around holds a Headed, which is a FrozenBase .*; call self\.freeze_base\(\) at the end",
        ),
    ],
)
def test_what_is_wrong_with_one_inside_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(around(**given), tiny_data())


def test_a_client_of_which_all_is_frozen_is_refused():
    run = federation()
    run.client.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="the client Headed has no trainable parameter; nothing can be learned"):
        fit(run, tiny_data())


def test_the_user_is_told_how_much_is_trained(caplog):
    fit(federation(), tiny_data(), rounds=1)
    everything = TRAINED + WIDTH * (FEATURES + 1)
    assert f"{TRAINED} of {everything} parameters of Headed are trained (30.33%)" in caplog.text


def test_killed_and_resumed(tmp_path):
    expected = ended()
    callbacks = [KillAt(2), LastCheckpoint(every_n_rounds=1)]
    with pytest.raises(KilledError):
        fit(federation(), tiny_data(), callbacks=callbacks, default_root_dir=tmp_path, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"client.{SHA256}", "client.head.weight", "client.head.bias"}
    resumed = federation()
    fit(resumed, tiny_data(), ckpt_path=tmp_path / "last.ckpt")
    assert weights_sha256(resumed) == expected
    with pytest.raises(ConfigurationError, match="trained on another frozen base"):
        fit(federation(seed=1), tiny_data(), ckpt_path=tmp_path / "last.ckpt")


def test_a_run_starts_from_saved_weights(tmp_path):
    trained = federation()
    fit(trained, tiny_data(), rounds=1)
    torch.save(trained.client.state_dict(), tmp_path / "weights.pt")
    started = federation()
    started = tiny_federation(
        client=Headed(), aggregator=FedAvg(), attacks=[], cohort=COHORT, start_from=str(tmp_path / "weights.pt")
    )
    fit(started, tiny_data(), rounds=1)
    other = tiny_federation(
        client=Headed(seed=1), aggregator=FedAvg(), attacks=[], cohort=COHORT, start_from=str(tmp_path / "weights.pt")
    )
    with pytest.raises(ConfigurationError, match="trained on another frozen base"):
        fit(other, tiny_data(), rounds=1)


# ---- on ranks --------------------------------------------------------------------------------------------------------


def counted(world: int, rounds: int) -> tuple[str, int, int, list[int]]:
    """Digest, float32 bytes that this rank sends and gathers in the rounds, d as padded, and what is broadcast."""
    travelled, sent = [], []
    exchange, gather, broadcast = dist.all_to_all_single, exchange_file.all_gather, dist.broadcast

    def watch_exchange(output, given, *args, **kwargs):
        travelled.append(given.nbytes if given.dtype == torch.float32 else 0)
        return exchange(output, given, *args, **kwargs)

    def watch_gathering(output, given, *args, **kwargs):
        travelled.append(output.nbytes if output.dtype == torch.float32 else 0)
        return gather(output, given, *args, **kwargs)

    def watch_broadcast(tensor, *args, **kwargs):
        sent.append(tensor.numel())
        return broadcast(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", watch_exchange)
        patch.setattr(exchange_file, "all_gather", watch_gathering)
        patch.setattr(dist, "broadcast", watch_broadcast)
        run = federation()
        fit(run, tiny_data(), rounds=rounds, devices=world)
    return weights_sha256(run), sum(travelled), run.exchange.padded * run.exchange.world, sent


def other_base_on_rank_1() -> str:
    import torch.distributed as group

    with pytest.raises(ConfigurationError) as refused:
        fit(federation(seed=group.get_rank()), tiny_data(), devices=2)
    return str(refused.value)


def test_any_number_of_ranks_gives_the_same_bits_and_only_trained_parameters_travel():
    rounds = 3
    found = {world: on_ranks(world, counted, world, rounds) for world in (2, 3)}
    assert {digest for of_ranks in found.values() for digest, *_ in of_ranks} == {ended()}
    for world in (2, 3):
        padded = found[world][0][2]  # d, rounded up to whole blocks
        assert padded >= TRAINED
        travelled = sum(travelled for _, travelled, _, _ in found[world])
        assert travelled == rounds * 4 * padded * (COHORT.clients_per_round + world)
        assert max(max(sent) for *_, sent in found[world]) == WIDTH * CLASSES


def test_ranks_with_different_bases_are_refused():
    for message in on_ranks(2, other_base_on_rank_1):
        assert "rank 1 has built another frozen base of Headed than rank 0" in message
