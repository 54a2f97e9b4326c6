"""Tables with one file a row."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from viewshards.account import Account, Question, printable, system_file
from viewshards.sources.clips import frames_of
from viewshards.sources.clouds import CLOUDS, Layout
from viewshards.sources.columns import Read, read_table
from viewshards.sources.reader import IMAGES, Reader, is_animation, ranges_of
from viewshards.sources.rows import Choices, Row, Rows
from viewshards.sources.splits import NAME, Splits, split_of


def of_table(path: Path, kind: str | None = None, choices: Choices = Choices(), reader: Reader = Reader()) -> Rows:
    """A CSV, TSV, JSON, JSON lines or Parquet table with one file a row.

    Columns: the file (`file_name` or another usual name; relative to the table; a folder is a clip of the pictures in
    it), and if there are any: `caption` (or `captions`, a list, or in JSON an object from language to one or a list),
    `hard_captions` (a list, of each caption of the row), `language`, `label`, `split`, `tracks` (a clip's `traj.npz`),
    and `id` with `view`, by which several files become the natural views of one sample. Rows of one file are further
    captions of it. In a CSV a list is written as JSON. All other columns are kept in the sample's `.json`; there an
    integer `same` marks known duplicates: samples of one number are right answers to each other in retrieval, and
    never each other's negatives.

    Args:
        path: of the table. kind: whether animated pictures are of kind `image` or `clip`; None: if that is plain.
        choices: what a user says of it. reader: makes of a file what a shard holds.

    Raises:
        FileNotFoundError: if a file is not there. ValueError: for a table that cannot be read, naming the line.
    """
    read = read_table(path, choices.columns, reader.limits)
    account = Account("rows", len(read.rows), notes=[read.told])
    rows = rows_of(path, read, choices.outside, account)
    account.beside = _beside(path, rows)
    rows, dropped = split_rows(rows, choices.splits, "split" in read.kinds)
    for row, why in dropped:
        account.leave(f"{row.place}: {printable(row.name)}", why)
    name = path.parent.resolve().name if path.stem == "metadata" else path.stem
    choices, reader = renamed(read, choices), reader_of(str(path), rows, kind, choices, reader, account)
    return Rows(name.replace(".", "_"), rows, choices, reader, account, of_rows=True)


def rows_of(path: Path, read: Read, outside: bool, account: Account) -> list[Row]:
    """The rows of a table, each with the files it names.

    Raises:
        FileNotFoundError: if one is not there. ValueError: if one lies outside of the table's folder.
    """
    rows, missing = [], []
    for record, where in zip(read.rows, read.places, strict=True):
        about = {column: value for column, value in record.items() if column != "file_name"}
        about |= {name: about[name].strip() for name in ("label", "split") if isinstance(about.get(name), str)}
        place = f"{path} {where}"
        for kind, name in (("file_name", record["file_name"]), ("tracks", about.get("tracks"))):
            if not name:
                continue
            if not outside and (Path(name).is_absolute() or ".." in Path(name).parts):
                raise ValueError(f"{place}: {name!r} lies outside of the table's folder; --outside allows that")
            if not _is_there(path.parent / name):
                missing.append(f"{place}, column {read.kinds[kind]!r}: {printable(name)!r}")
        row = Row(path.parent / record["file_name"], record["file_name"], place, about)
        if about.get("tracks"):
            row.more = [about["tracks"]]
            about["tracks"] = str(path.parent / about["tracks"])
        if row.path.is_file():
            status = row.path.stat()
            row.size, row.time = status.st_size, status.st_mtime_ns
        elif row.path.is_dir():
            row.frames, others = frames_of(row.path)
            if others:
                account.notes.append(f"{row.name}: files among the frames that are none, such as {others[0]}")
            if not row.frames:
                raise ValueError(f"{place}: no pictures in the folder {printable(row.name)!r}")
        rows.append(row)
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(rows)} files are not there, first {missing[0]}")
    return rows


def split_rows(rows: Sequence[Row], splits: Splits, there: bool) -> tuple[list[Row], list[tuple[Row, str]]]:
    """The rows that are packed, their splits by their own names; and those that are not, with the reason.

    Args:
        rows: of a table. splits: what a user says of them. there: whether the table has a column of splits.

    Raises:
        ValueError: for rows of one file that contradict each other, and for what cannot be the name of a split.
            Question: if no value is a usual name of a split.
    """
    if splits.names == () or not there:
        for row in rows:
            row.about.pop("split", None)
        if splits.names:
            raise ValueError(f"--splits {splits.names[0][0]}={splits.names[0][1]}: the table has no column of splits")
        return list(rows), []
    said: dict[str, tuple[str, Row]] = {}
    for row in rows:
        value = row.about.pop("split", None)
        word = "" if value is None or value != value else str(value)
        before, where = said.setdefault(posixpath.normpath(row.name), (word, row)) if word else (word, row)
        if before != word and (split_of(before) or before) != (split_of(word) or word):
            raise ValueError(
                f"{where.place} and {row.place}: split of {printable(row.name)} is {before!r} in one and {word!r} in "
                "the other"
            )
    values = {word for word, _ in said.values()}
    unused = [name for _, name in splits.names or () if name not in values]
    if unused:
        raise ValueError(f"--splits: no row is of {', '.join(unused)}; there are {', '.join(sorted(values))[:200]}")
    if splits.names is None and values and not any(map(split_of, values)):
        listed = sorted(values)
        raise Question(
            f"splits are called {', '.join(listed)[:200]}: say which is which, such as --splits train={listed[0]}"
        )
    kept, dropped = [], []
    for row in rows:
        word, where = said.get(posixpath.normpath(row.name), ("", row))
        split = splits.of_value(word) if word else None
        if word and split is None:
            dropped.append((row, f"in a split that --splits does not name: {word}"))
            continue
        if split is not None and not NAME.fullmatch(split):
            raise ValueError(f"{where.place}: a split is a name of letters, digits, - and _, got {word!r}")
        row.about |= {"split": split} if split is not None else {}
        kept.append(row)
    return kept, dropped


def reader_of(
    what: str, rows: Sequence[Row], kind: str | None, choices: Choices, reader: Reader, account: Account
) -> Reader:
    """The reader for the files of rows, with the ranges of their pixels; notes how these were found.

    Raises:
        ValueError: for options that would not be used. Question: if it is open whether animated pictures are clips.
    """
    if kind not in (None, "image", "clip"):
        raise ValueError(f"{what}: --kind {kind} would not be used: a table says which files are packed")
    suffixes = {row.path.suffix.lower() for row in rows}
    animated = [row for row in rows if is_animation(row.path, row.path.suffix.lower(), reader.limits)]
    pictures = [row.path for row in rows if row.path.suffix.lower() in IMAGES or reader.channels]
    if kind is None and animated and len(animated) < len(pictures):
        raise Question(
            f"{what}: {len(animated)} of {len(pictures)} pictures are animated, such as {animated[0].name}: say --kind "
            "image for their first frames, or --kind clip"
        )
    if reader.clouds != Layout() and not suffixes & CLOUDS:
        raise ValueError(f"{what}: --cloud-axes and --cloud-array are of clouds, and would not be used: leave them out")
    pictures += [path for row in rows for path in row.frames]
    ranges, told = ranges_of(pictures, choices.value_range, reader.limits, reader.channels)
    account.notes += told
    return replace(reader, kind=kind, ranges=ranges)


def renamed(read: Read, choices: Choices) -> Choices:
    """Choices that name columns as the rows do."""
    kinds = {column: kind for kind, column in read.kinds.items()}
    labels = tuple(kinds.get(label, label) for label in choices.labels)
    by = choices.split_by
    return replace(choices, labels=labels, split_by=by if by is None else kinds.get(by, by))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()  # a pipe would be waited for
    except (OSError, ValueError):  # a name that no file can have
        return False


def _beside(path: Path, rows: Iterable[Row]) -> int:
    """Files in the folders of the named ones that no row names."""
    files = [path, *(row.path for row in rows), *(Path(row.about["tracks"]) for row in rows if row.about.get("tracks"))]
    named = {(each.parent, each.name) for each in files}
    count = 0
    for folder in {folder for folder, _ in named}:
        with os.scandir(folder) as entries:
            there = [entry.name for entry in entries if entry.is_file() and not system_file(entry.name)]
        count += sum((folder, name) not in named for name in there)
    return count
