"""The index of one shard: where each file of each sample lies in a plain tar.

`name.tar` has `name.idx.npz` beside it, made by one walk over the tar's headers. It stores the tar's size, so an
index that does not fit its tar is noticed, and of each header a checksum, which is looked at again when the file is
read. A tar that was cut anywhere is refused: also where Python's tarfile stays silent, in a header or between two
members.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from viewshards.decode import array, is_known
from viewshards.limits import DEFAULT, Limits

Files = dict[str, bytes]
"""The files of a sample, by extension."""

BLOCK = 512  # of the tar format
WINDOW = 2**18
"""Bytes of a sample up to which its files are read in one go."""


class BrokenShard(ValueError):
    """A tar that is not whole, or not one that WebDataset would read."""


@dataclass(frozen=True)
class Index:
    """Where the files of a shard's samples lie.

    Attributes:
        bytes: size of the tar.
        keys: (n,) bytes; the part of a member's path before the first dot of its name.
        extensions: E names, the part after that dot (`png`, `google.webp`).
        offset, size: (n, E) int64, in bytes; size -1 where the sample has no such file.
        header: (n, E) uint32, CRC-32 of the tar header before each file.
    """

    bytes: int
    keys: NDArray[np.bytes_]
    extensions: list[str]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    header: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, position: int) -> str:
        """Key of the sample at this position of the shard."""
        return bytes(self.keys[position]).decode(errors="backslashreplace")

    def files(self, position: int) -> dict[str, tuple[int, int]]:
        """(offset, size) by extension of the sample at this position."""
        return {extension: (offset, size) for extension, offset, size, _ in self._row(position)}

    def read(self, descriptor: int, position: int, limits: Limits = DEFAULT) -> Files:
        """The files of the sample at this position, from the open tar.

        Raises:
            BrokenShard: if the tar ends before a file does, or has another member at its place.
        """
        row = self._row(position)
        first = min((offset for _, offset, _, _ in row), default=BLOCK) - BLOCK
        length = max((offset + size for _, offset, size, _ in row), default=0) - first
        together = 0 < length <= WINDOW and os.pread(descriptor, length, first)
        files = {}
        for extension, offset, size, header in row:
            if together:
                at = offset - first
                before, data = together[at - BLOCK : at], together[at : at + size]
            else:
                limits.check("file_bytes", size, f"bytes of .{extension}")
                before, data = os.pread(descriptor, BLOCK, offset - BLOCK), _read(descriptor, size, offset)
            if len(data) < size:
                raise BrokenShard(f"ends inside .{extension} of {self.key(position)}")
            if zlib.crc32(before) != header:
                raise BrokenShard(f"another member where .{extension} of {self.key(position)} was when it was indexed")
            files[extension] = data
        return files

    def _row(self, position: int) -> list[tuple[str, int, int, int]]:
        places = self.offset[position].tolist(), self.size[position].tolist(), self.header[position].tolist()
        return [each for each in zip(self.extensions, *places, strict=True) if each[2] >= 0]


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes, or fewer at the end of the file; the system gives at most 2 GiB at a time."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def path_of(tar: str) -> str:
    """The index file that belongs to a tar."""
    return tar.removesuffix(".tar") + ".idx.npz"


def load(path: str | os.PathLike[str], sha256: str | None = None) -> Index:
    """Reads an index file.

    Args:
        path: of it. sha256: that it has to have; None: not known.

    Raises:
        BrokenShard: if it is damaged, not the one of the manifest, or names places that are not in its tar.
    """
    try:
        data = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its sha256 differs from the manifest's")
        index = _parsed(data)
    except Exception as error:  # damaged archives fail in their own ways
        raise BrokenShard(f"{path}: no readable index ({error}); make it again with `viewshards index`") from error
    return index


FIELDS = {"bytes": (0, "i"), "keys": (1, "u"), "key_bytes": (0, "i"), "extensions": (1, "u"),
          "offset": (2, "i"), "size": (2, "i"), "header": (2, "u")}  # fmt: skip
"""Dimensions and kind of what an index file holds."""


def _parsed(data: bytes) -> Index:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {part.filename.removesuffix(".npy"): part for part in file.infolist()}
        if parts.keys() != FIELDS.keys() or any(part.compress_type for part in parts.values()):
            raise ValueError(f"expected {', '.join(FIELDS)}, uncompressed")
        found = {name: array(file.read(part), Limits(array_bytes=max(1, len(data)))) for name, part in parts.items()}
    for name, (dimensions, kind) in FIELDS.items():
        if found[name].ndim != dimensions or found[name].dtype.kind != kind:
            raise ValueError(f"{name} is {found[name].shape} of {found[name].dtype}")
    total, width = int(found["bytes"]), int(found["key_bytes"])
    keys = found["keys"].astype(np.uint8).tobytes()
    extensions = found["extensions"].astype(np.uint8).tobytes().decode()
    index = Index(
        total,
        np.frombuffer(keys, f"S{width}") if keys else np.zeros(0, "S1"),
        extensions.split("\n") if extensions else [],
        found["offset"].astype(np.int64, copy=False),
        found["size"].astype(np.int64, copy=False),
        found["header"].astype(np.uint32, copy=False),
    )
    shape = len(index), len(index.extensions)
    if width < 1 or {index.offset.shape, index.size.shape, index.header.shape} != {shape}:
        raise ValueError("its parts do not fit each other")
    there = index.size >= 0
    inside = (index.offset >= BLOCK) & (index.offset <= total) & (index.size <= total - index.offset)
    if not (inside | ~there).all() or (index.size < -1).any() or not there.any(axis=1).all():
        raise ValueError("it names places that are not in its tar")
    return index


def save(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes an index file, whole or not at all."""
    texts = "\n".join(index.extensions).encode()
    with atomic_write(path) as f:
        np.savez(
            f,
            bytes=np.int64(index.bytes),
            keys=np.frombuffer(index.keys.tobytes(), np.uint8),
            key_bytes=np.int64(index.keys.dtype.itemsize),
            extensions=np.frombuffer(texts, np.uint8),
            offset=index.offset,
            size=index.size,
            header=index.header,
        )


