"""The index of one shard: where each file of each sample lies in a plain tar.

`name.tar` has `name.idx.npz` beside it, made by one walk over the tar's headers. It stores the tar's size, so an
index that does not fit its tar is noticed, and of each header a checksum, which is looked at again when the file is
read. A tar that was cut anywhere is refused: also where Python's tarfile stays silent, in a header or between two
members.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from viewshards.account import Account, printable, system_file
from viewshards.decode import array, is_known
from viewshards.limits import DEFAULT, Limits

Keys = Literal["first-dot", "last-dot"]
Files = dict[str, bytes]
"""The files of a sample, by extension."""

BLOCK = 512  # of the tar format
OURS = frozenset({"points", "frames", "traj"})
"""Names before the last dot that say what an array is, and no view."""
KINDS = 1000
"""Kinds of files in a tar, each a column of its index."""
SMALL = 2**12
"""Bytes up to which a file is read together with its header: copying more costs more than another call."""


class BrokenShard(ValueError):
    """A tar that is not whole, or not one that WebDataset would read."""


@dataclass(frozen=True)
class Index:
    """Where the files of a shard's samples lie.

    Attributes:
        bytes: size of the tar.
        keys: (n,) bytes; the part of a member's path before the first dot of its name.
        extensions: E names, the part after that dot (`png`, `google.webp`).
        places: (n, E, 3) int64: where the file begins, its size, both in bytes, and the CRC-32 of the tar header before
            it. Size -1 where the sample has no such file.
    """

    bytes: int
    keys: NDArray[np.bytes_]
    extensions: list[str]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, position: int) -> str:
        """Key of the sample at this position of the shard."""
        return bytes(self.keys[position]).decode(errors="backslashreplace")

    def only(self, positions: Sequence[int]) -> Index:
        """The index of some of its samples."""
        return Index(self.bytes, self.keys[list(positions)], self.extensions, self.places[list(positions)])

    def files(self, position: int) -> dict[str, tuple[int, int]]:
        """(offset, size) by extension of the sample at this position."""
        row = zip(self.extensions, self.places[position].tolist(), strict=True)
        return {extension: (offset, size) for extension, (offset, size, _) in row if size >= 0}

    def read(self, descriptor: int, position: int, limits: Limits = DEFAULT) -> Files:
        """The files of the sample at this position, from the open tar.

        Raises:
            BrokenShard: if the tar ends before a file does, or has another member at its place.
        """
        files = {}
        for extension, (offset, size, header) in zip(self.extensions, self.places[position].tolist(), strict=True):
            if 0 <= size <= SMALL:
                data = os.pread(descriptor, BLOCK + size, offset - BLOCK)
                before, data = data[:BLOCK], data[BLOCK:]
            elif size > 0:
                limits.check("file_bytes", size, f"bytes of .{extension}")
                before, data = os.pread(descriptor, BLOCK, offset - BLOCK), _read(descriptor, size, offset)
            else:
                continue
            if len(data) < size:
                raise BrokenShard(f"ends inside .{extension} of {self.key(position)}")
            if crc32(before) != header:
                raise BrokenShard(f"another member where .{extension} of {self.key(position)} was when it was indexed")
            files[extension] = data
        return files


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes, or fewer at the end of the file; the system gives at most 2 GiB at a time."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def path_of(tar: str, part: str | None = None) -> str:
    """The index file that belongs to a tar, or to a part of its samples."""
    return tar.removesuffix(".tar") + (f".{part}.idx.npz" if part else ".idx.npz")


def load(path: str | os.PathLike[str], sha256: str | None = None) -> Index:
    """Reads an index file.

    Args:
        path: of it. sha256: that it has to have; None: not known.

    Raises:
        BrokenShard: if it is damaged, not the one of the manifest, or names places that are not in its tar.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("not a file")
        data = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its sha256 differs from the manifest's")
        index = _parsed(data)
    except Exception as error:  # damaged archives fail in their own ways
        raise BrokenShard(f"{path}: no readable index ({error}); make it again with `viewshards index`") from error
    return index


