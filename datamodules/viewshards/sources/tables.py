"""Tables with one file a row."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from viewshards.account import Account, printable, system_file
from viewshards.sources.columns import Columns, Read, read_table
from viewshards.sources.reader import IMAGES, Reader, ranges_of
from viewshards.sources.rows import Choices, Row, Rows
from viewshards.sources.splits import Splits


def of_table(
    path: Path,
    choices: Choices = Choices(),
    reader: Reader = Reader(),
    columns: Columns = Columns(),
    outside: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Rows:
    """A CSV, TSV, JSON, JSON lines or Parquet table with one file a row.

    Columns: the file (`file_name` or another usual name; relative to the table; a folder is a clip of the pictures in
    it), and if there are any: `caption` (or `captions`, a list, or in JSON an object from language to one or a list),
    `hard_captions` (a list, of each caption of the row), `language`, `label`, `split`, `tracks` (a clip's `traj.npz`),
    and `id` with `view`, by which several files become the natural views of one sample. Rows of one file are further
    captions of it. In a CSV a list is written as JSON. All other columns are kept in the sample's `.json`; there an
    integer `same` marks known duplicates: samples of one number are right answers to each other in retrieval, and
    never each other's negatives.

    Args:
        path: of the table. choices: how it is split and labelled. reader: makes of a file what a shard holds.
        columns: which is what, where the names do not say. outside: whether it may name files outside of its folder.
        value_range: of pictures of 32 bits and floats.

    Raises:
        FileNotFoundError: if a file is not there. ValueError: for a table that cannot be read, naming the line.
    """
    read = read_table(path, columns, reader.limits)
    rows = rows_of(path, read, outside)
    account = Account("rows", len(rows), beside=_beside(path, rows), notes=[read.told])
    rows = split_rows(rows, choices.splits, account)
    pictures = (row.path for row in rows if row.path.suffix.lower() in IMAGES or reader.channels)
    ranges, told = ranges_of(pictures, value_range, reader.limits, reader.channels)
    account.notes += told
    name = path.parent.resolve().name if path.stem == "metadata" else path.stem
    choices = replace(
        choices,
        labels=tuple(_kind(read, label) for label in choices.labels),
        split_by=_kind(read, choices.split_by) if choices.split_by else None,
    )
    return Rows(name.replace(".", "_"), rows, choices, replace(reader, ranges=ranges), account, of_rows=True)


def rows_of(path: Path, read: Read, outside: bool) -> list[Row]:
    """The rows of a table, each with the file it names.

    Raises:
        FileNotFoundError: if one is not there. ValueError: if one lies outside of the table's folder.
    """
    rows, missing = [], []
    for record, where in zip(read.rows, read.places, strict=True):
        about = {column: value for column, value in record.items() if column != "file_name"}
        place = f"{path} {where}"
        for kind, name in (("file_name", record["file_name"]), ("tracks", about.get("tracks"))):
            if not name:
                continue
            if not outside and (Path(name).is_absolute() or ".." in Path(name).parts):
                raise ValueError(f"{place}: {name!r} lies outside of the table's folder; --outside allows that")
            if not _is_there(path.parent / name):
                missing.append(f"{place}, column {read.kinds[kind]!r}: {printable(name)!r}")
        if about.get("tracks"):
            about["tracks"] = str(path.parent / about["tracks"])
        row = Row(path.parent / record["file_name"], record["file_name"], place, about)
        if row.path.is_file():
            status = row.path.stat()
            row.size, row.time = status.st_size, status.st_mtime_ns
        rows.append(row)
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(rows)} files are not there, first {missing[0]}")
    return rows


def split_rows(rows: list[Row], splits: Splits, account: Account) -> list[Row]:
    """The rows that are packed, their splits by their own names."""
    kept = []
    for row in rows:
        said = str(row.about.pop("split", None) or "").strip()
        if said and splits.names != ():
            split = splits.of_value(said)
            if split is None:
                name = f"{row.place}: {printable(row.name)}" if account.unit == "rows" else printable(row.name)
                account.leave(name, f"its split {said!r} is not of --splits")
                continue
            row.about["split"] = split
        kept.append(row)
    return kept


def _kind(read: Read, column: str) -> str:
    """The name of a column in the rows."""
    return next((kind for kind, name in read.kinds.items() if name == column), column)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()  # a pipe would be waited for
    except (OSError, ValueError):  # a name that no file can have
        return False


def _beside(path: Path, rows: Iterable[Row]) -> int:
    """Files in the folders of the named ones that no row names."""
    named = {(row.path.parent, row.path.name) for row in rows} | {(path.parent, path.name)}
    tracks = (Path(row.about["tracks"]) for row in rows if row.about.get("tracks"))
    named |= {(each.parent, each.name) for each in tracks}
    count = 0
    for folder in {folder for folder, _ in named}:
        with os.scandir(folder) as entries:
            there = [entry.name for entry in entries if entry.is_file() and not system_file(entry.name)]
        count += sum((folder, name) not in named for name in there)
    return count
