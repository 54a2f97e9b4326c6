"""`manyviews recipe`: lists and prints the recipes of the checkout or the wheel."""

from __future__ import annotations

from pathlib import Path

from manyviews.names import meant

STUDIES = ("claims", "leaderboard", "sweeps", "benchmarks", "results")
"""Folders beside the recipes that hold others' YAML."""


def folder() -> Path:
    """Where the recipes lie.

    Raises:
        FileNotFoundError: if they were left out of the installation.
    """
    here = Path(__file__).parents[1]
    for place in (here / "recipes", here.parents[1] / "experiments"):
        if (place / "quickstart.yaml").is_file():
            return place
    raise FileNotFoundError(f"{here}: no recipes were installed with it")


def recipe(name: str | None) -> str:
    """All names with a line each, or the text of one recipe.

    Raises:
        ValueError: for an unknown name, with the nearest.
    """
    there = {
        str(path.relative_to(folder()).with_suffix("")): path
        for path in sorted(folder().rglob("*.yaml"))
        if path.relative_to(folder()).parts[0] not in STUDIES
    }
    if name is None:
        width = max(map(len, there))
        return "\n".join(f"{each:<{width}}  {_first_line(path)}" for each, path in there.items())
    if name.removesuffix(".yaml") not in there:
        raise ValueError(f"no recipe {name!r}" + meant(name, there))
    return there[name.removesuffix(".yaml")].read_text().rstrip("\n")


def _first_line(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
