"""What a parser says of a mistake, and what may have been meant."""

import pytest

from fl_lightning.configuration import resolve
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.parser import readable

BASE = [
    "--config",
    """
model: {client: {class_path: MLP}, aggregator: {class_path: Invariant, init_args: {tau: 0.6}},
  attacks: [{class_path: EdgeCase, init_args: {pool: {class_path: RotatedDigits}, target_label: 1}}]}
data: {class_path: Phishing, init_args: {partition: {class_path: Dirichlet}}}
trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/acc}}]}
""",
]


def message(*args: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        resolve(["fit", *BASE, *args])
    return str(refused.value)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["--model.aggregator.tua", "1"],
            "model.aggregator: Invariant has no setting tua; did you mean tau? It has: tau, alpha, ",
        ),
        (["--model.local.epoch", "1"], "model.local has no setting epoch; did you mean epochs? It has: epochs, "),
        (["--config", "model: {local: {epoch: 1}}"], "model.local has no setting epoch; did you mean epochs? It has: epochs, "),
        (["--trainer.max_epoch", "1"], "trainer has no setting max_epoch; did you mean max_epochs? It has: max_epochs, "),
        (["--modle.local.epochs", "1"], "the command has no setting modle; did you mean model? It has: model, "),
        (
            ["--data.init_args.partition.alhpa", "1"],
            "data.partition: Dirichlet has no setting alhpa; did you mean alpha? It has: alpha, ",
        ),
        (
            ["--model.attacks.pool.digits", "1"],
            "model.attacks.pool: RotatedDigits has no setting digits; did you mean digit? It has: digit, ",
        ),
        (
            ["--trainer.callbacks.patiense", "1"],
            "trainer.callbacks: EarlyStopping has no setting patiense; did you mean patience? ",
        ),
        (["--data", "Phising"], "data: there is no class Phising; did you mean Phishing?"),
        (
            ["--model.client", "Zzz"],
            "model.client: there is no class Zzz; known: CNN, CharLSTM, DropoutCNN, HuggingFaceCausalLM, "
            "HuggingFaceClassifier, LSTM, LeNet5, MLP, ResNet18, ResNet20, ResNet34, VGG11, ViT, WordLSTM",
        ),
        (
            ["--model.client", "torch.nn.Linear"],
            "model.client: torch.nn.Linear is no LightningModule, which says what its",
        ),
        (
            ["--model.attacks+", "Zzz"],
            "model.attacks: there is no class Zzz; known: A3FL, ALIE, Adaptive, Anticipate, ",
        ),
        (["--data", "IID"], "data: there is no class IID; known: "),
        (
            ["--model.attackers_optimizer", "{class_path: torch.optim.Nope, init_args: {lr: 0.1}}"],
            "model.attackers_optimizer: there is no class torch.optim.Nope of the kind Optimizer; give the class_path of one ",
        ),
        (
            ["--model.attackers_optimizer", "{class_path: torch.optim.SGD, init_args: {lr: fast}}"],
            "model.attackers_optimizer.lr: must be a number or a Tensor, got fast",
        ),
        (
            ["--data", "Phishing", "--data.partition", "Partition"],
            "data.partition: Partition says what classes of its kind have in common, and none can be made of it; known: ",
        ),
        (["--model.aggregator.tau", "much"], "model.aggregator.tau: must be a number, got much"),
        (["--model.cohort.participation", "x"], "model.cohort.participation: must be one of fixed_share, random_pool, "),
        (["--trainer.max_epochs", "1.5"], "trainer.max_epochs: must be a whole number or null, got 1.5"),
        (
            ["--config", "model: {aggregator: {class_path: Krum, init_args: {f: null}}}"],
            "model.aggregator: Krum has no setting",
        ),
        (
            ["--config", "model: {cohort: {attackers: null}}"],
            "model.cohort.attackers: must not be null; leave it out for its default",
        ),
        (["--config", "model: {attacks: [{class_path: ALIE, init_arg: {}}]}"], "model.attacks: a class is given by class_path"),
    ],
)
def test_it_names_the_place_and_the_nearest_names_first(args, expected):
    assert message(*args).startswith(expected)


def test_abbreviations_are_refused():
    for option in ("--model.local.epoc", "--trainer.max_epo", "--seed_every", "--model.cohort.clients_per"):
        assert "has no setting" in message(option, "3")


def test_null_is_taken_where_it_is_a_value():
    config = resolve(
        ["fit", *BASE, "--config", "{trainer: {max_time: null}, data: {class_path: Phishing, init_args: {root: null}}}"]
    )
    assert config["data"]["init_args"]["root"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("<class 'int'>", "a whole number"),
        ("<class 'NoneType'>", "null"),
        ("<class 'pathlib.Path'>", "a Path"),
        ("list[lightning.pytorch.callbacks.callback.Callback]", "list[Callback]"),
        ("typing.Literal['a', 'b']", "one of a, b"),
    ],
)
def test_types_are_readable(name, text):
    assert readable(name) == text
