"""Files that are there whole or not at all, and text that is safe to print, to paste and to keep."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = re.compile(r"(?<=://)[^\s'\"]*@|(?<![\w.+-])[\w.+-]+:[^\s/@]+@(?=[\w.-]+)")
"""Who may read an address: what stands before its @."""
QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)
"""A value in an address that lets anybody read it."""
SECRETS = frozenset(
    {"token", "secret", "password", "passwd", "passphrase", "pwd", "auth", "authorization", "bearer", "sas"}
    | {"credential", "credentials", "apikey"}
)
KEYS = frozenset(["api", "access", "secret", "private", "account"])
"""What makes a `key` a credential."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all of it is on the disk. Makes the folder.

    A crash, a full disk or ctrl-C leaves what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the name may be gone after a power cut
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as part:
        part.write_text(text)


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a credential: `api_key`, `AccessKeyId`, `HF_TOKEN`, `x-auth`."""
    parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return bool(parts & SECRETS) or ("key" in parts and bool(parts & KEYS))


def without_credentials(text: str) -> str:
    """A text in which no address shows who may read it."""
    return QUERY.sub(r"\1***", USER.sub("***@", text))


def masked(arguments: list[str]) -> list[str]:
    """A command line without credentials."""
    shown, hide = [], False
    for word in arguments:
        name, equals, _ = word.partition("=")
        is_option = name.startswith("-") and is_secret(name.rpartition(".")[2])
        shown.append("***" if hide else f"{name}=***" if is_option and equals else without_credentials(word))
        hide = is_option and not equals
    return shown


def check_secrets(config: Any, where: str = "") -> None:
    """Refuses credentials in a configuration, which is written into files, checkpoints and TensorBoard.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            place = f"{where}.{key}" if where else str(key)
            if is_secret(str(key)) and value not in (None, "", [], {}, True, False):
                raise ValueError(f"{place}: a credential would be written into files; give it by the environment")
            check_secrets(value, place)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            check_secrets(value, f"{where}[{number}]")
    elif isinstance(config, str) and without_credentials(config) != config:
        raise ValueError(
            f"{where}: {without_credentials(config)} has credentials in it, which would be written into files; give "
            "them by the environment (AWS_ACCESS_KEY_ID, ~/.netrc, fsspec's configuration)"
        )


def printable(text: str) -> str:
    """A text in one line, with nothing that a terminal or a table takes for a command: `a\\nb` for a line break."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