def _parsed(data: bytes) -> Index:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {part.filename.removesuffix(".npy"): part for part in file.infolist()}
        if parts.keys() != {"about", "keys", "places"} or any(part.compress_type for part in parts.values()):
            raise ValueError("expected about, keys and places, uncompressed")
        whole = Limits(array_bytes=max(1, len(data)))
        about, keys, places = (array(file.read(parts[name]), whole) for name in ("about", "keys", "places"))
    said = json.loads(about.tobytes())
    total, extensions = said["bytes"], said["extensions"]
    is_right = isinstance(total, int) and isinstance(extensions, list) and all(isinstance(e, str) for e in extensions)
    if not is_right or keys.ndim != 2 or keys.dtype != np.uint8 or places.dtype != np.int64:
        raise ValueError(f"about is {said!r:.200}, keys {keys.shape} of {keys.dtype}, places of {places.dtype}")
    if places.shape != (len(keys), len(extensions), 3) or not keys.shape[1]:
        raise ValueError(f"its parts do not fit each other: keys {keys.shape}, places {places.shape}")
    offset, size = places[..., 0], places[..., 1]
    there = size >= 0
    inside = (offset >= BLOCK) & (offset <= total) & (size <= total - offset)
    if not (inside | ~there).all() or (size < -1).any() or not there.any(axis=1).all():
        raise ValueError("it names places that are not in its tar")
    return Index(total, keys.view(f"S{keys.shape[1]}").reshape(len(keys)), extensions, places)


