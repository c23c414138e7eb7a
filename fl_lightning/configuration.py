"""From a configuration, in YAML and on the command line, to a Trainer, a Federation and its data.

LightningCLI with the federation's parts in it. Number of devices and nodes follow the launcher (torchrun, srun); a mistake
in a configuration is a `ConfigurationError` of one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.table import Table

from fl_lightning import __version__, callbacks
from fl_lightning.attacks.show_attack import show
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.standard import TRAINER_DEFAULTS, UNSET, standard_callbacks, standard_loggers
from fl_lightning.checkpoints.newest import newest
from fl_lightning.data import FederatedDataModule, show_data
from fl_lightning.errors import ConfigurationError, configuration_error, folded
from fl_lightning.federation import Federation
from fl_lightning.files.yaml_files import FAST, MODE, as_argument
from fl_lightning.machine.launched import as_launched, launcher
from fl_lightning.options.class_settings import check_classes, named_classes, taken_out, with_settings
from fl_lightning.options.command_checks import (
    check_arguments,
    check_checkpoint,
    check_devices,
    check_reading,
    without_old_settings,
)
from fl_lightning.options.commands import DESCRIPTION, EPILOG
from fl_lightning.options.given_classes import check_read, refused_by_its_class, refused_of_several
from fl_lightning.options.layers import check_layer
from fl_lightning.options.parser import Parser
from fl_lightning.options.this_machine import check_folder
from fl_lightning.options.trainer_options import NEED_A_LOGGER, check_twice

T = TypeVar("T")

for exported in callbacks.__all__:  # a class that is imported may be named by the last word of its path
    getattr(callbacks, exported)


class FederatedTrainer(L.Trainer):
    """Lightning's Trainer with the commands `prepare`, `show-data` and `show-attack`."""

    def prepare(self, model: Federation, datamodule: FederatedDataModule) -> None:
        """Fetch and check data and settings before a launch, without training."""
        fetch_and_check(model, datamodule)
        assert datamodule.task is not None
        sizes = datamodule.sizes
        table = Table("", "", title="Ready to run", show_header=False)
        table.add_row("training samples", f"{len(datamodule.task.train):,}")
        table.add_row("test samples", f"{len(datamodule.task.test):,}")
        for attack in model.attacks:
            stamped = attack.stamp(datamodule.task.test)
            if stamped is not None:
                table.add_row(f"ASR samples ({type(attack).__name__})", f"{len(stamped):,}")
        table.add_row("classes", str(datamodule.task.num_classes))
        table.add_row("clients", f"{len(sizes)} with {sizes.min()} to {sizes.max()} samples")
        table.add_row("per round", str(model.cohort.clients_per_round))
        table.add_row("trainable parameters", f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}")
        Console().print(table)

    def show_data(self, model: Federation, datamodule: FederatedDataModule, output: str = "data.svg") -> None:
        """Show how training samples are dealt out to clients, without training: a table on the screen, a picture in a file.

        Args:
            output: the file to draw into, which ends in .svg or .png.
        """
        datamodule.prepare_data()
        datamodule.setup("fit")
        show_data.show(datamodule, output)

    def show_attack(self, model: Federation, datamodule: FederatedDataModule, output: str | None = None) -> None:
        """Show what the attacks do to data, without training: pictures in a PNG file, tables and tweets as text.

        Args:
            output: the PNG file to write, attack.png if none is given; of a task of pictures alone.
        """
        fetch_and_check(model, datamodule)
        malicious = model.cohort.malicious_clients(model.seed, len(datamodule.clients)).tolist()
        show(datamodule, model.attacks, malicious, model.seed, output)


# Lightning looks a command's method up by the command's name.
setattr(FederatedTrainer, "show-data", FederatedTrainer.show_data)
setattr(FederatedTrainer, "show-attack", FederatedTrainer.show_attack)


def fetch_and_check(model: Federation, datamodule: FederatedDataModule) -> None:
    """Whatever can be done before training, but for the devices."""
    datamodule.prepare_data()
    model.prepare_data()
    datamodule.setup("fit")
    model.check(datamodule)
    model.warm_start.check(model.client)


