"""What a study found: effects with their errors and an honest verdict, a table, a plot."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from manyviews.cli.study import Study
from manyviews.runs.files import whole, write_text
from manyviews.runs.folder import provenance

Results = dict[str, list[dict[str, Any]]]
LEVEL = 0.05
"""One-sided level of Student's t over seeds, at which an effect counts as seen (or as seen the other way round)."""


def score(measurement: dict[str, Any], name: str) -> float:
    """A number of one run: a score, or seconds, cpu_seconds, peak_gb."""
    known = {**measurement["scores"], **{k: v for k, v in measurement.items() if isinstance(v, float)}}
    if name not in known:
        raise ValueError(f"no measure {name!r}; there are {', '.join(sorted(known))}")
    value: float = known[name]
    return value


def effects(study: Study, results: Results) -> list[dict[str, Any]]:
    """Each effect: a weighted sum of variants' scores, taken seed by seed; mean, standard error, verdict."""
    found = []
    for effect in study.content.get("effects", []):
        each = np.array(
            [
                sum(weight * score(results[name][k], effect["measure"]) for name, weight in effect["of"].items())
                for k in range(len(study.seeds))
            ]
        )
        mean, error = float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
        found.append(
            {
                "claim": study.name,
                "effect": effect["name"],
                "measure": effect["measure"],
                "mean": mean,
                "standard_error": error,
                "seeds": each.tolist(),
                "verdict": verdict(mean, error, len(each)),
            }
        )
    return found


def verdict(mean: float, error: float, seeds: int) -> str:
    """`seen`, `not seen: the reverse`, or `inside noise`, by Student's t with seeds - 1 degrees of freedom."""
    if seeds < 2 or not math.isfinite(error):
        return "not known: one seed"
    limit = stats.t.ppf(1 - LEVEL, seeds - 1) * error
    return "seen" if mean > limit else "not seen: the reverse" if mean < -limit else "inside noise"


def write(study: Study, results: Results, out: Path) -> list[dict[str, Any]]:
    """`OUT/NAME.json` with everything measured, the table as `OUT/NAME.md`, `OUT/NAME.png`. Returns the effects."""
    found, made = effects(study, results), provenance()
    recipes = {name: recipe["model"] for name, recipe in study.variants.items()}
    content = {**study.content, "found": found, "results": results, "recipes": recipes, **made}
    write_text(out / f"{study.name}.json", json.dumps(content, indent=1) + "\n")
    console, tables = Console(width=130), [_variants(study, results), *([effect_table(found)] if found else [])]
    text = [f"# {study.content['title']}", study.content.get("scale", "").strip(), *map(_markdown, tables)]
    commit = made["git"] + " with changes" * made["git_dirty"]
    where = f"`{shlex.join(made['command'])}`, {made['hardware']}, commit {commit}"
    write_text(out / f"{study.name}.md", "\n\n".join([*text, where]) + "\n")
    for table in tables:
        console.print(table)
    _plot(study, results, found, out / f"{study.name}.png")
    console.print(f"{out / study.name}.json, .md and .png", highlight=False)
    return found


def _markdown(table: Table) -> str:
    """The same table for GitHub."""
    columns = [list(column.cells) for column in table.columns]
    rows = [[str(column.header) for column in table.columns], ["---"] * len(columns), *zip(*columns, strict=True)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return f"{table.title}\n\n" + "\n".join(lines)


def _mean(results: Results, name: str, column: str) -> tuple[float, float]:
    values = np.array([score(each, column) for each in results[name]])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _ordered(study: Study, results: Results) -> list[str]:
    by = study.content.get("sort")
    return sorted(results, key=lambda name: -_mean(results, name, by)[0]) if by else list(results)


def _variants(study: Study, results: Results) -> Table:
    columns = study.content.get("columns", ["knn20", "linear", "rankme"])
    table = Table(title=f"{study.content['title']} ({len(study.seeds)} seeds, mean +- std)")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name in _ordered(study, results):
        cells = []
        for column in columns:
            if column not in {**results[name][0]["scores"], **results[name][0]}:
                cells.append("-")
                continue
            mean, deviation = _mean(results, name, column)
            digits = 3 if abs(mean) < 5 else 1
            cells.append(f"{mean:.{digits}f} +- {deviation:.{digits}f}")
        table.add_row(name, *cells)
    return table


def effect_table(found: list[dict[str, Any]]) -> Table:
    """Claim, effect, size, error, verdict."""
    table = Table(title="effects (mean over seeds, standard error)")
    for column in ("claim", "effect", "measure"):
        table.add_column(column)
    table.add_column("size", justify="right")
    table.add_column("verdict")
    for row in found:
        size = f"{row['mean']:+.3f} +- {row['standard_error']:.3f}"
        table.add_row(row["claim"], row["effect"], row["measure"], size, row["verdict"])
    return table


def _plot(study: Study, results: Results, found: list[dict[str, Any]], path: Path) -> None:
    """A curve over the variants where the study names one; a scatter of two columns; else bars of the first score."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    curve = study.content.get("curve")
    if curve and "x" in curve:
        _curve(axis, curve, results)
    elif curve:
        x, y = curve["scatter"]
        for name in results:
            (a, da), (b, db) = _mean(results, name, x), _mean(results, name, y)
            axis.errorbar(a, b, xerr=da, yerr=db, fmt="o", markersize=4)
            axis.annotate(name, (a, b), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set(xlabel=x, ylabel=y)
    else:
        measure = study.content["effects"][0]["measure"]
        for place, name in enumerate(results):
            values = [score(each, measure) for each in results[name]]
            axis.bar(place, np.mean(values), color="tab:blue", alpha=0.5)
            axis.plot([place] * len(values), values, "k.")
        axis.set_xticks(range(len(results)), list(results), rotation=30, ha="right", fontsize=8)
        lowest = min(score(each, measure) for runs in results.values() for each in runs)
        highest = max(score(each, measure) for runs in results.values() for each in runs)
        margin = (highest - lowest) / 2 or 0.01
        axis.set(ylabel=measure, ylim=(lowest - margin, highest + margin))
    title = study.content["title"] + "".join(f"\n{row['effect']}: {row['verdict']}" for row in found)
    axis.set_title(title, fontsize=9)
    with whole(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)


def _curve(axis: Any, curve: dict[str, Any], results: Results) -> None:
    """`curve.x`: {series: {variant: x}}; `curve.y`: one or more scores."""
    for series, places in curve["x"].items():
        for y in curve["y"]:
            rows = sorted((x, *_mean(results, name, y)) for name, x in places.items())
            xs, means, deviations = zip(*rows, strict=True)
            axis.errorbar(xs, means, deviations, marker="o", capsize=3, label=f"{series} {y}".strip())
    axis.set(xlabel=curve.get("label", ""), xscale=curve.get("scale", "linear"))
    axis.legend(fontsize=8)
