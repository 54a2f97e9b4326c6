"""What can be packed: folders, tables, torchvision and scikit-learn data sets, and the built-in ones.

A source lists its samples (key and split) at once and gives the files of one when asked, so that packing is parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from viewshards.limits import DEFAULT, Limits
from viewshards.sources import clouds, generated, moving, solids
from viewshards.sources.bundled import Emoji, Sklearn, Torchvision
from viewshards.sources.columns import TABLES, Columns
from viewshards.sources.folders import of_folder
from viewshards.sources.reader import Reader
from viewshards.sources.rows import Choices
from viewshards.sources.source import Source
from viewshards.sources.splits import Splits
from viewshards.sources.tables import of_table


@dataclass(frozen=True)
class Options:
    """What a user may say of a source; None where nothing is said.

    Attributes:
        val_fraction: share of the samples that becomes `val`, by a hash of the key: of a source without splits (default
            0.1), or of its `train` where it has no `val`.
        splits: `train=Training,val=Valid` names folders or values of a table's column; `none`: there are none.
        labels: further columns of a table that are labels, comma separated.
        split_by: column of a table by whose hash the rows are split, so that rows of one value stay together.
        kind: of the files of a folder that holds several: `image`, `cloud`, `clip` or `h5`.
        columns: `caption=alt,...`: which column of a table is what. encoding: of a table.
        table: which file of a folder is the table that says more of its files; `none`: no file.
        outside: whether a table may name files outside of its folder.
        value_range: what is black and white in pictures of 32 bits and floats.
        channels: bands of the pictures, which stay as they are; None: RGB, as a viewer shows them.
        cloud_axes: `points-first` or `points-last`. cloud_array: the array of an `.npz` that is the cloud.
        root: where torchvision finds its data (default `data`).
    """

    val_fraction: float | None = None
    splits: str | None = None
    labels: str | None = None
    split_by: str | None = None
    kind: str | None = None
    columns: str | None = None
    encoding: str | None = None
    table: str | None = None
    outside: bool | None = None
    value_range: tuple[float, float] | None = None
    channels: int | None = None
    cloud_axes: str | None = None
    cloud_array: str | None = None
    root: str | None = None

    def said(self) -> dict[str, Any]:
        """What is said, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


USED = {"builtin": {"val_fraction"}, "sklearn": {"val_fraction"}, "torchvision": {"val_fraction", "root"}}
"""Options of sets that come with a package; folders and tables take all but `root`."""


def open_source(text: str, options: Options = Options(), limits: Limits = DEFAULT) -> Source:
    """The source a command line names.

    Args:
        text: a folder, a table (.csv, .tsv, .jsonl, .json, .parquet), `builtin:NAME`, `torchvision:NAME` or
            `sklearn:NAME`.
        options: what is said of it. limits: how large what is read may be.

    Raises:
        FileNotFoundError: if there is no such source. ValueError: if it cannot be read as asked, or in several ways.
    """
    source = _opened(text, options, limits)
    source.options = options.said()
    return source


def _opened(text: str, options: Options, limits: Limits) -> Source:
    scheme, _, name = text.partition(":")
    path = Path(text)
    is_table = path.suffix.lower() in TABLES and not path.is_dir()
    used = {field.name for field in fields(Options)} - {"root"} - ({"table"} if is_table else set())
    unused = options.said().keys() - (USED[scheme] if scheme in USED and name else used)
    if unused:
        listed = ", ".join(f"--{option.replace('_', '-')}" for option in sorted(unused))
        raise ValueError(f"{text}: {listed} would not be used by a source of this kind: leave it out")
    if scheme == "builtin":
        return _builtin(name, options.val_fraction)
    if scheme == "torchvision":
        return Torchvision(name, options.root or "data", options.val_fraction)
    if scheme == "sklearn":
        return Sklearn(name, options.val_fraction)
    reader = Reader(limits, clouds=clouds.Layout(options.cloud_axes, options.cloud_array), channels=options.channels)
    choices = Choices(
        Splits.parsed(options.splits),
        options.val_fraction,
        tuple(filter(None, (options.labels or "").split(","))),
        options.split_by,
        Columns.parsed(options.columns, options.encoding),
        bool(options.outside),
        options.table,
        options.value_range,
    )
    if path.is_dir():
        return of_folder(path, options.kind, choices, reader)
    if is_table:
        return of_table(path, options.kind, choices, reader)
    raise FileNotFoundError(
        f"{text}: expected a folder, a table ({', '.join(sorted(TABLES))}), builtin:NAME, torchvision:NAME or "
        "sklearn:NAME"
    )


def _builtin(name: str, val_fraction: float | None) -> Source:
    sets: dict[str, Callable[[], Source]] = {
        "emoji": Emoji,
        "digits": Sklearn if val_fraction is None else lambda: Sklearn(val_fraction=val_fraction),
        **{made.name: made for made in (*generated.SETS, solids.Solids, moving.Moving)},
    }
    if name not in sets:
        raise ValueError(f"no built-in set {name!r}; {nearest(name, sets)}")
    if val_fraction is not None and name != "digits":
        raise ValueError(f"builtin:{name}: it has its splits: --val-fraction would not be used")
    return sets[name]()


def nearest(name: str, known: Iterable[str]) -> str:
    """The names most like one that is not known, in words; all of them if none is."""
    names = sorted(known)
    near = get_close_matches(name, names, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
