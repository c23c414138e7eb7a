from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from fl_lightning import ConfigurationError
from fl_lightning.analysis.world import WarmUp, settings
from fl_lightning.seeding import derive_seed, generator, seed_global_generators
from fl_lightning.updates.layout import named_state

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits" / "edge_case.yaml")
SMALL = ["--trainer.accelerator", "cpu", "--model.local.epochs", "0.3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return WarmUp(rounds=1).prepare(settings([DIGITS], SMALL), tmp_path_factory.mktemp("run"))


def state(world):
    return {name: tensor.clone() for name, tensor in named_state(world.federation.client)}


def unchanged(world, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in named_state(world.federation.client))


def test_updates_are_old_minus_new_and_leave_the_weights_alone(world):
    before, client = state(world), world.benign[0]
    update = world.updates([client, world.benign[1]])[0]
    assert unchanged(world, before)
    federation = world.federation
    # The same by hand: the client's local training, keyed as in the round after the warm-up.
    seed_global_generators(derive_seed(federation.seed, "client", 1, client))
    draws = generator(federation.seed, "batches", 1, client)
    federation.local.train(federation.client, federation.data.client(client), draws)
    expected = world.weights.clone()
    for name, tensor in named_state(federation.client):
        tensor.copy_(before[name])
    torch.testing.assert_close(update, world.weights - expected, rtol=0, atol=0)


def test_malicious_clients_train_on_poisoned_data(world):
    attacker = world.malicious[0]
    honest, poisoned = world.updates([attacker])[0], world.updates([attacker], malicious=True)[0]
    assert not torch.equal(honest, poisoned)
    samples = world.samples([attacker], poisoned=True)
    assert int((samples.targets == 7).sum()) >= 20  # edge cases under the target label
    # The malicious update lowers the backdoor loss, the honest one less or not at all.
    stamped, weights = world.stamped, world.weights
    assert world.loss(stamped, weights - poisoned) < min(world.loss(stamped), world.loss(stamped, weights - honest))


def test_loss_and_gradient_are_those_of_the_whole_set(world):
    before, samples = state(world), world.samples(world.benign[:3])
    module = world.federation.client.eval()
    inputs, targets = samples.batch(torch.arange(len(samples)))
    loss = F.cross_entropy(module(inputs), targets)
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    module.zero_grad()
    assert world.loss(samples) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(world.gradient(samples), expected, rtol=1e-4, atol=1e-6)
    assert world.loss(samples, world.weights + 0.5) != pytest.approx(loss.item(), rel=1e-3)
    assert unchanged(world, before)


def test_from_a_checkpoint(world, tmp_path):
    folder = Path(world.federation.trainer.default_root_dir)
    again = WarmUp(rounds=0, ckpt_path=str(folder / "last.ckpt")).prepare(settings([DIGITS], SMALL), tmp_path)
    assert torch.equal(again.weights, world.weights)
    assert again.figures["val/acc"] == pytest.approx(world.figures["val/acc"])
    assert not (tmp_path / "last.ckpt").exists()
    wider = [*SMALL, "--model.client.init_args.hidden", "65"]
    with pytest.raises(ConfigurationError, match="of another model"):
        WarmUp(rounds=0, ckpt_path=str(folder / "last.ckpt")).prepare(settings([DIGITS], wider), tmp_path)


def test_without_an_attack_in_the_warm_up(world):
    config = world.federation.trainer.default_root_dir
    assert "start_round: 1" in (Path(config) / "settings.yaml").read_text()
    assert len(world.malicious) == 4
    assert not set(world.malicious) & set(world.benign)


def test_an_attack_with_an_end_comes_after_the_warm_up_as_a_whole(tmp_path):
    window = str(Path(DIGITS).parent / "window.yaml")
    config = settings([window], [*SMALL, "--model.cohort.start_round", "0", "--model.cohort.end_round", "1"])
    assert WarmUp(rounds=1).prepare(config, tmp_path).round_number == 1
    cohort = yaml.safe_load((tmp_path / "settings.yaml").read_text())["model"]["cohort"]
    assert (cohort["start_round"], cohort["end_round"]) == (1, 2)


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="rounds must be at least 0"):
        WarmUp(rounds=-1)
    with pytest.raises(ConfigurationError, match="there is no file gone"):
        WarmUp(ckpt_path="gone.ckpt")
    with pytest.raises(ConfigurationError, match="needs --config FILE"):
        settings([])
    config = settings([DIGITS], [*SMALL, "--model.cohort.malicious_fraction", "0"])
    harmless = WarmUp(rounds=0).prepare(config, tmp_path)
    with pytest.raises(ConfigurationError, match="malicious_fraction above 0"):
        _ = harmless.malicious
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="analyses run in one process"):
        WarmUp().prepare(config, tmp_path)
