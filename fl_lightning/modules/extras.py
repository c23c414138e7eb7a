"""Libraries that few runs need and that the package therefore does not install by itself."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fl_lightning.errors import ConfigurationError, cause


def extra(library: str, who: str) -> Any:
    """A library of the extra `text`, imported when it is first used.

    Args:
        library: its name, as `transformers`.
        who: needs it, for the message.

    Raises:
        ConfigurationError: it is not installed, or cannot be imported.

    Example:
        >>> extra("json", "HuggingFaceClassifier").loads("[1]")
        [1]
    """
    try:
        return import_module(library)
    except ImportError as error:
        why = "is not installed" if getattr(error, "name", None) == library else f"cannot be imported ({cause(error)})"
        raise ConfigurationError(f"{who} needs {library}, which {why}; pip install 'fl_lightning[text]'") from error
