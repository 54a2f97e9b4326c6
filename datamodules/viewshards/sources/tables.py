"""CSV and JSONL tables with one file a row."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from viewshards import video
from viewshards.limits import Limits
from viewshards.pictures import opened
from viewshards.sources import clouds
from viewshards.sources.source import Source, hashed_split, image_file, times_of, unique

CAPTION_COLUMNS = ("caption", "captions", "hard_captions", "language")
FILE_COLUMNS = ("file_name", "file", "filepath", "path", "image")


class Table(Source):
    """A CSV or JSONL table with one file a row.

    Columns: the file (`file_name`, `file`, `filepath`, `path` or `image`; relative to the table; a folder is a clip of
    the frames in it), and if there are any: `caption` (or `captions`, a list, or in JSONL an object from language to
    one or a list), `hard_captions` (a list, of each caption of the row), `language`, `label`, `split`, `tracks` (a
    clip's `traj.npz`), and `id` with `view`, by which several files become the natural views of one sample. Rows of one
    file are further captions of it. In a CSV a list is written as JSON. All other columns are kept in the sample's
    `.json`; there an integer `same` marks known duplicates: samples of one number are right answers to each other in
    retrieval, and never each other's negatives.
    """

    def __init__(
        self,
        path: Path,
        val_fraction: float,
        labels: Sequence[str],
        split_by: str | None = None,
        outside: bool = False,
    ) -> None:
        self.path, self.name = path, (path.parent.resolve().name if path.stem == "metadata" else path.stem)
        rows = _rows(path)
        column = next((c for c in FILE_COLUMNS if c in rows[0]), None)
        if column is None:
            raise ValueError(f"{path}: no column for the file; expected one of {', '.join(FILE_COLUMNS)}")
        missing = [row[column] for row in rows if not _is_there(path.parent / row[column])]
        if missing:
            raise FileNotFoundError(f"{path}: {len(missing)} of its files are not there, first {missing[0]!r}")
        for number, row in enumerate(rows, 1):
            _check_row(path, number, row, column, outside)
        grouped: dict[str, list[dict[str, Any]]] = {}
        has_views = "id" in rows[0] and "view" in rows[0]
        for row in rows:
            grouped.setdefault(str(row["id"]) if has_views else str(row[column]), []).append(row)
        self.column, self.groups = column, list(grouped.values())
        fields = [f for f in ("label", *labels) if f in rows[0]]
        unknown = {*labels, *([split_by] if split_by else [])} - set(rows[0])
        if unknown:
            raise ValueError(f"{path}: no column {', '.join(sorted(unknown))}; it has {', '.join(rows[0])}")
        self.labels = {f: sorted({str(row[f]) for row in rows if row.get(f) not in (None, "")}) for f in fields}
        if "label" in self.labels:
            self.labels["cls"] = self.labels.pop("label")
        self.numbers = {name: number for number, name in enumerate(self.labels.get("cls", []))}
        keys = unique(key if has_views else key.rpartition(".")[0] or key for key in grouped)
        self.samples = [
            (key, self._split(key, rows[0], split_by, val_fraction))
            for key, rows in zip(keys, self.groups, strict=True)
        ]

        silent = sum(not _captions(rows) for rows in self.groups)
        if 0 < silent < len(self.groups):
            self.notes = [
                f"{silent} of {len(self.groups)} samples have no caption: methods that read texts cannot use them and "
                "stop, unless data.max_broken allows that share; remove the rows, or give them captions"
            ]

    @staticmethod
    def _split(key: str, row: dict[str, Any], split_by: str | None, val_fraction: float) -> str:
        if split_by:
            return hashed_split(str(row[split_by]), val_fraction)
        return str(row.get("split") or hashed_split(key, val_fraction))

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        rows, files = self.groups[sample], {}
        for row in {row[self.column]: row for row in rows}.values():
            extension, data = _content(self.path.parent / row[self.column], self.limits)
            plain = extension.rpartition(".")[2]
            files[f"{row['view']}.{plain}" if "view" in row else extension] = data
        first = rows[0]
        if first.get("tracks"):
            files["traj.npz"] = (self.path.parent / first["tracks"]).read_bytes()
        captions = _captions(rows)
        if captions:
            files["txt"] = next(iter(captions)).encode()
        if str(first.get("label", "")) in self.numbers:
            files["cls"] = str(self.numbers[str(first["label"])]).encode()
        rest = {
            k: v
            for k, v in first.items()
            if k not in (self.column, "label", "split", "view", "tracks", *CAPTION_COLUMNS)
        }
        if len(captions) > 1 or any(any(more) for more in captions.values()):
            rest["captions"] = list(captions)
            for name, column in zip(("hard_captions", "languages"), zip(*captions.values(), strict=True), strict=True):
                rest |= {name: list(column)} if any(column) else {}
        if rest:
            files["json"] = json.dumps(rest, ensure_ascii=False).encode()
        return files

    def fingerprint(self) -> str:  # noqa: D102
        sizes = [(self.path.parent / row[self.column]).stat().st_size for rows in self.groups for row in rows]
        content = json.dumps([super().fingerprint(), self.groups, sizes])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def times(self) -> str:  # noqa: D102
        named = [row[name] for rows in self.groups for row in rows for name in (self.column, "tracks") if row.get(name)]
        return times_of(self.path.parent / name for name in named)


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_dir()  # a pipe would be waited for


def _check_row(path: Path, number: int, row: dict[str, Any], column: str, outside: bool) -> None:
    """Raises ValueError for a file outside of the table's folder, and for a view that cannot be part of a name."""
    for name in (column, "tracks"):
        file = row.get(name)
        if file and not outside and (Path(file).is_absolute() or ".." in Path(file).parts):
            raise ValueError(
                f"{path}: row {number}: {file!r} lies outside of the table's folder; --outside allows that"
            )
    view = row.get("view")
    if view is not None and not re.fullmatch(r"[\w-]+", str(view)):
        raise ValueError(f"{path}: row {number}: a view is a name of letters, digits, - and _, got {view!r}")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, or not a file")
    rows: list[Any] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            if path.suffix == ".csv":
                rows += csv.DictReader(f)
            else:
                rows += [json.loads(line) for line in f if line.strip()]
    except (csv.Error, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: row {len(rows) + 1} or after it cannot be read ({error})") from error
    if not rows:
        raise ValueError(f"{path}: no rows")
    column = next((c for c in FILE_COLUMNS if isinstance(rows[0], dict) and c in rows[0]), None)
    for number, row in enumerate(rows, 1):
        is_right = isinstance(row, dict) and isinstance(row.get(column, "") if column else "", str)
        if not is_right or (column and not row.get(column)) or not isinstance(row.get("tracks") or "", str):
            raise ValueError(f"{path}: row {number}: expected the name of a file in column {column}, got {row!r:.200}")
    return rows


def _captions(rows: list[dict[str, Any]]) -> dict[str, tuple[list[str], str | None]]:
    """The captions of the rows of one sample, each once, with its hard captions and its language."""
    found: dict[str, tuple[list[str], str | None]] = {}
    for row in rows:
        hard, told = _listed(row.get("hard_captions")), row.get("captions")
        spoken: list[tuple[str | None, list[str]]]
        if isinstance(told, dict):
            spoken = [(language, [said] if isinstance(said, str) else _listed(said)) for language, said in told.items()]
        else:
            spoken = [(row.get("language") or None, _listed(told) or [str(row.get("caption") or "")])]
        for language, captions in spoken:
            for caption in captions:
                if caption and caption not in found:
                    found[caption] = hard, language
    return found


def _listed(value: Any) -> list[str]:
    """A list, in a CSV written as JSON."""
    found = value or []
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f'expected a list of texts, in a CSV as JSON such as ["one", "two"]; got {value!r}')
    return found


def _content(path: Path, limits: Limits) -> tuple[str, bytes]:
    """Extension and contents of an image, a cloud or a clip; a folder is a clip of the frames in it."""
    if path.is_dir() or path.suffix.lower() in video.VIDEOS or _is_animated(path, limits):
        return video.clip_file(path, limits)
    if path.suffix.lower() in clouds.CLOUDS:
        return clouds.cloud_file(path, limits=limits)
    return image_file(path, limits)


def _is_animated(path: Path, limits: Limits) -> bool:
    if path.suffix.lower() not in (".webp", ".gif"):
        return False
    with opened(path, limits) as image:
        return getattr(image, "n_frames", 1) > 1
