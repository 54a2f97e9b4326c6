"""Shards that lie elsewhere: whole files fetched once a node, checked, bounded, shared by all its processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

SCHEMES = frozenset({"http", "https", "s3", "gs", "memory"})
TRIES = 4
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL of an accepted scheme.

    Raises:
        ValueError: for `pipe:` and every other scheme: a shard list must not be able to start a program.
    """
    scheme = urlsplit(path).scheme
    if "://" not in path and not path.startswith("pipe:"):
        return False
    if scheme not in SCHEMES:
        raise ValueError(f"{path}: refused; shards are read from local paths or {', '.join(sorted(SCHEMES))} URLs only")
    return True


def read(path: str) -> bytes:
    """The bytes of a small file (a manifest, an index), local or remote."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with fsspec.open(path, "rb") as f:
        data: bytes = f.read()
    return data


class ShardCache:
    """A node-local folder of whole files.

    Args:
        folder: where the files are kept; on a node-local disk.
        limit: bytes above which the least recently used files are removed (a file in use stays readable).
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 100 * 2**30) -> None:
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, url: str, size: int | None = None) -> Path:
        """The local copy of a file, fetched first if need be. One process of a node downloads, the others wait.

        Args:
            url: of an accepted scheme.
            size: expected bytes; a copy of another size is thrown away and fetched again.

        Raises:
            OSError: when it could not be had whole in 4 tries, naming the URL.
        """
        target = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rpartition('/')[2]}"
        if not _is_whole(target, size):
            with self._lock(target.name):
                if not _is_whole(target, size):
                    self._download(url, target, size)
        with suppress(FileNotFoundError):  # another process may just have made room
            os.utime(target)
        return target

    def open(self, url: str, size: int) -> int:
        """A file descriptor of the local copy, which stays readable when the copy is evicted."""
        for _ in range(TRIES):
            try:
                return os.open(self.fetch(url, size), os.O_RDONLY)
            except FileNotFoundError:  # evicted between the fetch and the open
                continue
        raise OSError(f"{url}: evicted as fast as it is fetched; raise cache_gb ({self.limit / 2**30:g})")

    def read(self, url: str, load: Callable[[Path], T]) -> T:
        """`load` of the local copy; a copy it cannot read is thrown away and fetched once more."""
        try:
            return load(self.fetch(url))
        except ValueError:
            self.fetch(url).unlink(missing_ok=True)
            return load(self.fetch(url))

    def _download(self, url: str, target: Path, size: int | None) -> None:
        part = target.with_name(f"{target.name}.part")
        problem: Any = None
        for attempt in range(TRIES):
            try:
                files, path = fsspec.core.url_to_fs(url)
                files.get_file(path, str(part))
                if size is None or part.stat().st_size == size:
                    self._make_room(part.stat().st_size)
                    part.replace(target)
                    return
                problem = f"got {part.stat().st_size} bytes, expected {size}"
            except Exception as error:  # every network library has its own kinds
                problem = error
            time.sleep(0.2 * 2**attempt if attempt + 1 < TRIES else 0)
        part.unlink(missing_ok=True)
        raise OSError(f"{url}: not fetched whole in {TRIES} tries: {problem}")

    def _make_room(self, size: int) -> None:
        with self._lock("evict"):
            files = sorted((p for p in self.folder.iterdir() if _is_entry(p)), key=lambda p: p.stat().st_mtime)
            total = size + sum(p.stat().st_size for p in files)
            for path in files:
                if total <= self.limit:
                    return
                total -= path.stat().st_size
                path.unlink()

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / f".{name}.lock").open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def _is_whole(path: Path, size: int | None) -> bool:
    return path.exists() and (size is None or path.stat().st_size == size)


def _is_entry(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix != ".part"
