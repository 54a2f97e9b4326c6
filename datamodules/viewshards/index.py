"""The index of one shard: where each file of each sample lies in a plain tar.

`name.tar` has `name.idx.npz` beside it, made by one walk over the tar's headers. It stores the tar's size, so an
index that does not fit its tar is noticed, and a tar that was cut anywhere is refused: also where Python's tarfile
stays silent, in a header or between two members.
"""

from __future__ import annotations

import os
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from viewshards.decode import is_known

BLOCK = 512  # of the tar format


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
    """

    bytes: int
    keys: NDArray[np.bytes_]
    extensions: list[str]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, position: int) -> str:
        """Key of the sample at this position of the shard."""
        return bytes(self.keys[position]).decode()

    def files(self, position: int) -> dict[str, tuple[int, int]]:
        """(offset, size) by extension of the sample at this position."""
        present = np.flatnonzero(self.size[position] >= 0)
        return {self.extensions[e]: (int(self.offset[position, e]), int(self.size[position, e])) for e in present}


def path_of(tar: str) -> str:
    """The index file that belongs to a tar."""
    return tar.removesuffix(".tar") + ".idx.npz"


def load(path: str | os.PathLike[str]) -> Index:
    """Reads an index file."""
    try:
        with np.load(path, allow_pickle=False) as z:
            return Index(int(z["bytes"]), z["keys"], [str(e) for e in z["extensions"]], z["offset"], z["size"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BrokenShard(f"{path}: no readable index ({error}); make it again with `viewshards index`") from error


def save(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes an index file, whole or not at all."""
    with atomic_write(path) as f:
        np.savez(
            f,
            bytes=index.bytes,
            keys=index.keys,
            extensions=np.array(index.extensions, dtype=str),
            offset=index.offset,
            size=index.size,
        )


def scan(tar: str | os.PathLike[str]) -> Index:
    """Walks the headers of a tar. Files of unknown type are left out, with one warning.

    Raises:
        BrokenShard: if the tar was cut, has a file twice, or is compressed.
    """
    total = Path(tar).stat().st_size
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    unknown: set[str] = set()
    end = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if end > total:
                    raise BrokenShard(f"{tar}: cut inside {member.name} ({total} bytes, it needs {end})")
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                if not is_known(extension):
                    unknown.add(extension)
                elif extension in samples[-1][1]:
                    raise BrokenShard(f"{tar}: {member.name} is there twice")
                else:
                    samples[-1][1][extension] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise BrokenShard(f"{tar}: not a readable plain tar ({error})") from error
    with open(tar, "rb") as f:
        f.seek(end)
        tail = f.read(2 * BLOCK)
    if len(tail) < 2 * BLOCK or any(tail):
        raise BrokenShard(f"{tar}: cut after {len(samples)} samples (the two closing blocks of a tar are missing)")
    if unknown:
        warnings.warn(f"{tar}: files of unknown type are ignored: {', '.join(sorted(unknown))}", stacklevel=2)
    return _tabulate(total, [sample for sample in samples if sample[1]])


def _tabulate(total: int, samples: list[tuple[str, dict[str, tuple[int, int]]]]) -> Index:
    extensions = sorted({extension for _, files in samples for extension in files})
    offset = np.zeros((len(samples), len(extensions)), np.int64)
    size = np.full((len(samples), len(extensions)), -1, np.int64)
    for row, (_, files) in enumerate(samples):
        for extension, place in files.items():
            offset[row, extensions.index(extension)], size[row, extensions.index(extension)] = place
    return Index(total, np.array([key.encode() for key, _ in samples], dtype=bytes), extensions, offset, size)


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
    finally:
        part.unlink(missing_ok=True)
