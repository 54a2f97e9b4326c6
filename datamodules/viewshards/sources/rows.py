"""Rows, each naming one file: what folders and tables alike become before they are packed."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from viewshards.account import Account, Question, printable
from viewshards.sample import BANDS
from viewshards.sources.columns import Columns
from viewshards.sources.reader import Reader
from viewshards.sources.source import Source, hashed, hashed_split, times_of, unique
from viewshards.sources.splits import Splits

CAPTION_COLUMNS = ("caption", "captions", "hard_captions", "language")
READ = ("label", "split", "view", "tracks", *CAPTION_COLUMNS)


@dataclass
class Row:
    """One file, and what is said of it.

    Attributes:
        path: where it lies; a folder is a clip of the pictures in it. name: as the source calls it.
        place: where that is said, for messages: `labels.csv line 3`, or the name.
        about: what is said, under the names of `viewshards.sources.columns`, and other columns under their own.
        frames: the pictures of a clip that is a folder, where a walk has found them.
        more: names of other files that belong to it. key: what its key is made of; empty: its name.
        size, time: of the file, bytes and ns; None for a folder.
    """

    path: Path
    name: str
    place: str
    about: dict[str, Any] = field(default_factory=dict)
    frames: list[Path] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    key: str = ""
    size: int | None = None
    time: int | None = None


@dataclass(frozen=True)
class Choices:
    """What a user says of a source.

    Attributes:
        splits: names of splits. val_fraction: share of the samples that becomes `val`; None: not said.
        labels: further columns that are labels. split_by: column by whose hash rows are split, so that equal values
            stay together.
        columns: of a table, which is what. outside: whether it may name files outside of its folder.
        table: which file of a folder is the table that says more of its files; `none`: no file.
        value_range: what is black and white in pictures of 32 bits and floats.
    """

    splits: Splits = field(default_factory=Splits)
    val_fraction: float | None = None
    labels: tuple[str, ...] = ()
    split_by: str | None = None
    columns: Columns = field(default_factory=Columns)
    outside: bool = False
    table: str | None = None
    value_range: tuple[float, float] | None = None


class Rows(Source):
    """Samples of rows: rows of one file are further captions of it, rows of one `id` with a `view` are its views.

    Args:
        name: of the set. rows: what it is of. choices: how it is split and labelled.
        reader: makes of a file what a shard holds. account: of what is not in the rows.
        classes: names of the classes in order; None: those of the rows, in the order of numbers if all are numbers.
        of_rows: whether the account counts rows, instead of files. roots: see `Source`.

    Raises:
        ValueError: for rows that contradict each other, naming both.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        choices: Choices,
        reader: Reader,
        account: Account,
        classes: list[str] | None = None,
        of_rows: bool = False,
        roots: Sequence[Path] = (),
    ) -> None:
        self.roots, self.name, self.rows, self.reader, self._account, self.of_rows = (
            roots, name, rows, reader, account, of_rows
        )  # fmt: skip
        has_views = any(_said(row, "id") and _said(row, "view") for row in rows)
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if has_views and not (_said(row, "id") and _said(row, "view")):
                raise ValueError(f"{row.place}: no id or no view, which other rows have")
            key = str(row.about["id"]) if has_views else posixpath.normpath(row.name)
            groups.setdefault(key, []).append(row)
        self.groups, self.has_views = list(groups.values()), has_views
        for group in self.groups:
            _check_group(group, has_views, choices.labels)
        self.merged = [_merged(group) for group in self.groups]
        columns = {column for row in rows for column in row.about}
        unknown = {*choices.labels, *([choices.split_by] if choices.split_by else [])} - columns
        if unknown:
            known = ", ".join(sorted(columns)) or "none"
            raise ValueError(f"{name}: no column {', '.join(sorted(unknown))}; there are {known}")
        self.labels = {
            label: _ordered({_word(row.about[label]) for row in rows if _said(row, label)})
            for label in ("label", *choices.labels)
            if any(_said(row, label) for row in rows)
        }
        if "label" in self.labels:
            found = self.labels.pop("label")
            self.labels = {"cls": [printable(each) for each in classes or found], **self.labels}
            self.numbers = {each: number for number, each in enumerate(classes or found)}
        else:
            self.numbers = {}
        keys = unique(key if has_views else _stem(group[0].key or key, group[0]) for key, group in groups.items())
        self.samples = list(zip(keys, self._splits(keys, choices), strict=True))
        self._tell(choices)

    @property
    @override
    def account(self) -> Account:
        return self._account.copy()

    def _splits(self, keys: Sequence[str], choices: Choices) -> list[str]:
        """The split of each sample: said, or by a hash of its key or of a column."""
        told = [str(about["split"]) if _is_said(about.get("split")) else None for about in self.merged]
        has_val = "val" in told
        out = []
        if choices.split_by and has_val:
            raise ValueError(
                f"{self.name}: a val split is given, and --split-by {choices.split_by} makes another: leave one out "
                "(--splits none ignores the column)"
            )
        if choices.val_fraction is not None and has_val and None not in told:
            raise ValueError(f"{self.name}: there is a val split, and --val-fraction would not be used: leave it out")
        for key, split, about in zip(keys, told, self.merged, strict=True):
            by = key if choices.split_by is None else _word(about.get(choices.split_by))
            is_divided = choices.val_fraction or choices.split_by  # a given train without a val
            if split is None or (split == "train" and is_divided and not has_val):
                out.append(hashed_split(by, choices.val_fraction))
            else:
                out.append(split)
        if out and set(told) == {None} and "train" not in out:  # a few samples, of which a hash leaves none
            out = ["train"] * len(out)
        if told.count(None) and told.count(None) < len(told) and not choices.split_by:
            self._account.notes.append(
                f"{told.count(None):,} of {len(told):,} samples name no split: they are split by a hash of their names"
            )
        return out

    def _tell(self, choices: Choices) -> None:
        silent = sum(not captions_of(group) for group in self.groups)
        if 0 < silent < len(self.groups):
            self._account.notes.append(
                f"{silent:,} of {len(self.groups):,} samples have no caption: methods that read texts cannot use them "
                "and stop, unless data.max_broken allows that share; remove the rows, or give them captions"
            )
        differing = {name: group for group in self.groups for name in _differing(group)}
        for name, group in differing.items():
            self._account.notes.append(
                f"rows of one sample differ in {name!r}, and the first is kept: {group[0].place}"
            )
        for name in ("label", *choices.labels):
            there = sum(_is_said(about.get(name)) for about in self.merged)
            if 0 < there < len(self.groups):
                self._account.notes.append(
                    f"{len(self.groups) - there:,} of {len(self.groups):,} samples have no {name}"
                )

    @override
    def parts(self, sample: int) -> tuple[str, list[str]]:
        group = self.groups[sample]
        if self.of_rows:
            return "packed", [f"{row.place}: {printable(row.name)}" for row in group]
        if group[0].frames:
            return "frames", [f"{printable(group[0].name)}/{printable(path.name)}" for path in group[0].frames]
        return "packed", list(dict.fromkeys(printable(name) for row in group for name in (row.name, *row.more)))

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        return self.read(sample)[0]

    @override
    def read(self, sample: int) -> tuple[dict[str, bytes], list[str]]:
        group, files, told = self.groups[sample], dict[str, bytes](), list[str]()
        by_view = {str(row.about["view"]) if self.has_views else "": row for row in group}
        for view, row in by_view.items():
            try:
                extension, data, notes = self.reader(row.path, row.frames)
            except Question as error:
                raise Question(f"{printable(row.name)}: {error}") from error
            except ValueError as error:
                raise ValueError(f"{printable(row.name)}: {error}" if self.of_rows or view else str(error)) from error
            told += notes
            plain = extension if extension == BANDS else extension.rpartition(".")[2]
            files[f"{view}.{plain}" if view else extension] = data
        first = self.merged[sample]
        tracks = first.get("tracks")
        if tracks:
            files["traj.npz"] = Path(tracks).read_bytes()
        captions = captions_of(group)
        if captions:
            files["txt"] = next(iter(captions)).encode(errors="backslashreplace")
        if _is_said(first.get("label")):
            files["cls"] = str(self.numbers[_word(first["label"])]).encode()
        names = {view: printable(row.name) for view, row in by_view.items()}
        about: dict[str, Any] = {"file_name": names if self.has_views else names[""]}
        about |= {name: value for name, value in first.items() if name not in READ}
        if len(captions) > 1 or any(any(more) for more in captions.values()):
            about["captions"] = list(captions)
            for name, column in zip(("hard_captions", "languages"), zip(*captions.values(), strict=True), strict=True):
                about |= {name: list(column)} if any(column) else {}
        files["json"] = json.dumps(about, ensure_ascii=False).encode(errors="backslashreplace")
        return files, told

    @override
    def fingerprint(self) -> str:
        rows = [[row.name, row.about, row.size] for group in self.groups for row in group]
        return hashed([super().fingerprint(), rows])

    @override
    def times(self) -> str:
        tracks = [Path(row.about["tracks"]) for row in self.rows if row.about.get("tracks")]
        frames = (path for row in self.rows for path in row.frames)
        return hashed([[row.time for row in self.rows], times_of([*frames, *tracks])])


