"""One walk over a folder: all files in it, links followed, system files apart."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from viewshards.account import Account, system_file
from viewshards.limits import DEFAULT, Limits

VISITS = 16
"""Ways to one folder that are followed: links among folders could make any number of them."""


@dataclass(frozen=True)
class File:
    """A file below a folder: its name from there, size in bytes, time of writing in ns; its suffix in small letters."""

    name: str
    size: int
    time: int
    suffix: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and name."""
        return tuple(self.name.split("/"))


@dataclass
class Tree:
    """All files below a folder in the order of their names, links followed.

    Attributes:
        root: the folder. files: what may be packed.
        skipped: how many system files, by what they are.
        left_out: why something is no file that can be read, by its name.
        notes: loops of links, and links that lead out.
        roots: the folder, and those that links lead to. visits: how often each folder was reached.
    """

    root: Path
    files: list[File] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    visits: Counter[tuple[int, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, root: Path, limits: Limits = DEFAULT) -> Tree:
        """Walks a folder."""
        tree = cls(root)
        outside: list[str] = []
        loops: list[str] = []
        tree.roots.append(root.resolve())
        real = os.path.realpath(root)
        seen = root.stat()
        for file, entry in tree._walked(root, (seen.st_dev, seen.st_ino), loops):
            tree.files.append(file)
            if entry and not f"{os.path.realpath(root / file.name)}/".startswith(f"{real}/"):
                outside.append(file.name)
            limits.check("members", len(tree.files), f"{root}: files")
        if outside:
            tree.notes.append(f"{len(outside):,} files lie outside of {root}, where links lead; first {outside[0]!r}")
        tree.notes += [f"{loop!r} is a link back to a folder that was walked: not followed" for loop in loops[:5]]
        if len(loops) > 5:
            tree.notes.append(f"{len(loops) - 5:,} links more lead back to folders that were walked")
        return tree

    def _walked(self, root: Path, place: tuple[int, int], loops: list[str]) -> Iterator[tuple[File, bool]]:
        try:
            yield from self._walk(root, "", [place], loops)
        except RecursionError:
            raise ValueError(f"{root}: folders in each other deeper than can be walked") from None

    def account(self) -> Account:
        """Of everything below the folder, before anything is packed."""
        found = len(self.files) + self.skipped.total() + len(self.left_out)
        return Account("files", found, skipped=self.skipped, left_out=dict(self.left_out), notes=list(self.notes))

    def _walk(
        self, folder: Path, before: str, above: list[tuple[int, int]], loops: list[str], linked: bool = False
    ) -> Iterator[tuple[File, bool]]:
        """Files, and whether a link led to each."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.left_out[before or "."] = f"cannot be read: {error.strerror}"
            return
        for entry in found:
            name = before + entry.name
            system = system_file(entry.name)
            by_link = linked or entry.is_symlink()
            try:
                status = entry.stat()
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # a link to nothing, or around to itself
                if system:
                    self.skipped[system] += 1
                else:
                    self.left_out[name] = f"a link that leads nowhere: {error.strerror}"
                continue
            if system:
                self.skipped[system] += sum(1 for _ in _files_in(Path(entry.path))) if is_folder else 1
            elif is_folder:
                place = status.st_dev, status.st_ino
                self.visits[place] += 1
                if place in above or self.visits[place] > VISITS:
                    loops.append(name)
                else:
                    if entry.is_symlink():
                        self.roots.append(Path(entry.path).resolve())
                    yield from self._walk(Path(entry.path), f"{name}/", [*above, place], loops, by_link)
            elif is_file:
                yield File(name, status.st_size, status.st_mtime_ns, _suffix(entry.name)), by_link
            else:
                self.left_out[name] = "a pipe, socket or device"


def _suffix(name: str) -> str:
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if stem and dot else ""


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `2` before `10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-2, name)]


def _files_in(folder: Path) -> Iterator[str]:
    for _, _, names in os.walk(folder):
        yield from names
