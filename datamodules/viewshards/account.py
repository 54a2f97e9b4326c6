"""What became of everything that was found below a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Question(ValueError):
    """Doubt that only the user can resolve; it stops a pack, where a broken file is left out."""


NAMED = 10_000
"""Files that an account names; of further ones it counts how many there are for each kind of reason."""
KINDS = 100
"""Kinds of reasons that are counted."""

SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"})
"""What systems write beside one's files, in small letters; with everything in such a folder."""


@dataclass
class Account:
    """What became of what was found: packed + tables + frames + skipped + left out = found.

    Attributes:
        unit: what is counted: `files`, `rows` or `samples`.
        found: how many were found.
        packed: how many are in the shards. tables: how many were read as tables. frames: how many are frames of clips.
        skipped: how many system files were skipped, by their kind.
        left_out: why each of the others is not in the shards, by name, for the first 10,000 of them.
        more: how many others were left out, by the kind of reason.
        beside: how many files lie beside a table that it does not name; they are not among those found.
        notes: what else a user should know, with counts and a first example.
    """

    unit: str = "files"
    found: int = 0
    packed: int = 0
    tables: int = 0
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    more: Counter[str] = field(default_factory=Counter)
    beside: int = 0
    notes: list[str] = field(default_factory=list)

    def leave(self, name: str, reason: str) -> None:
        """Leaves something out."""
        if name in self.left_out:
            return
        if len(self.left_out) < NAMED:
            self.left_out[name] = reason
        else:
            kind = _kind(reason)
            self.more[kind if kind in self.more or len(self.more) < KINDS else "other reasons"] += 1

    @property
    def left(self) -> int:
        """How many are left out."""
        return len(self.left_out) + self.more.total()

    def copy(self) -> Account:
        """Another of the same content."""
        return Account.of(self.to_json())

    def lines(self) -> list[str]:
        """The account as a short table."""
        rows = [("found", self.found), ("packed", self.packed)]
        rows += [("read as tables", self.tables)] if self.tables else []
        rows += [("frames of clips", self.frames)] if self.frames else []
        rows += [("skipped, of the system", self.skipped.total())] if self.skipped else []
        rows += [("left out", self.left)]
        out = [f"{name:<24}{count:>12,} {self.unit if name == 'found' else ''}".rstrip() for name, count in rows]
        reasons = self.more + Counter(map(_kind, self.left_out.values()))
        for reason, count in reasons.most_common(5):
            out.append(f"  {count:,} x {reason:.150}")
        if self.beside:
            out.append(f"{'beside, not named':<24}{self.beside:>12,} files")
        return out

    def listed(self, most: int = 20) -> list[str]:
        """What is left out and why, as many as fit a screen."""
        lines = [f"  left out: {name}: {reason}" for name, reason in list(self.left_out.items())[:most]]
        more = self.left - len(lines)
        return [*lines, f"  and {more:,} more"] if more else lines

    def report(self, kept: object) -> list[str]:
        """The account as it is printed; `kept` says where all of it is."""
        lines = [*self.lines(), *(f"note: {note}" for note in self.notes)]
        if self.left:
            lines += [f"warning: {self.left:,} {self.unit} were left out (listed in {kept})", *self.listed()]
        return lines

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Account:
        """Of what `to_json` gave."""
        kinds: dict[str, Callable[[Any], Any]] = {
            "skipped": Counter, "more": Counter, "left_out": dict, "notes": list
        }  # fmt: skip
        values: dict[str, Any] = {name: kinds.get(name, lambda same: same)(value) for name, value in content.items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**vars(self), "skipped": dict(self.skipped), "more": dict(self.more)}


def _kind(reason: str) -> str:
    """What reasons of one kind have in common: what stands before the details."""
    return reason.partition(": ")[0]


def printable(name: str) -> str:
    """A name that every file and screen takes: bytes that are no UTF-8, and control characters, are written out."""
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(_written(c) if c == "\\" or not c.isprintable() else c for c in name)


def _written(c: str) -> str:
    if c == "\\":  # else two names could be printed alike
        return "\\\\"
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()


def system_file(name: str) -> str | None:
    """What a file or folder of the system is called; None for others."""
    if name.startswith("._"):
        return "._*"
    if name.lower() in SYSTEM or name in (".DS_Store", ".ipynb_checkpoints"):
        return name.strip()
    return "hidden" if name.startswith(".") else None
