"""Runs and cells chosen by labels, as `--only AXIS=LABEL` says."""

import argparse
from collections.abc import Mapping, Sequence

from fl_lightning.errors import ConfigurationError, nearest


def label(text: str) -> tuple[str, str]:
    """
    >>> label("rule=no attack")
    ('rule', 'no attack')
    """
    axis, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form AXIS=LABEL")
    return axis, value


def having(labels: Sequence[Mapping[str, str]], only: Sequence[tuple[str, str]]) -> list[int]:
    """The positions of those that have one of the labels given for each axis that labels are given for.

    Args:
        labels: of each, by axis; at least one.
        only: pairs of an axis and a label.

    Raises:
        ConfigurationError: there is no such axis or label, or nobody has all of them.

    Example:
        >>> having([{"rule": "A", "seed": "0"}, {"rule": "B", "seed": "0"}], [("rule", "B")])
        [1]
    """
    wanted: dict[str, set[str]] = {}
    for axis, value in only:
        wanted.setdefault(axis, set()).add(value)
    for axis, values in wanted.items():
        known = {own[axis] for own in labels if axis in own}
        if not known:
            raise ConfigurationError(f"--only {axis}: there is no such axis; {nearest(axis, labels[0])}")
        for value in sorted(values - known):
            raise ConfigurationError(f"--only {axis}={value}: there is no such run; {nearest(value, known)}")
    found = [i for i, own in enumerate(labels) if all(own[axis] in values for axis, values in wanted.items())]
    if not found:
        raise ConfigurationError(f"--only {' --only '.join(f'{a}={v}' for a, v in only)}: no run has all of these labels")
    return found