def _said(row: Row, name: str) -> bool:
    return _is_said(row.about.get(name))


def _is_said(value: Any) -> bool:
    return value is not None and value == value and str(value) != ""  # NaN is how tables leave out a number


def _merged(group: Sequence[Row]) -> dict[str, Any]:
    """What the rows of a sample say: of each column the first value."""
    if len(group) == 1:
        return group[0].about
    columns = dict.fromkeys(column for row in group for column in row.about)
    return {
        column: next((row.about[column] for row in group if _said(row, column)), group[0].about.get(column))
        for column in columns
    }


def _differing(group: Sequence[Row]) -> list[str]:
    """Columns of which only the first value is kept."""
    if len(group) == 1:
        return []
    columns = {column for row in group for column in row.about} - {*READ, "id"}
    return [column for column in columns if len({str(row.about.get(column)) for row in group}) > 1]


def _word(value: Any) -> str:
    """A class's name: numbers without the point that tables with gaps give them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ordered(names: set[str]) -> list[str]:
    numbers = all(name.isdecimal() and name.isascii() and len(name) < 19 for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _stem(key: str, row: Row) -> str:
    return key if row.size is None or "." not in key.rpartition("/")[2][1:] else key.rpartition(".")[0]


def _check_group(group: Sequence[Row], has_views: bool, labels: Sequence[str]) -> None:
    """Raises ValueError where rows of one sample contradict each other, naming both."""
    first: dict[str, tuple[Any, Row]] = {}
    views: dict[str, Row] = {}
    for row in group:
        for name in ("split", "label", "tracks", *labels):
            if not _said(row, name):
                continue
            if isinstance(row.about[name], list | dict) and name != "tracks":
                raise ValueError(
                    f"{row.place}: {name} is {row.about[name]!r:.80}: a sample has one class of each kind; give each "
                    "kind a column of its own, and name it by --labels"
                )
            word = _word(row.about[name])
            before, where = first.setdefault(name, (word, row))
            if before != word:
                raise ValueError(
                    f"{where.place} and {row.place}: {name} of {printable(row.name)} is {before!r} in one and {word!r} "
                    "in the other"
                )
        if has_views:
            before_row = views.setdefault(str(row.about["view"]), row)
            if posixpath.normpath(before_row.name) != posixpath.normpath(row.name):
                raise ValueError(
                    f"{before_row.place} and {row.place}: two files for view {row.about['view']!r} of "
                    f"{row.about['id']!r}: {printable(before_row.name)} and {printable(row.name)}"
                )


def captions_of(group: Sequence[Row]) -> dict[str, tuple[list[str], str | None]]:
    """The captions of the rows of one sample, each once and none of blanks, with its hard captions and its language."""
    found: dict[str, tuple[list[str], str | None]] = {}
    for row in group:
        about = row.about
        hard, told = listed(about.get("hard_captions"), row.place), about.get("captions")
        spoken: list[tuple[str | None, list[str]]] = []
        language = str(about["language"]) if _said(row, "language") else None
        if isinstance(about.get("caption"), list | Mapping):
            told = about["caption"] if told is None else told
        elif _said(row, "caption"):
            spoken.append((language, [str(about["caption"])]))
        if isinstance(told, Mapping):
            spoken += [
                (each, [said] if isinstance(said, str) else listed(said, row.place)) for each, said in told.items()
            ]
        else:
            spoken.append((language, listed(told, row.place)))
        for each, captions in spoken:
            for caption in captions:
                if caption.strip() and caption not in found:
                    found[caption] = hard, each
    return found


def listed(value: Any, place: str) -> list[str]:
    """A list of texts, in a CSV written as JSON."""
    found = [] if value is None or value != value else value
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(
            f'{place}: expected a list of texts, in a CSV as JSON such as ["one", "two"]; got {value!r:.200}'
        )
    return found