def save(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes an index file, whole or not at all."""
    about = json.dumps({"bytes": index.bytes, "extensions": index.extensions}).encode()
    keys = np.ascontiguousarray(index.keys).view(np.uint8).reshape(len(index), index.keys.dtype.itemsize)
    with atomic_write(path) as f:
        np.savez(f, about=np.frombuffer(about, np.uint8), keys=keys, places=index.places)


class _Bounded:
    """A tar whose headers cannot ask for any amount of memory: tarfile reads long names and their like whole."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.most = file, most
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if size > self.most:
            raise ValueError(f"a header of {size:,} bytes, more than {self.most:,} (--limit name_bytes)")
        return self.file.read(size)


def scan(
    tar: str | os.PathLike[str], limits: Limits = DEFAULT, keys: Keys | None = None, account: Account | None = None
) -> Index:
    """Walks the headers of a tar. Files of unknown type are left out, with one warning.

    A hard link stands for the member it names. Symbolic links, devices and sparse members are refused by name, since
    what they stand for is not in the tar or not in one piece.

    Args:
        tar: its path. limits: of what it may hold.
        keys: whether a sample's name ends at the first dot of its files' names, as WebDataset has it, or at the last;
            None: at the first, if that is plain.
        account: takes what became of each member, instead of the warning.

    Raises:
        BrokenShard: if the tar was cut, has a file twice, has something behind its end, is compressed, holds what
            a shard cannot hold, or names with several dots that can be understood in two ways.
    """
    if not stat.S_ISREG(Path(tar).stat().st_mode):
        raise BrokenShard(f"{tar}: not a file")
    samples: dict[str, dict[str, tuple[int, int, int]]] = {}
    mine = account or Account()
    dots = _Dots()
    with open(tar, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        try:
            for name, offset, size in _members(file, total, limits):
                folder, _, base = name.removeprefix("./").rpartition("/")
                mine.found += 1
                system = next(
                    (word for part in name.split("/") if part not in (".", "..") and (word := system_file(part))), None
                )
                if system:  # what macOS writes beside each file, and its like; WebDataset takes none
                    mine.skipped[system] += 1
                    continue
                stem, _, extension = base.rpartition(".") if keys == "last-dot" else base.partition(".")
                view, dot, kind = extension.rpartition(".")
                extension = f"{view}{dot}{kind.lower()}"
                key = f"{folder}/{stem}" if folder else stem
                if not is_known(extension) or not stem or "\n" in extension:
                    mine.leave(f"{tar}: {printable(name)}", f"no format that is read (.{printable(kind)})")
                    continue
                sample = samples.setdefault(key, {})
                if extension in sample:
                    raise ValueError(f"{name} is there twice")
                mine.packed += 1
                dots.see(key, view, kind.lower())
                sample[extension] = offset, size, crc32(os.pread(file.fileno(), BLOCK, offset - BLOCK))
            if keys is None:
                dots.check(samples)
        except Exception as error:  # tarfile has its own kinds, and damaged headers find others
            raise BrokenShard(f"{tar}: {error or type(error).__name__}") from error
    if account is None and (mine.left or mine.skipped):
        listed = ", ".join(sorted({*mine.left_out.values(), *mine.more, *mine.skipped}))
        warnings.warn(f"{tar}: {mine.left + mine.skipped.total()} files are left out: {listed}", stacklevel=2)
    return tabulate(tar, total, list(samples.items()))


class _Dots:
    """Whether names with several dots are of views (`thing.left.jpg`), or of samples with dots (`img.000.jpg`)."""

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = {}
        self.plain = self.fields = 0
        self.first = ""

    def see(self, key: str, view: str, kind: str) -> None:
        """Takes a name to notice."""
        if not view:
            self.plain += 1
        elif view not in OURS:
            keys = self.keys.setdefault(view, set())
            if len(keys) < 2:
                keys.add(key)
            self.fields += kind in ("cls", "txt", "json")
            self.first = self.first or f"{key}.{view}.{kind}"

    def check(self, samples: Mapping[str, object]) -> None:
        """Raises ValueError, a question, where both can be meant: a view is one in more samples than its own."""
        alone = sum(len(keys) < 2 for keys in self.keys.values())
        numbered = any(view[:1].isdigit() for view in self.keys)
        many = 2 * alone > len(self.keys) > 1 and (len(samples) > 1 or numbered)
        if many or ((self.fields or numbered) and self.keys and not self.plain):
            key, view = self.first.split(".")[0], ".".join(self.first.split(".")[1:-1])
            raise ValueError(
                f"names with several dots: is {printable(self.first)!r} of a sample {printable(key)!r} with a view "
                f"{printable(view)!r}, or of a sample {printable(f'{key}.{view}')!r}? Say --keys first-dot or --keys "
                "last-dot"
            )


def _members(file: IO[bytes], total: int, limits: Limits) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar.

    Raises:
        ValueError: saying what is wrong.
    """
    places: dict[str, tuple[int, int]] = {}
    bounded: Any = _Bounded(file, max(2**20, 4 * limits.name_bytes))
    count = end = 0
    try:
        archive: Any = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115  # the file is the caller's
    except tarfile.TarError as error:
        raise ValueError(f"not a readable plain tar ({error})") from error
    while (member := archive.next()) is not None:
        archive.members.clear()  # else it keeps all of them
        count += 1
        limits.check("members", count, "members of a tar")
        limits.check("name_bytes", len(os.fsencode(member.name)), f"bytes of the name {member.name[:60]!r}")
        if member.sparse is not None:
            raise ValueError(f"{member.name!r} is stored sparsely: pack it with `tar` without --sparse")
        if member.islnk():
            end = max(end, member.offset_data)
            if member.linkname not in places:
                raise ValueError(f"{member.name!r} is a hard link to {member.linkname!r}, which is not in front of it")
            places[member.name] = places[member.linkname]
        elif member.isreg():
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if member.size < 0 or end > total:
                raise ValueError(f"cut inside {member.name} ({total} bytes, it needs {end})")
            places[member.name] = member.offset_data, member.size
        elif member.isdir():
            end = max(end, member.offset_data)
            continue
        else:
            what = "symbolic link" if member.issym() else "device or unknown kind of member"
            raise ValueError(f"{member.name!r} is a {what}: pack the file itself (`tar --dereference`)")
        yield (member.name, *places[member.name])
    file.seek(end)
    tail = file.read(2 * BLOCK)
    if len(tail) < 2 * BLOCK or any(tail):
        raise ValueError(f"cut after {count} members (the two closing blocks of a tar are missing)")
    while tail := file.read(2**20):
        if any(tail):
            raise ValueError("something follows its end, perhaps a second tar: join them with `tar --concatenate`")


def tabulate(tar: object, total: int, samples: list[tuple[str, dict[str, tuple[int, int, int]]]]) -> Index:
    """The index of a tar of `total` bytes with these samples: offset, size and CRC of the header by extension."""
    extensions = sorted({extension for _, files in samples for extension in files})
    if len(extensions) > KINDS:
        raise BrokenShard(
            f"{tar}: {len(extensions):,} kinds of files, such as .{extensions[0]!r:.60}; a sample's name ends at the "
            "first dot of its files' names: write the tar with names that have no other dots"
        )
    number = {extension: column for column, extension in enumerate(extensions)}
    places = np.full((len(samples), len(extensions), 3), (0, -1, 0), np.int64)
    for row, (_, files) in enumerate(samples):
        for extension, place in files.items():
            places[row, number[extension]] = place
    keys = [key.encode(errors="surrogateescape") for key, _ in samples]
    return Index(total, np.array(keys, dtype=bytes), extensions, places)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when it is whole and on disk."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the name may be gone after a power cut
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)
