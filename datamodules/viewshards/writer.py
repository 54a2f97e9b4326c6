"""Writes a shard: a plain tar, its index, and its entry in the manifest, in one pass.

The bytes are those of any tar writer with fixed times. Python's takes some 100 microseconds a member, mostly to make a
header of which all but the name and the size is always the same.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from zlib import crc32

from viewshards import index as indices
from viewshards.index import BLOCK, Index
from viewshards.shards import Shard


class ShardWriter:
    """Samples into a tar.

    Args:
        file: opened for writing, from its start.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size, self._sha256 = file, 0, hashlib.sha256()
        self._samples: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
        self._contents: dict[str, hashlib._Hash] = {}

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Adds a sample."""
        places, blocks = {}, []
        for extension, data in sorted(files.items()):
            header = _header(f"{key}.{extension}", len(data))
            self._size += len(header)
            places[extension] = self._size, len(data), crc32(header[-BLOCK:])
            blocks += [header, data, bytes(-len(data) % BLOCK)]
            self._size += len(data) + len(blocks[-1])
            contents = self._contents.setdefault(extension, hashlib.sha256())
            contents.update(f"{len(self._samples)} {len(data)}\n".encode())
            contents.update(data)
        self._add(b"".join(blocks))
        self._samples.append((key, places))

    def close(self) -> None:
        """Ends the tar."""
        end = bytes(-(self._size + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK)
        self._size += len(end)
        self._add(end)

    def index(self) -> Index:
        """The index of the tar, as `viewshards.index.scan` would make it."""
        return indices.tabulate("the tar", self._size, self._samples)

    def shard(self, path: Path) -> Shard:
        """The manifest's entry; the index is written."""
        beside = hashlib.sha256(Path(indices.path_of(str(path))).read_bytes()).hexdigest()
        keys = hashlib.sha256(b"\n".join(self.index().keys.tolist())).hexdigest()
        hashes = {f".{extension}": each.hexdigest() for extension, each in sorted(self._contents.items())}
        return Shard(
            path.name, self._size, len(self._samples), self._sha256.hexdigest(), beside, {"keys": keys, **hashes}
        )

    def _add(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    info.uname = info.gname = "bigdata"  # as WebDataset's own writer calls them
    return info


def _header(name: str, size: int) -> bytes:
    """The blocks before a member's data."""
    encoded = name.encode()
    if len(encoded) > 100 or not name.isascii() or size >= 8**11:
        return _info(name, size).tobuf(tarfile.PAX_FORMAT)
    digits = b"%011o\0" % size
    checksum = BASE + sum(encoded) + sum(digits)
    return b"".join((encoded.ljust(100, b"\0"), FIRST, digits, SECOND, b"%06o\0 " % checksum, THIRD))


_EMPTY = _info("", 0).tobuf(tarfile.USTAR_FORMAT)
FIRST, SECOND, THIRD = _EMPTY[100:124], _EMPTY[136:148], _EMPTY[156:]
BASE = sum(FIRST) + sum(SECOND) + sum(THIRD) + 8 * ord(" ")
"""Of the checksum of a header, in which it stands as blanks itself."""
