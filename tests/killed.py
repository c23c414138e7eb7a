"""A run that ends in the middle of a round."""

import lightning as L


class KilledError(Exception):
    pass


class KillAt(L.Callback):
    """Ends a run in the middle of a round, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_aggregate(self, federation, shard, aggregate) -> None:
        if federation.global_step >= self.step:
            raise KilledError
