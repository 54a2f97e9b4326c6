"""Tables as rows: CSV with any separator, JSON, JSON lines, Parquet; which column is what."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viewshards.account import Question
from viewshards.limits import DEFAULT, Limits
from viewshards.sources.splits import split_of

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"})
NAMES = {
    "file_name": "file_name filename file filepath file_path path image img image_path img_path image_file image_name "
    "img_name photo picture video video_path video_file clip cloud points mesh",
    "caption": "caption text title description sentence prompt alt alt_text",
    "captions": "captions texts sentences descriptions",
    "label": "label class category target class_name category_name label_name species",
    "split": "split subset partition set",
    "language": "language lang",
    "hard_captions": "hard_captions",
    "tracks": "tracks",
    "id": "id",
    "view": "view",
}
"""What columns may be called, in any case, and what they are then; the first name goes before the others."""
SEPARATORS = ",;\t|"
BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip

Record = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What a user says of a table.

    Attributes:
        names: the column of each kind of `NAMES` that is not found by its name.
        encoding: of the text; None: by its first bytes, else UTF-8.
    """

    names: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None

    @classmethod
    def parsed(cls, text: str | None, encoding: str | None = None) -> Columns:
        """Of the option's text: `file_name=photo,caption=alt`.

        Raises:
            ValueError: if it is of another form, or for an encoding that nobody knows.
        """
        names: dict[str, str] = {}
        for part in filter(None, (text or "").split(",")):
            kind, equals, column = (each.strip() for each in part.partition("="))
            if kind in names or column in names.values():
                raise ValueError(f"--columns {text}: {kind} or {column} is there twice")
            if kind not in NAMES or not equals or not column:
                raise ValueError(f"--columns {text}: expected KIND=COLUMN,...; kinds are {', '.join(NAMES)}")
            names[kind] = column
        if encoding is not None:
            try:
                b"x".decode(encoding)
            except UnicodeDecodeError:
                pass
            except LookupError as error:
                raise ValueError(f"--encoding {encoding}: no encoding of texts of that name") from error
        return cls(names, encoding)


@dataclass(frozen=True)
class Read:
    """A table.

    Attributes:
        rows: under the names of `NAMES`, other columns under their own. places: of each in the file, for messages.
        kinds: the column of each kind. told: in words which column became what.
    """

    rows: list[Record]
    places: list[str]
    kinds: dict[str, str]
    told: str


