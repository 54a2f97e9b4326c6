"""Folders of files: splits and classes by the folders they lie in, or by a table among them."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from viewshards.account import Account, printable
from viewshards.pictures import Ranges, opened
from viewshards.sources import clouds
from viewshards.sources.clips import frames_of
from viewshards.sources.columns import TABLES, Columns, has_files, read_table
from viewshards.sources.hdf5 import Hdf5
from viewshards.sources.reader import IMAGES, KINDS, WEAK, Reader, kind_of_file, ranges_of
from viewshards.sources.rows import Choices, Row, Rows
from viewshards.sources.source import Source
from viewshards.sources.splits import layout, split_in, split_of
from viewshards.sources.tables import rows_of, split_rows
from viewshards.sources.tree import File, Tree, natural

ARCHIVES = frozenset({".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
TRACKS = ".traj.npz"
ANIMATIONS = frozenset({".gif", ".webp", ".apng", ".png", ".avif"})


def of_folder(
    root: Path,
    kind: str | None = None,
    choices: Choices = Choices(),
    reader: Reader = Reader(),
    columns: Columns = Columns(),
    outside: bool = False,
    value_range: tuple[float, float] | None = None,
    table: str | None = None,
) -> Source:
    """Files in `[SPLIT/][CLASS/]**`, torchvision's layout; a `metadata.csv`, or another table among them, says more.

    Args:
        root: the folder. kind: of the files that are packed: image, cloud, clip or h5; None: if there is one only.
        choices: how it is split and labelled. reader: makes of a file what a shard holds.
        columns: of a table, which is what. outside: whether a table may name files outside of its folder.
        value_range: of pictures of 32 bits and floats.
        table: which file is the table; `none`: no file; None: `metadata.*`, or the only one that names files.

    Raises:
        FileNotFoundError: if there is nothing to pack. ValueError: a question, if it can be understood in several ways.
    """
    tree = Tree.of(root, reader.limits)
    name = root.resolve().name.replace(".", "_") or "data"
    account = tree.account()
    tables = _tables(root, tree.files, columns, reader, table)
    if tables:
        return _by_tables(root, name, tree.files, tables, choices, reader, columns, outside, value_range, account)
    _refuse_unused(root, choices, columns, outside)
    found, kinds = _kind(root, tree.files, kind, reader.channels)
    if reader.clouds != clouds.Layout() and found != "cloud":
        raise ValueError(f"{root}: --cloud-axes and --cloud-array are of clouds, and would not be used: leave them out")
    if reader.channels is not None and kind not in (None, "image"):
        raise ValueError(f"{root}: --channels is of pictures, and would not be used: leave it out")
    if value_range and found != "image":
        raise ValueError(f"{root}: --value-range is of pictures, and would not be used: leave it out")
    if found == "h5":
        return Hdf5(root, [file for file in tree.files if kinds[file.name] == "h5"], choices, account, reader.limits)
    rows, odd = _clips(root, tree.files, kinds) if found == "clip" else (_files(root, tree.files, kinds, found), {})
    taken = _taken(rows)
    for file in tree.files:
        if file.name not in taken:
            account.leave(printable(file.name), odd.get(file.name) or _reason(file, kinds[file.name], found))
    for row in [row for row in rows if row.size == 0]:
        for each in (row.name, *row.more):
            account.leave(printable(each), "an empty file")
        rows.remove(row)
    places = layout(root, [row.name for row in rows], choices.splits)
    account.notes += places.notes
    kept = []
    for row in rows:
        if row.name in places.left_out:
            for each in _taken([row]):
                account.leave(printable(each), places.left_out[row.name])
    for row in rows:
        place = places.places.get(row.name)
        if place is not None:
            about = {"split": place.split, "label": place.label}
            row.about |= {column: value for column, value in about.items() if value is not None}
            row.key = place.rest
            kept.append(row)
    if not kept:
        raise FileNotFoundError("\n".join([f"{root}: nothing to pack below it", *account.lines(), *account.listed()]))
    ranges: Ranges = {}
    if found == "image":
        ranges, told = ranges_of((row.path for row in kept), value_range, reader.limits, reader.channels)
        account.notes += told
    classes = sorted({row.about["label"] for row in kept if "label" in row.about}) or None
    if found == "image" and _deep(kept):
        account.notes.append(f"folders below classes are no labels, such as that of {printable(_deep(kept)[0].name)!r}")
    return Rows(name, kept, choices, replace(reader, kind=found, ranges=ranges), account, classes, root=root)


def _refuse_unused(root: Path, choices: Choices, columns: Columns, outside: bool) -> None:
    said = {
        "--labels": choices.labels, "--split-by": choices.split_by, "--columns": columns.names,
        "--encoding": columns.encoding, "--outside": outside,
    }  # fmt: skip
    unused = [option for option, value in said.items() if value]
    if unused:
        raise ValueError(f"{root}: {', '.join(unused)} is for tables, and no table is used here: leave it out, or say "
                         "which by --table")  # fmt: skip


def _taken(rows: Sequence[Row]) -> set[str]:
    """Names of all files of rows."""
    whole = {name for row in rows for name in (row.name, *row.more)}
    return whole | {f"{row.name}/{path.name}" for row in rows for path in row.frames}


def _deep(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.key.count("/") > 1]


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
    weak = [file for file in files if file.suffix in WEAK]
    if asked == "cloud" or {kinds[file.name] for file in files if file.suffix not in WEAK} <= {None, "cloud"}:
        kinds |= {file.name: "cloud" for file in weak if file.suffix != ".txt" or _is_cloud(root / file.name)}
    else:
        kinds |= dict.fromkeys((file.name for file in weak), None)
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
        raise ValueError(f"{root}: files of several kinds, {there}: say which by --kind")
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
        elif kinds[file.name] == "image" and file.size and _is_animation(root / file.name, file.suffix):
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


def _is_animation(path: Path, suffix: str) -> bool:
    if suffix not in ANIMATIONS:
        return False
    try:
        with opened(path) as image:
            return int(getattr(image, "n_frames", 1)) > 1
    except ValueError:
        return False


def _tables(root: Path, files: Sequence[File], columns: Columns, reader: Reader, given: str | None) -> list[File]:
    """The tables that say more of the files: metadata of the folder or of its splits, or the only one.

    Raises:
        ValueError: a question, if there are several. FileNotFoundError: if the one that was named is not there.
    """
    if given == "none":
        return []
    if given is not None:
        named = [file for file in files if file.name == given]
        if not named:
            raise FileNotFoundError(f"{root / given}: not there, which --table names")
        return named
    near = [file for file in files if file.suffix in TABLES and len(file.parts) <= 2]
    found = [file for file in near if has_files(root / file.name, columns, reader.limits)]
    metadata = [file for file in found if Path(file.name).stem.lower() == "metadata"]
    found = metadata or found
    folders = [posixpath.dirname(file.name) for file in found]
    if len(found) < 2:
        return found
    if len(set(folders)) == len(folders) and all(map(split_of, folders)):
        return found
    if len(set(folders)) == 1 and len({split_in(Path(file.name).stem) for file in found} - {None}) == len(found):
        return found
    listed = ", ".join(file.name for file in found[:5])
    raise ValueError(f"{root}: several tables name its files: {listed}. Say which by --table, or --table none")


def _by_tables(
    root: Path,
    name: str,
    files: Sequence[File],
    tables: Sequence[File],
    choices: Choices,
    reader: Reader,
    columns: Columns,
    outside: bool,
    value_range: tuple[float, float] | None,
    account: Account,
) -> Rows:
    rows: list[Row] = []
    for table in tables:
        path = root / table.name
        read = read_table(path, columns, reader.limits)
        account.notes += [f"{table.name} says which files are packed, and what is said of them", read.told]
        own = split_of(posixpath.dirname(table.name)) or (split_in(path.stem) if len(tables) > 1 else None)
        for row in rows_of(path, read, outside):
            row.name = posixpath.normpath(posixpath.join(posixpath.dirname(table.name), row.name))
            if own and "split" not in read.kinds:
                row.about["split"] = own
            row.frames = frames_of(row.path)[0] if row.path.is_dir() else []
            rows.append(row)
    before = rows
    rows = split_rows(rows, choices.splits, account)
    account.tables = len(tables)
    gone = {row.name for row in before} - {row.name for row in rows}
    if not any("split" in row.about for row in rows):
        places = layout(root, [row.name for row in rows], choices.splits)
        has_label = any("label" in row.about for row in rows)
        for row in rows:
            place = places.places.get(row.name)
            about = {} if place is None else {"split": place.split, "label": None if has_label else place.label}
            row.about |= {column: value for column, value in about.items() if value is not None}
        for row in rows:
            if row.name not in places.places:
                account.leave(printable(row.name), places.left_out[row.name])
                gone.add(row.name)
        rows = [row for row in rows if row.name in places.places]
        account.notes += places.notes
    said = ", ".join(table.name for table in tables)
    taken = {table.name for table in tables} | _taken(rows) | gone
    for file in files:
        if file.name not in taken:
            media = kind_of_file(root / file.name, file.suffix)
            account.leave(printable(file.name), f"not named by {said}" if media else _reason(file, None, ""))
    account.found += len(_taken(rows) - {file.name for file in files})  # that --outside admits
    ranges, told = ranges_of(
        (row.path for row in rows if row.path.suffix.lower() in IMAGES), value_range, reader.limits
    )
    account.notes += told
    return Rows(name, rows, choices, replace(reader, ranges=ranges), account, root=root)
