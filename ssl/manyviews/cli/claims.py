"""`manyviews claims` and `manyviews leaderboard`: studies from a folder, one after the other."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from manyviews.cli import study, verdict
from manyviews.runs.files import write_text


def claims(arguments: argparse.Namespace) -> None:
    """Runs the named claims, or all, and writes `OUT/claims.json` with every verdict there is."""
    studies = _studies(arguments)
    if arguments.list:
        return _list(studies)
    path = Path(arguments.out) / "claims.json"
    skipped: list[str] = []
    failed: list[str] = []
    for each in studies:
        try:
            new = _run(each, arguments)
        except FileNotFoundError as error:
            skipped.append(f"skipped: {error}")
        except ValueError as error:
            failed.append(str(error))
        else:
            before = [row for row in _verdicts(path) if row["claim"] != each.name]
            write_text(path, json.dumps(before + new, indent=1) + "\n")
    Console(width=130).print(verdict.effect_table(_verdicts(path)))
    for reason in skipped + failed:
        print(reason, file=sys.stderr)
    print(f"all verdicts: {path}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(studies)} claims failed")


def _verdicts(path: Path) -> list[dict[str, Any]]:
    try:
        rows: Any = json.loads(path.read_text()) if path.exists() else []
        return [row for row in rows if isinstance(row, dict) and "claim" in row]
    except (ValueError, TypeError) as error:
        print(f"{path}: damaged ({error}); its verdicts are left out", file=sys.stderr)
        return []


def leaderboard(arguments: argparse.Namespace) -> None:
    """Runs the named studies of the folder, or all, and prints their sorted tables."""
    studies = _studies(arguments)
    if arguments.list:
        return _list(studies)
    for each in studies:
        try:
            _run(each, arguments)
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)


def _run(each: study.Study, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(arguments.data_dir) if arguments.data_dir else None
    return verdict.write(each, study.run(each, out, data, arguments.workers), out)


def _studies(arguments: argparse.Namespace) -> list[study.Study]:
    folder = Path(arguments.studies)
    there = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not there:
        raise FileNotFoundError(f"{folder}: no studies (*.yaml) here; run from the repository, or give --studies")
    for name in arguments.names:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            raise ValueError(f"no study {name!r}" + (f", did you mean {near[0]!r}?" if near else f" in {folder}"))
    return [study.Study.read(there[name]) for name in arguments.names or there]


def _list(studies: list[study.Study]) -> None:
    for each in studies:
        print(f"{each.name:<24}{each.content['title']} ({len(each.variants)} variants, {len(each.seeds)} seeds)")
