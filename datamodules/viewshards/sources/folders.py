"""Folders of files: splits and classes by the folders they lie in, or by a table among them."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from viewshards.account import Account, Question, printable, system_file
from viewshards.sources import clouds
from viewshards.sources.columns import TABLES, has_files, read_table
from viewshards.sources.hdf5 import Hdf5
from viewshards.sources.reader import KINDS, WEAK, Reader, is_animation, kind_of_file, ranges_of
from viewshards.sources.rows import Choices, Row, Rows
from viewshards.sources.source import Source
from viewshards.sources.splits import layout, split_in, split_of
from viewshards.sources.tables import reader_of, renamed, rows_of, split_rows
from viewshards.sources.tree import File, Tree, natural

ARCHIVES = frozenset({".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
TRACKS = ".traj.npz"


def of_folder(root: Path, kind: str | None = None, choices: Choices = Choices(), reader: Reader = Reader()) -> Source:
    """Files in `[SPLIT/][CLASS/]**`, torchvision's layout; a `metadata.csv`, or another table among them, says more.

    Args:
        root: the folder. kind: of the files that are packed: image, cloud, clip or h5; None: if there is one only.
        choices: what a user says of it. reader: makes of a file what a shard holds.

    Raises:
        FileNotFoundError: if there is nothing to pack. ValueError: for options that would not be used. Question: if it
            can be understood in several ways.
    """
    tree = Tree.of(root, reader.limits)
    tables = _tables(root, tree.files, choices, reader)
    if tables:
        return _by_tables(tree, tables, kind, choices, reader)
    found, kinds = _kind(root, tree.files, kind, reader.channels)
    _refuse_unused(root, found, choices, reader)
    account = tree.account()
    if found == "h5":
        return Hdf5(root, [file for file in tree.files if kinds[file.name] == "h5"], choices, account, reader)
    rows, odd = _clips(root, tree.files, kinds) if found == "clip" else (_files(root, tree.files, kinds, found), {})
    taken = _taken(rows)
    for file in tree.files:
        if file.name not in taken:
            account.leave(printable(file.name), odd.get(file.name) or _reason(file, kinds[file.name], found))
    _leave(account, [row for row in rows if row.size == 0], "an empty file")
    rows = _placed(root, [row for row in rows if row.size != 0], choices, account)
    if not rows:
        raise FileNotFoundError("\n".join([f"{root}: nothing to pack below it", *account.lines(), *account.listed()]))
    pictures = [path for row in rows for path in row.frames or [row.path]] if found in ("image", "clip") else []
    ranges, told = ranges_of(pictures, choices.value_range, reader.limits, reader.channels)
    account.notes += told
    classes = sorted({row.about["label"] for row in rows if "label" in row.about}) or None
    reader = replace(reader, kind=found, ranges=ranges)
    return Rows(_name(root), rows, choices, reader, account, classes, roots=tree.roots)


def _name(root: Path) -> str:
    return root.resolve().name.replace(".", "_") or "data"


def _placed(root: Path, rows: Sequence[Row], choices: Choices, account: Account, label: bool = True) -> list[Row]:
    """The rows with the split and class of their folders; notes what was understood, and leaves out others."""
    places = layout(root, [row.name for row in rows], choices.splits)
    account.notes += places.notes
    kept = []
    for row in rows:
        place = places.places.get(row.name)
        if place is None:
            _leave(account, [row], places.left_out[row.name])
            continue
        row.about |= {"split": place.split} if place.split is not None else {}
        row.about |= {"label": place.label} if label and place.label is not None else {}
        row.key = place.rest
        kept.append(row)
    deep = next((row for row in kept if label and "label" in row.about and row.key.count("/") > 1), None)
    if deep:
        account.notes.append(f"folders below classes are no labels, such as that of {printable(deep.name)!r}")
    return kept


def _leave(account: Account, rows: Sequence[Row], why: str) -> None:
    for row in rows:
        for name in _taken([row]):
            account.leave(printable(name), why)


def _refuse_unused(root: Path, kind: str, choices: Choices, reader: Reader) -> None:
    """Raises ValueError for options that are of something else than is packed."""
    said: dict[str, dict[str, object]] = {
        "for tables, and no table is used here: leave it out, or say which by --table": {
            "--labels": choices.labels, "--split-by": choices.split_by, "--columns": choices.columns.names,
            "--encoding": choices.columns.encoding, "--outside": choices.outside,
        },
        "of clouds, and would not be used: leave it out": {
            "--cloud-axes": kind not in ("cloud", "h5") and reader.clouds.axes,
            "--cloud-array": kind != "cloud" and reader.clouds.array,
        },
        "of pictures, and would not be used: leave it out": {
            "--channels": kind != "image" and reader.channels,
            "--value-range": kind not in ("image", "clip") and choices.value_range,
        },
    }  # fmt: skip
    for why, options in said.items():
        unused = [option for option, value in options.items() if value]
        if unused:
            raise ValueError(f"{root}: {', '.join(unused)} is {why}")


def _taken(rows: Sequence[Row]) -> set[str]:
    """Names of all files of rows."""
    whole = {name for row in rows for name in (row.name, *row.more)}
    return whole | {f"{row.name}/{path.name}" for row in rows for path in row.frames}


def _kind(
    root: Path, files: Sequence[File], asked: str | None, channels: int | None
) -> tuple[str, dict[str, str | None]]:
    """The kind of file to pack, and the kind of each."""
    kinds = {
        file.name: None if file.name.endswith(TRACKS) else kind_of_file(root / file.name, file.suffix) for file in files
    }
    if channels is not None:  # then an array is a picture
        asked = "image"
        kinds |= {file.name: "image" for file in files if file.suffix == ".npy"}
    weak = [file for file in files if file.suffix in WEAK and kinds[file.name] == "cloud"]
    kinds |= dict.fromkeys((file.name for file in weak), None)
    if asked == "cloud" or set(kinds.values()) <= {None, "cloud"}:
        kinds |= {file.name: "cloud" for file in weak if file.suffix != ".txt" or _is_cloud(root / file.name)}
    counts = Counter(filter(None, kinds.values()))
    if asked == "clip" and counts["image"]:
        counts["clip"] += 1  # folders of frames, animated pictures
    if not counts or (asked and not counts[asked]):
        known = ", ".join(sorted(extension for extensions in KINDS.values() for extension in extensions))
        tars = sum(file.suffix == ".tar" for file in files)
        hint = f". There are {tars} tars: `viewshards index {root}` reads them where they are" if tars else ""
        of = f" of kind {asked}" if asked else ""
        raise FileNotFoundError(f"{root}: nothing to pack{of} below it; known are {known}{hint}")
    if not asked and len(counts) > 1:
        there = ", ".join(f"{count} of kind {name}" for name, count in counts.items())
        raise Question(f"{root}: files of several kinds, {there}: say which by --kind")
    return asked or next(iter(counts)), kinds


def _is_cloud(path: Path) -> bool:
    with open(path, "rb") as file:
        return clouds.is_text_cloud(file.read(2000))


def _reason(file: File, kind: str | None, packed: str) -> str:
    if kind:
        return f"of kind {kind}, and {packed} is packed; --kind {kind} packs those"
    if file.name.endswith(TRACKS):
        return "trajectories without their clip"
    if file.suffix == ".tar":
        return "a tar: `viewshards index` reads it where it is"
    if file.suffix in ARCHIVES:
        return "an archive: unpack it"
    if file.suffix in TABLES:
        return "a table that names no file here, or is not used"
    return f"no format that is packed ({file.suffix or 'no extension'})"


def _row(root: Path, file: File) -> Row:
    return Row(root / file.name, file.name, file.name, size=file.size, time=file.time)


def _files(root: Path, files: Sequence[File], kinds: dict[str, str | None], kind: str) -> list[Row]:
    return [_row(root, file) for file in files if kinds[file.name] == kind]


def _clips(root: Path, files: Sequence[File], kinds: dict[str, str | None]) -> tuple[list[Row], dict[str, str]]:
    """Video files, animated pictures, folders whose pictures are the frames of one clip; why others are no frames."""
    there = {file.name for file in files}
    rows, pictures, odd = list[Row](), defaultdict[str, list[str]](list), dict[str, str]()
    for file in files:
        if kinds[file.name] == "clip":
            rows.append(_row(root, file))
            tracks = f"{posixpath.splitext(file.name)[0]}{TRACKS}"
            if tracks in there:
                rows[-1].about["tracks"], rows[-1].more = str(root / tracks), [tracks]
        elif kinds[file.name] == "image" and file.size and is_animation(root / file.name, file.suffix):
            rows.append(_row(root, file))
        elif kinds[file.name] == "image":
            pictures[posixpath.dirname(file.name)].append(file.name)
    with_clips = {posixpath.dirname(row.name) for row in rows}
    for folder, names in pictures.items():
        if folder in with_clips or not folder:
            odd |= dict.fromkeys(names, "a picture beside clips, and no frame of one")
            continue
        names.sort(key=natural)
        rows.append(Row(root / folder, folder, folder, frames=[root / name for name in names]))
    return sorted(rows, key=lambda row: row.name.split("/")), odd


def _tables(root: Path, files: Sequence[File], choices: Choices, reader: Reader) -> list[File]:
    """The tables that say more of the files: metadata of the folder or of its splits, or the only one.

    Raises:
        Question: if there are several. FileNotFoundError: if the one that was named is not there.
        ValueError: if one cannot be read.
    """
    if choices.table == "none":
        return []
    if choices.table is not None:
        given = Path(choices.table)
        name = posixpath.normpath(given.relative_to(root) if given.is_relative_to(root) else given)
        named = [file for file in files if file.name == name]
        if not named:
            raise FileNotFoundError(f"{root / choices.table}: not there, which --table names")
        return named
    near = [file for file in files if file.suffix in TABLES and len(file.parts) <= 3]
    found = defaultdict[str, list[File]](list)
    for file in near:
        if has_files(root / file.name, choices.columns, reader.limits):
            found[posixpath.dirname(file.name)].append(file)
    for folder, there in found.items():
        metadata = [file for file in there if Path(file.name).stem.lower() == "metadata"]
        words = {split_in(Path(file.name).stem) for file in there} - {None}
        found[folder] = metadata[:1] if len(metadata) == 1 else there
        if len(found[folder]) > 1 and len(words) < len(there):
            raise _several(root, there)
    if len(found) > 1 and not all(map(split_of, (folder.rpartition("/")[2] for folder in found))):
        raise _several(root, [file for there in found.values() for file in there])
    return [file for there in found.values() for file in there]


def _several(root: Path, tables: Sequence[File]) -> Question:
    listed = ", ".join(file.name for file in tables[:5])
    return Question(f"{root}: several tables name its files: {listed}. Say which by --table, or --table none")


def _by_tables(tree: Tree, tables: Sequence[File], kind: str | None, choices: Choices, reader: Reader) -> Rows:
    """The files of a folder that its tables name."""
    root, account, rows = tree.root, tree.account(), list[Row]()
    has_split = has_label = False
    for table in tables:
        path, folder = root / table.name, posixpath.dirname(table.name)
        read = read_table(path, choices.columns, reader.limits)
        account.notes += [f"{table.name} says which files are packed, and what is said of them", read.told]
        own = split_of(folder.rpartition("/")[2]) or (split_in(path.stem) if len(tables) > 1 else None)
        for row in rows_of(path, read, choices.outside, account):
            row.name, *row.more = (posixpath.normpath(posixpath.join(folder, name)) for name in (row.name, *row.more))
            if own and "split" not in read.kinds:
                row.about["split"] = own
            rows.append(row)
        has_split |= "split" in read.kinds or own is not None
        has_label |= "label" in read.kinds
        choices = renamed(read, choices)
    account.tables = len(tables)
    named = _taken(rows) | {table.name for table in tables}
    if has_split or choices.splits.names == ():
        rows, dropped = split_rows(rows, choices.splits, has_split)
        for row, why in dropped:
            _leave(account, [row], why)
    if not has_split:
        rows = _placed(root, rows, choices, account, label=not has_label)
        for row in rows:
            row.key = row.name
    said = ", ".join(table.name for table in tables)
    for file in tree.files:
        if file.name not in named:
            media = kind_of_file(root / file.name, file.suffix)
            account.leave(printable(file.name), f"not named by {said}" if media else _reason(file, None, ""))
    for name in named - {file.name for file in tree.files}:  # that --outside admits, or of the system
        system = next(
            (word for part in name.split("/") if part not in (".", "..") and (word := system_file(part))), None
        )
        if system and account.skipped[system]:
            account.skipped[system] -= 1
        else:
            account.found += 1
    reader = reader_of(str(root), rows, kind, choices, reader, account)
    return Rows(_name(root), rows, choices, reader, account, roots=tree.roots)
