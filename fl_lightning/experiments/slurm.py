from dataclasses import dataclass


@dataclass(frozen=True)
class SlurmOptions:
    pass


def submit(*a): ...
