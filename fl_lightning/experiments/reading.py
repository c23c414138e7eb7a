"""The settings of cells as the command line reads them, and what training would refuse in them, found before the first run."""

from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.callbacks.ending import spent
from fl_lightning.callbacks.quiet import quietly
from fl_lightning.configuration import plainly, reader
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.kept_cells import Settled
from fl_lightning.experiments.known_parts import KnownParts, Reading
from fl_lightning.experiments.prefix import Begun, Prefix
from fl_lightning.experiments.settings import Layer, arguments, check_ends, with_seed
from fl_lightning.federation import Federation
from fl_lightning.files.yaml_files import as_argument
from fl_lightning.options.class_settings import taken_out, with_settings
from fl_lightning.options.trainer_options import refusals
from fl_lightning.server.round_checks import check_numbers

ON_THIS_MACHINE = {"logger": False, "default_root_dir": None, "accelerator": "cpu", "devices": 1, "num_nodes": 1}
"""Settings of the Trainer in place of a run's own, which may be for another machine."""


class CellReader:
    """Reads and checks the cells of a sweep, all with one parser, as making that takes as long as reading a cell.

    Args:
        seed: of the runs that are made, without training them, to see what they would refuse.
        given: settings by `<Class>.<setting>`.
        overrides: further arguments of every `fit`.
    """

    def __init__(self, seed: int, given: Mapping[str, Any], overrides: Sequence[str]) -> None:
        self.seed, self.given, self.overrides = seed, given, overrides
        self.reader = reader()
        self.parts = KnownParts()
        self.begun: dict[str, Begun] = {}
        # A `--with` among these is refused by the settings of a cell as a whole, where no class of it is there.
        self.whole = bool(taken_out(overrides)[1])

    def settle(self, layers: Sequence[Layer], prefix: Prefix | None) -> Settled:
        """The settings of a cell, once nothing in them would be refused; data are not read.

        Args:
            layers: the cell's.
            prefix: the first rounds that it begins with, if it does.

        Raises:
            ConfigurationError: there is a mistake in them.
        """
        with quietly():
            reading = self.read(layers)
            check_ends(reading.config)
            federation = self.make()
            if prefix is None:
                return Settled(reading.config, None, reading.classes)
            if not prefix.layers:
                clean = prefix.clean(reading.config, reading.config)
                prefix.check(federation, federation)
                return Settled(reading.config, clean, reading.classes)
            overlaid = self.read([*layers, *prefix.layers])
            clean = prefix.clean(reading.config, overlaid.config)
            prefix.check(federation, self.begin(with_seed(clean, self.seed)))
            return Settled(reading.config, clean, sorted({*reading.classes, *overlaid.classes}))

    def read(self, layers: Sequence[Layer]) -> Reading:
        """All settings of a cell: put together of parts that are known, or parsed as a whole."""
        known = None if self.whole else self.parts.find(layers)
        if known is not None:
            self.reader.take(known.parsed, known.config)
            return known
        config = unset = self.parse([*arguments(layers), *self.overrides])
        if self.given:
            config = self.parse(["--config", as_argument(with_settings(config, self.given))])
        reading = Reading(config, unset, self.reader.config)
        self.parts.add(layers, reading)
        return reading

    def parse(self, args: Sequence[str]) -> dict[str, Any]:
        return plainly(lambda: self.reader.read(["fit", *args]))

    def begin(self, clean: Mapping[str, Any]) -> Begun:
        """What is asked of a prefix, each of which is made once for all cells that begin with it."""
        known = repr(clean)
        if known not in self.begun:
            self.parse(["--config", as_argument(clean)])
            federation = self.make()
            self.begun[known] = Begun(federation.cohort, federation.attacks)
        return self.begun[known]

    def make(self) -> Federation:
        """Trainer, model and data of what was read last, without what it would log, on a CPU of this machine."""
        made = plainly(lambda: self.reader.make(self.seed, ON_THIS_MACHINE))
        federation = made.model
        federation.warm_start.check(federation.client)
        check_numbers(federation.aggregator, federation.cohort)
        for name, value, remedy in refusals(made.trainer):
            raise ConfigurationError(f"trainer.{name} = {value!r} {remedy}")
        for callback in spent(made.trainer):
            raise ConfigurationError(
                f"trainer: the time of {type(callback).__name__} is over before the first round, so that no run would ever be "
                "finished; give a max_time that is enough for some rounds"
            )
        return federation