def read_table(path: Path, columns: Columns = Columns(), limits: Limits = DEFAULT) -> Read:
    """Reads a table.

    Raises:
        FileNotFoundError: if it is not there. ValueError: naming file and line, if it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, or not a file")
    limits.check("file_bytes", path.stat().st_size, f"{path}: bytes of a table")
    suffix, unnamed = path.suffix.lower(), ""
    if suffix == ".parquet":
        rows, places = _parquet(path)
    else:
        text = _text(path, columns.encoding)
        if suffix in (".csv", ".tsv"):
            rows, places, unnamed = _csv(path, text, columns, limits)
        elif text.lstrip()[:1] == "[" or (suffix == ".json" and not _is_lines(text)):
            rows, places = _list(path, text)
        else:
            rows, places = _lines(path, text)
    if not rows:
        raise ValueError(f"{path}: no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise NoTable(f"{path} {places[number]}: expected an object of columns, got {row!r:.80}")
    found = list(dict.fromkeys(name for row in rows for name in row))
    kinds = _kinds(path, found, columns, rows)
    renamed = {column: kind for kind, column in kinds.items()}
    # A column that another one was named in place of keeps what it says, under another name.
    renamed |= {name: f"other_{name}" for name in found if name in NAMES and name not in renamed}
    kept = [renamed.get(name, name) for name in found if name not in kinds.values()]
    said = ", ".join(f"{column!r}" + (f" is the {kind}" if kind != column else "") for kind, column in kinds.items())
    told = f"{path.name}: {said}" + (f"; kept in .json as they are: {', '.join(map(repr, kept))[:300]}" if kept else "")
    rows = [{renamed.get(name, name): value for name, value in row.items()} for row in rows]
    for row, place in zip(rows, places, strict=True):
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            what = "nothing" if name is None or name == "" else repr(name)[:80]
            raise ValueError(
                f"{path} {place}: expected the name of a file in column {kinds['file_name']!r}, got {what}"
            )
        if not isinstance(row.get("tracks") or "", str):
            raise ValueError(
                f"{path} {place}: expected the name of a file in column 'tracks', got {row['tracks']!r:.80}"
            )
        if row.get("view") is not None and not re.fullmatch(r"[\w-]+", str(row["view"])):
            raise ValueError(f"{path} {place}: a view is a name of letters, digits, - and _, got {row['view']!r}")
    return Read(rows, places, kinds, told + unnamed)


class NoTable(ValueError):
    """A file that is no table of files: it has no column of them, or is no list of objects."""


def has_files(path: Path, columns: Columns, limits: Limits = DEFAULT) -> bool:
    """Whether it is a table whose first row names a file.

    Raises:
        ValueError: if it is one that cannot be read, naming the line.
    """
    with open(path, "rb") as file:
        start = file.read(1000)
    if path.suffix.lower() == ".json" and re.match(rb"(\xef\xbb\xbf)?\s*([^\[{\s]|{\s*\n)", start):
        return False  # no list, of any size
    try:
        read = read_table(path, columns, limits)
    except NoTable:
        return False
    except ValueError as error:
        raise ValueError(f"{error}. If it says nothing of the files: --table none") from error
    names = [str(row["file_name"]) for row in read.rows[:100]]
    return path.stem.lower() == "metadata" or any((path.parent / name).exists() for name in names)


def _kinds(path: Path, found: Sequence[str], columns: Columns, rows: Sequence[Record]) -> dict[str, str]:
    """The column of each kind.

    Raises:
        ValueError: a question where several can be meant, and without a column for the file.
    """
    plain: dict[str, str] = {}
    for name in found:
        word = _plain(name)
        if word in plain and any(word in names.split() for names in NAMES.values()):
            raise ValueError(f"{path}: two columns of one name, {plain[word]!r} and {name!r}")
        plain.setdefault(word, name)
    kinds: dict[str, str] = {}
    for kind, names in NAMES.items():
        if kind in columns.names:
            if columns.names[kind] not in found:
                raise ValueError(
                    f"{path}: no column {columns.names[kind]!r}, which --columns names; it has {_had(found)}"
                )
            kinds[kind] = columns.names[kind]
            continue
        fitting = [plain[name] for name in names.split() if name in plain and plain[name] not in columns.names.values()]
        if kind == "split":
            fitting = [name for name in fitting if _plain(name) == "split" or _are_splits(path, rows, name)]
        if kind == "file_name" and len(fitting) > 1 and _plain(fitting[0]) != kind:
            there = [name for name in fitting if _is_file(path, rows[0].get(name))]
            fitting = there or fitting
        if len(fitting) > 1 and _plain(fitting[0]) != kind:
            raise Question(
                f"{path}: which column is the {kind}: {' or '.join(map(repr, fitting))}? Say --columns "
                f"{kind}={fitting[0]}"
            )
        if fitting:
            kinds[kind] = fitting[0]
    if "file_name" not in kinds:
        raise _no_file(path, found)
    return kinds


def _no_file(path: Path, found: Sequence[str]) -> NoTable:
    names = NAMES["file_name"].replace(" ", ", ")
    return NoTable(
        f"{path}: no column for the file; expected one of {names}, in any case; it has {_had(found)}. Say which by "
        "--columns file_name=COLUMN"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _had(found: Sequence[str]) -> str:
    return ", ".join(map(repr, found))[:300]


def _are_splits(path: Path, rows: Sequence[Record], name: str) -> bool:
    """Whether a column that can be called otherwise holds splits.

    Raises:
        Question: if only some of its values are usual names of splits.
    """
    values = {str(row[name]).strip() for row in rows if row.get(name) not in (None, "")}
    usual = {value for value in values if split_of(value)}
    if usual and usual != values:
        raise Question(
            f"{path}: is column {name!r} the split? It has {_had(sorted(usual))}, {_had(sorted(values - usual)[:5])}: "
            f"say --columns split={name}, or rename it"
        )
    return bool(values) and usual == values


def _is_file(path: Path, name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(name) and (path.parent / name).exists()
    except OSError:
        return False


def _text(path: Path, encoding: str | None) -> str:
    data = path.read_bytes()
    known = encoding or next((name for bom, name in BOMS if data.startswith(bom)), None)
    if known is None and b"\0" in data[:200]:
        raise ValueError(f"{path}: not UTF-8 (it has zero bytes); say what it is by --encoding, such as utf-16-le")
    try:
        return data.decode(known or "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{path} line {line}, byte {column}: not {known or 'UTF-8'} (byte 0x{data[error.start]:02X}); say what "
            "it is by --encoding, such as --encoding latin-1"
        ) from error


def _csv(path: Path, text: str, columns: Columns, limits: Limits) -> tuple[list[Record], list[str], str]:
    said = re.match(r"sep=(.)\r?\n", text)  # as Excel writes it
    body = text[said.end() :] if said else text
    offset = 1 if said else 0
    separator = said[1] if said else "\t" if path.suffix.lower() == ".tsv" else _separator(body, columns)
    rows: list[Record] = []
    places: list[str] = []
    csv.field_size_limit(limits.text_bytes)  # of the process; Python's own is a hundred thousand
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    unnamed: set[int] = set()
    line = 0
    try:
        while True:
            line = reader.line_num + 1 + offset
            record = next(reader)
            if not any(cell.strip() for cell in record):
                continue
            if header is None:
                header = [cell.strip() for cell in record]
                doubled = next((name for name in header if name and header.count(name) > 1), None)
                if doubled:
                    raise ValueError(f"{path} line {line}: two columns of one name, {doubled!r}")
                if not columns.names and not any(_plain(name) in NAMES["file_name"].split() for name in header):
                    raise _no_file(path, header)
            elif len(record) != len(header):
                raise ValueError(
                    f"{path} line {line}: {len(record)} fields, the header has {len(header)} ({_had(header)}); a text "
                    f"with a {separator!r} in it must stand in quotes"
                )
            else:
                rows.append({name: cell for name, cell in zip(header, record, strict=True) if name})
                cells = [number for number, name in enumerate(header, 1) if not name and record[number - 1].strip()]
                unnamed |= set(cells)
                places.append(f"line {line}")
    except StopIteration:
        listed = ", ".join(map(str, sorted(unnamed)))
        return rows, places, f"; columns without a name are left out: number {listed}" if unnamed else ""
    except csv.Error as error:
        hint = (
            "raise it by --limit text_bytes=NUMBER" if "field limit" in str(error) else "quotes in quotes are doubled"
        )
        raise ValueError(f"{path} line {line}: {error}; {hint}") from error


def _separator(text: str, columns: Columns) -> str:
    """The one by which the header has a column for the file, and the most columns."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    files = {*NAMES["file_name"].split(), _plain(columns.names.get("file_name", "file"))}

    def fit(separator: str) -> tuple[bool, int]:
        cells = next(csv.reader([first], delimiter=separator), [])
        return any(_plain(cell) in files for cell in cells), len(cells)

    return max(SEPARATORS, key=fit)


