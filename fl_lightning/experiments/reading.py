"""The settings of cells as the command line reads them, and what training would refuse in them, found before the first run."""

from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.callbacks.ending import spent
from fl_lightning.callbacks.quiet import quietly
from fl_lightning.configuration import plainly, reader
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.kept_cells import Settled
from fl_lightning.experiments.prefix import Prefix
from fl_lightning.experiments.settings import Layer, arguments, check_ends, with_seed
from fl_lightning.federation import Federation
from fl_lightning.files.yaml_files import as_argument
from fl_lightning.options.class_settings import named_classes, with_settings
from fl_lightning.options.trainer_options import refusals

ON_THIS_MACHINE = {"logger": False, "default_root_dir": None, "accelerator": "cpu", "devices": 1, "num_nodes": 1}
"""Settings of the Trainer in place of a run's own, which may be for another machine."""


class CellReader:
    """Reads and checks the cells of a sweep, all with one parser, as making that takes as long as reading a cell.

    Args:
        seed: of the runs that are made, without training them, to see what they would refuse.
        given: settings by `<Class>.<setting>`.
        overrides: further arguments of every `fit`.
        prefix: the first rounds that runs share, if they do.
    """

    def __init__(self, seed: int, given: Mapping[str, Any], overrides: Sequence[str], prefix: Prefix | None) -> None:
        self.seed, self.given, self.overrides, self.prefix = seed, given, overrides, prefix
        self.reader = reader()

    def settle(self, layers: Sequence[Layer]) -> Settled:
        """The settings of a cell, once nothing in them would be refused; data are not read.

        Raises:
            ConfigurationError: there is a mistake in them.
        """
        with quietly():
            config, classes = self.read(layers)
            check_ends(config)
            federation = self.make()
            if self.prefix is None:
                return Settled(config, None, classes)
            overlaid, further = config, []
            if self.prefix.layers:
                overlaid, further = self.read([*layers, *self.prefix.layers])
            clean = self.prefix.clean(config, overlaid)
            begun = federation
            if self.prefix.layers:
                self.parse(["--config", as_argument(with_seed(clean, self.seed))])
                begun = self.make()
            self.prefix.check(federation, begun)
            return Settled(config, clean, sorted({*classes, *further}))

    def read(self, layers: Sequence[Layer]) -> tuple[dict[str, Any], list[str]]:
        """All settings of a cell, and the classes that are named without those of `given`."""
        config = self.parse([*arguments(layers), *self.overrides])
        classes = sorted(set(named_classes(config)))
        if self.given:
            config = self.parse(["--config", as_argument(with_settings(config, self.given))])
        return config, classes

    def parse(self, args: Sequence[str]) -> dict[str, Any]:
        return plainly(lambda: self.reader.read(["fit", *args]))

    def make(self) -> Federation:
        """Trainer, model and data of what was read last, without what it would log, on a CPU of this machine."""
        made = plainly(lambda: self.reader.make(self.seed, ON_THIS_MACHINE))
        federation = made.model
        federation.warm_start.check(federation.client)
        for name, value, remedy in refusals(made.trainer):
            raise ConfigurationError(f"trainer.{name} = {value!r} {remedy}")
        for callback in spent(made.trainer):
            raise ConfigurationError(
                f"trainer: the time of {type(callback).__name__} is over before the first round, so that no run would ever be "
                "finished; give a max_time that is enough for some rounds"
            )
        return federation
