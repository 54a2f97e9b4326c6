"""Configuration errors in one short line, with the nearest key."""

from __future__ import annotations


def explain(error: BaseException) -> str:
    """What to tell the user."""
    return str(error)