def _is_lines(text: str) -> bool:
    """Whether a file that is called .json holds one object a line."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    return len(lines) > 1 and all(line.strip().startswith("{") and line.strip().endswith("}") for line in lines)


def _pairs(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _json(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {line + error.lineno - 1}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} line {line}: {error or type(error).__name__}") from error


def _lines(path: Path, text: str) -> tuple[list[Any], list[str]]:
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_json(path, line, n) for n, line in numbered], [f"line {n}" for n, _ in numbered]


def _list(path: Path, text: str) -> tuple[list[Any], list[str]]:
    found = _json(path, text, 1)
    if not isinstance(found, list):
        keys = f" with the keys {', '.join(map(repr, found))[:200]}" if isinstance(found, dict) else ""
        raise NoTable(f"{path}: expected a list of objects, one a file, got {type(found).__name__}{keys}")
    return found, [f"entry {n}" for n in range(1, len(found) + 1)]


def _parquet(path: Path) -> tuple[list[Any], list[str]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading it needs pyarrow: pip install 'manyviews[parquet]'") from error
    read: Callable[[Path], Any] = parquet.read_table
    try:
        rows = read(path).to_pylist()
    except Exception as error:  # pyarrow's errors are of many kinds
        raise ValueError(f"{path}: not readable as Parquet ({error})") from error
    return [{name: _of_arrow(path, n, name, value) for name, value in row.items()} for n, row in enumerate(rows, 1)], [
        f"row {n}" for n in range(1, len(rows) + 1)
    ]


def _of_arrow(path: Path, row: int, name: str, value: Any) -> Any:
    """A value as JSON can hold it.

    Raises:
        ValueError: for bytes, which are no name of a file and no text.
    """
    if isinstance(value, bytes) or (
        isinstance(value, dict) and any(isinstance(each, bytes) for each in value.values())
    ):
        raise ValueError(f"{path} row {row}: column {name!r} holds bytes; write them into files, and their names here")
    if isinstance(value, str | int | float | list | dict | None):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