class FederatedCLI(LightningCLI):
    """`fit | validate | test | prepare | show-data | show-attack` over a `Federation` and a `FederatedDataModule`.

    Attributes:
        made_before: whose parser the next one takes, if it is for the same commands; see `experiments.warm_server`.
    """

    made_before: ClassVar[FederatedCLI | None] = None

    def __init__(self, args: Sequence[str]) -> None:
        if args and args[0] in self.subcommands():  # the other commands' parsers would take most of the time
            only = {args[0]: self.subcommands()[args[0]]}
            self.subcommands = lambda: only  # pyrefly: ignore[bad-assignment]
        super().__init__(
            Federation,
            FederatedDataModule,
            subclass_mode_data=True,
            trainer_class=FederatedTrainer,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_kwargs={
                "prog": "fl-lightning",
                "version": __version__,
                "description": DESCRIPTION,
                "epilog": EPILOG,
                "parser_mode": MODE,
            },
            parser_class=Parser,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "prepare": {"model", "datamodule"},
            "show-data": {"model", "datamodule"},
            "show-attack": {"model", "datamodule"},
        }

    def setup_parser(self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]) -> None:
        made, FederatedCLI.made_before = FederatedCLI.made_before, None
        if made is None or made.subcommands() != self.subcommands():
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            return
        self.parser, self._subcommand_parsers = made.parser, made._subcommand_parsers
        self._subcommand_method_arguments = made._subcommand_method_arguments

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's `--seed_everything` also takes true and false, by which a run could not be repeated."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="All draws are made from it, in [0, 2**32).",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=integer_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=integer_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args, given = taken_out(args)
        check_arguments(args)
        args = without_old_settings(args)
        self.config = parser.parse_args(args)
        check_reading(args, self.config[self.config.subcommand].clone().as_dict())
        if given:
            config = self.resolved_config()
            check_classes(given, set(named_classes(config)))
            config = with_settings(config, given)
            check_layer(config, "")
            self.config = parser.parse_args([self.config.subcommand, "--config", as_argument(config)])
        check_read(self.config[self.config.subcommand].clone().as_dict())

    def _parse_ckpt_path(self) -> None:
        """Settings come from the configuration alone, never from a checkpoint, which would be read here a first time."""

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        path = config.get("ckpt_path")
        if self.subcommand in ("validate", "test") and path is None:
            raise ConfigurationError(f"{self.subcommand} needs --ckpt_path: a checkpoint, such as the last.ckpt of a run")
        if self.subcommand == "fit":
            check_folder(config.trainer.default_root_dir or ".", "trainer.default_root_dir")
        if self.subcommand == "show-data":
            show_data.check_format(config.output)
        if self.subcommand in ("show-data", "show-attack") and config.output is not None:
            check_folder(Path(config.output).parent, "the folder of output")
        if path is not None:
            check_checkpoint(str(path))
        if self.subcommand in ("validate", "test") and path == "last":
            folder = Path(config.trainer.default_root_dir or ".")
            if newest(folder) is None:  # Lightning would take the untrained model
                raise ConfigurationError(
                    f"ckpt_path: there is no last.ckpt in {folder}; give --trainer.default_root_dir of a run, or a checkpoint"
                )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError) as error:
            refused = None if configuration_error(error) else refused_of_several(error) or refused_by_its_class(error)
            if refused is None:
                raise
            raise refused from error

    @property
    def made(self) -> Any:
        """The command's settings with classes made of them."""
        every: Any = self.config_init
        return every[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        assert self.subcommand is not None
        settings = self.made["trainer"]
        options = {**settings.as_dict(), **kwargs}
        options |= as_launched(settings.devices, settings.plugins)
        if launcher() is None:
            check_devices(settings.devices, settings.num_nodes)
        if settings.barebones:
            off = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
            options |= {**dict.fromkeys(off, False), "log_every_n_steps": 0}
        elif settings.logger in (None, True):  # `false` logs nothing; any others are taken as they are
            # What a checkpoint is found to be is shown; it is no further version of the run.
            options["logger"] = standard_loggers(settings.default_root_dir or ".") if self.subcommand == "fit" else False
        given = settings.callbacks or []
        given = given if isinstance(given, list) else [given]
        if self.subcommand != "fit" and not options["logger"]:  # a run's own settings may name what then has nothing to say
            given = [callback for callback in given if not isinstance(callback, NEED_A_LOGGER)]
        options["callbacks"] = [*given, *self.own_callbacks(options, given)]
        check_twice(options["callbacks"])
        try:
            return FederatedTrainer(**options)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigurationError(f"trainer: {folded(error)}") from error

    def own_callbacks(self, options: Mapping[str, Any], given: Sequence[L.Callback]) -> Iterator[L.Callback]:
        """What a command has without being asked."""
        keys = Counter(callback.state_key for callback in given if is_overridden("state_dict", callback, L.Callback))
        for callback in given:
            if keys[callback.state_key] > 1:
                name, number = type(callback).__name__, keys[callback.state_key]
                raise ConfigurationError(
                    f"trainer.callbacks: {name} is there {number} times, which a checkpoint cannot tell apart; name it once"
                )
            if type(callback) in UNSET:
                name = type(callback).__name__
                raise ConfigurationError(f"trainer.callbacks names {name}, which every command has by itself; leave it out")
        every = self.made["checkpoint"].every_n_rounds
        if options["enable_checkpointing"] is not False:
            yield self.made["checkpoint"]
        elif every != 1 and self.subcommand == "fit":
            raise ConfigurationError(
                f"checkpoint.every_n_rounds = {every}, but no checkpoint is written, as trainer.enable_checkpointing = false; "
                "leave one of them out"
            )
        yield from standard_callbacks(self.resolved_config(), options, given)

    def resolved_config(self) -> dict[str, Any]:
        """The configuration of this command with all defaults filled in, as plain data."""
        command = self.config.subcommand
        text = self._parser(command).dump(self.config[command], skip_unset=False, skip_link_targets=False)
        return yaml.load(text, Loader=FAST)


def integer_seed(seed: bool | int | None) -> int:
    """`seed_everything` as the experiment's seed, which must be a number: it keys every draw and stands in the record."""
    if isinstance(seed, bool) or seed is None:
        raise ConfigurationError(f"seed_everything must be a whole number, got {seed}")
    if not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed_everything must lie in [0, 2**32), got {seed}")
    return seed


class Unstarted(FederatedCLI):
    """Makes Trainer, model and data, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Reader(FederatedCLI):
    """Reads configurations of `fit`, any number with one parser, as making that takes longer, and runs nothing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": FederatedCLI.subcommands()["fit"]}

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        """All settings, as `resolve` gives them."""
        self.resolved = None
        super().parse_arguments(self.parser, args)
        self.resolved = self.resolved_config()
        return self.resolved

    def take(self, parsed: Namespace, resolved: dict[str, Any]) -> None:
        """Settings as if they had been read now: as the parser has them, and as `read` gives them."""
        self.config, self.resolved = parsed, resolved

    def resolved_config(self) -> dict[str, Any]:
        """Of what was read last; a run's record, which asks again, is made and never written."""
        return super().resolved_config() if self.resolved is None else self.resolved

    def make(self, seed: int, trainer: Mapping[str, Any]) -> FederatedCLI:
        """Trainer, model and data of what was read last: `.trainer`, `.model`, `.datamodule`.

        Args:
            seed: in place of that one's.
            trainer: settings of the Trainer in place of its own.
        """
        config = self.config.clone()
        config.fit.seed_everything = config.fit.model.seed = seed
        if "seed" in (config.fit.data.get("init_args") or {}):  # a data module of a user's own may draw nothing
            config.fit.data.init_args.seed = seed
        for name, value in trainer.items():
            config.fit.trainer[name] = value
        self.config = config
        super().instantiate_classes()
        return self

    def __init__(self) -> None:
        self.resolved: dict[str, Any] | None = None
        super().__init__([])

    # Lightning's constructor goes through all of these.

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(subcommand="fit")

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


reader = cache(Reader)


def build(args: Sequence[str]) -> FederatedCLI:
    """Trainer, model and data as a command would make them: `build([...]).trainer`, `.model`, `.datamodule`.

    Args:
        args: a command's arguments, such as `["fit", "--config", "configs/quickstart.yaml"]`.

    Raises:
        ConfigurationError: the configuration has a mistake.
    """
    return plainly(lambda: Unstarted(args))


def resolve(args: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a `fit` with all defaults filled in, as plain data; nothing is made of it.

    Raises:
        ConfigurationError: the configuration has a mistake.

    Example:
        >>> resolve(["fit", "--config", "configs/quickstart.yaml"])["model"]["aggregator"]["init_args"]["tau"]
        0.6
    """
    return plainly(lambda: reader().read(args))


def plainly(function: Callable[[], T]) -> T:
    """The function's result; a configuration error is raised as such, whatever a library wrapped it in."""
    try:
        return function()
    except MisconfigurationException as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, RuntimeError) as error:
        mistake = configuration_error(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from None
