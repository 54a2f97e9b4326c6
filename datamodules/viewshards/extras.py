"""Packages that only some kinds of files need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(package: str, extra: str, what: object) -> Any:
    """A package that is installed with an extra of this project.

    Args:
        package: its name. extra: that brings it. what: needs it, for the message.

    Raises:
        ValueError: if it is not installed, saying how to install it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what}: reading it needs {package}: pip install 'manyviews[{extra}]'") from error
