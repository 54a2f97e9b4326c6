"""Shards that lie elsewhere: whole files fetched once a node, checked, bounded, shared by all its processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

SCHEMES = frozenset({"http", "https", "s3", "gs", "memory"})
TRIES = 4
STALLED = 60
"""Seconds after which a server that sends nothing is given up."""
LONGEST = 3600
"""Seconds after which any download is given up."""
LARGEST = 2**30
"""Bytes of a file whose size is not known before."""
SECRET = re.compile(r"://[^@]*:[^@]*@")
"""A user and password in an address, also with a slash in them."""
NAME = re.compile(r"[0-9a-f]{16}-.*", re.DOTALL)
"""What files of the cache are called; others in its folder are somebody else's."""
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL of an accepted scheme.

    Raises:
        ValueError: for `pipe:` and every other scheme: a shard list must not be able to start a program. For a URL
            with credentials, which would be written into configurations, checkpoints and logs.
    """
    if "://" not in path and not path.startswith("pipe:"):
        return False
    try:
        parts = urlsplit(path)
    except ValueError as error:
        raise ValueError(f"{SECRET.sub('://***@', path)!r} is no URL ({error})") from None
    if "@" in parts.netloc or SECRET.search(path) or "::" in path or parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2].partition(':')[0]}: refused with a user, password or "
            "query, since a root is written into files; give credentials by the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, ~/.netrc) or by fsspec's configuration (FSSPEC_HTTP_..., ~/.config/fsspec)"
        )
    if parts.scheme not in SCHEMES:
        shown = SECRET.sub("://***@", path)
        raise ValueError(
            f"{shown}: refused; shards are read from local paths or {', '.join(sorted(SCHEMES))} URLs only"
        )
    return True


def read(path: str, most: int = LARGEST) -> bytes:
    """The bytes of a small file (a manifest, an index), local or remote.

    Raises:
        OSError: if it is larger than `most` bytes, or is not a file.
    """
    if not is_remote(path):
        if Path(path).exists() and not Path(path).is_file():
            raise OSError(f"{path}: not a file")
        with open(path, "rb") as f:
            data = f.read(most + 1)
    else:
        files, inside = _file_system(path)
        with files.open(inside, "rb") as f:
            data = f.read(most + 1)
    if len(data) > most:
        raise OSError(f"{path}: larger than {most:,} bytes")
    return data


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it; a server that stalls is given up."""
    options: dict[str, Any] = {}
    if url.startswith("http"):
        import aiohttp

        configured = fsspec.config.conf.get(urlsplit(url).scheme, {}).get("client_kwargs", {})
        timeout = aiohttp.ClientTimeout(total=LONGEST, sock_connect=STALLED, sock_read=STALLED)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True, **configured}  # ~/.netrc and proxies
    elif url.startswith("s3"):
        options["config_kwargs"] = {"connect_timeout": STALLED, "read_timeout": STALLED}
    files, path = fsspec.core.url_to_fs(url, **options)
    return files, path


class _Bounded(fsspec.Callback):  # type: ignore[misc]
    """Ends a download that grows beyond what it may have."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self._check(size or 0)

    def absolute_update(self, value: int) -> None:
        super().absolute_update(value)
        self._check(self.value)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._check(self.value)

    def _check(self, size: int) -> None:
        if size > self.most:
            raise OSError(f"got at least {size} bytes, expected {self.most}")


class ShardCache:
    """A node-local folder of whole files.

    Args:
        folder: where the files are kept; on a node-local disk.
        limit: bytes above which the least recently used files are removed (a file in use stays readable).
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 100 * 2**30) -> None:
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, url: str, size: int | None = None, sha256: str | None = None) -> Path:
        """The local copy of a file, fetched first if need be. One process of a node downloads, the others wait.

        Args:
            url: of an accepted scheme.
            size: expected bytes; a copy of another size is thrown away and fetched again.
            sha256: that what is fetched has to have; a copy that is there was looked at when it was fetched.

        Raises:
            OSError: when it could not be had whole in 4 tries, naming the URL.
        """
        # Of other contents under the same address there is another copy.
        name = hashlib.sha256(f"{url} {sha256 or ''}".encode()).hexdigest()[:16]
        target = self.folder / f"{name}-{url.rpartition('/')[2]}"
        if not _is_whole(target, size):
            with self._lock(target.name):
                if not _is_whole(target, size):
                    self._download(url, target, size, sha256)
        with suppress(FileNotFoundError):  # another process may just have made room
            os.utime(target)
        return target

    def open(self, url: str, size: int, sha256: str | None = None) -> int:
        """A file descriptor of the local copy, which stays readable when the copy is evicted."""
        for _ in range(TRIES):
            try:
                return os.open(self.fetch(url, size, sha256), os.O_RDONLY)
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

    def _download(self, url: str, target: Path, size: int | None, sha256: str | None) -> None:
        part = target.with_name(f"{target.name}.part")
        problem: Any = None
        for attempt in range(TRIES):
            try:
                files, path = _file_system(url)
                files.get_file(path, str(part), callback=_Bounded(LARGEST if size is None else size))
                if size is not None and part.stat().st_size != size:
                    problem = f"got {part.stat().st_size} bytes, expected {size}"
                elif sha256 is not None and _sha256(part) != sha256:
                    problem = "its sha256 differs from the manifest's: other data of the same size"
                else:
                    self._make_room(part.stat().st_size)
                    part.replace(target)
                    return
            except Exception as error:  # every network library has its own kinds
                problem = error or type(error).__name__
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


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _is_entry(path: Path) -> bool:
    return NAME.fullmatch(path.name) is not None and path.suffix != ".part" and path.is_file()