class _Bounded:
    """A tar whose headers cannot ask for any amount of memory: tarfile reads long names and their like whole."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.most = file, most
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if size > self.most:
            raise ValueError(f"a header of {size:,} bytes, more than {self.most:,} (--limit name_bytes)")
        return self.file.read(size)


def scan(tar: str | os.PathLike[str], limits: Limits = DEFAULT) -> Index:
    """Walks the headers of a tar. Files of unknown type are left out, with one warning.

    A hard link stands for the member it names. Symbolic links, devices and sparse members are refused by name, since
    what they stand for is not in the tar or not in one piece.

    Raises:
        BrokenShard: if the tar was cut, has a file twice, has something behind its end, is compressed, or holds what
            a shard cannot hold.
    """
    if not stat.S_ISREG(Path(tar).stat().st_mode):
        raise BrokenShard(f"{tar}: not a file")
    samples: dict[str, dict[str, tuple[int, int, int]]] = {}
    unknown: set[str] = set()
    with open(tar, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        try:
            for name, offset, size in _members(file, total, limits):
                folder, _, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                sample = samples.setdefault(key, {})
                if not is_known(extension) or "\n" in extension:
                    unknown.add(extension)
                elif extension in sample:
                    raise ValueError(f"{name} is there twice")
                else:
                    header = zlib.crc32(os.pread(file.fileno(), BLOCK, offset - BLOCK))
                    sample[extension] = offset, size, header
        except Exception as error:  # tarfile has its own kinds, and damaged headers find others
            raise BrokenShard(f"{tar}: {error or type(error).__name__}") from error
    if unknown:
        listed = ", ".join(sorted(repr(name)[1:-1] for name in unknown))
        warnings.warn(f"{tar}: files of unknown type are ignored: {listed}", stacklevel=2)
    return _tabulate(total, [(key, files) for key, files in samples.items() if files])


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


def _tabulate(total: int, samples: list[tuple[str, dict[str, tuple[int, int, int]]]]) -> Index:
    extensions = sorted({extension for _, files in samples for extension in files})
    number = {extension: column for column, extension in enumerate(extensions)}
    offset = np.zeros((len(samples), len(extensions)), np.int64)
    size = np.full((len(samples), len(extensions)), -1, np.int64)
    header = np.zeros((len(samples), len(extensions)), np.uint32)
    for row, (_, files) in enumerate(samples):
        for extension, place in files.items():
            column = number[extension]
            offset[row, column], size[row, column], header[row, column] = place
    keys = [key.encode(errors="surrogateescape") for key, _ in samples]
    return Index(total, np.array(keys, dtype=bytes), extensions, offset, size, header)


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
