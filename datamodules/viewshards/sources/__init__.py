"""What can be packed: folders, tables, torchvision and scikit-learn data sets, and the built-in ones.

A source lists its samples (key and split) at once and gives the files of one when asked, so that packing is parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from viewshards.limits import DEFAULT, Limits
from viewshards.sources import clouds, generated, moving
from viewshards.sources.bundled import Emoji, Sklearn, Torchvision
from viewshards.sources.folders import ImageFolder, VideoFolder
from viewshards.sources.source import Source, files_below
from viewshards.sources.tables import Table


def open_source(
    text: str,
    root: str = "data",
    val_fraction: float = 0.1,
    labels: Sequence[str] = (),
    split_by: str | None = None,
    kind: str | None = None,
    outside: bool = False,
    limits: Limits = DEFAULT,
) -> Source:
    """The source a command line names.

    Args:
        text: a folder, a `.csv` or `.jsonl` file, `builtin:NAME`, `torchvision:NAME` or `sklearn:NAME`.
        root: where torchvision finds its data.
        val_fraction: share of samples that goes to `val`, by a hash of the key, if the source has no splits itself.
        labels: further columns of a table that are labels.
        split_by: column of a table by whose hash the rows are split, so that rows of one value stay together.
        kind: of the files of a folder that holds several: `image`, `cloud`, `clip` or `h5`.
        outside: whether a table may name files outside of its folder.
        limits: how large what is read may be.

    Raises:
        FileNotFoundError: if there is no such source. ValueError: if it cannot be read as asked.
    """
    source = _opened(text, root, val_fraction, labels, split_by, kind, outside, limits)
    source.limits = limits
    return source


def _opened(
    text: str,
    root: str,
    val_fraction: float,
    labels: Sequence[str],
    split_by: str | None,
    kind: str | None,
    outside: bool,
    limits: Limits,
) -> Source:
    is_table = Path(text).suffix in (".csv", ".jsonl")
    if split_by and not is_table:
        raise ValueError(f"{text}: --split-by is for tables, whose columns have names")
    scheme, _, name = text.partition(":")
    if scheme == "builtin":
        builtin: dict[str, Callable[[], Source]] = {
            "emoji": Emoji,
            "digits": Sklearn,
            **{made.name: made for made in (*generated.SETS, clouds.Solids, moving.Moving)},
        }
        if name not in builtin:
            raise ValueError(f"no built-in set {name!r}; there are {', '.join(sorted(builtin))}")
        return builtin[name]()
    if scheme == "torchvision":
        return Torchvision(name, root, val_fraction)
    if scheme == "sklearn":
        return Sklearn(name, val_fraction)
    path = Path(text)
    if path.is_dir():
        return _of_folder(path, val_fraction, kind, limits)
    if is_table:
        return Table(path, val_fraction, labels, split_by, outside)
    raise FileNotFoundError(
        f"{text}: expected a folder of images or clouds, a .csv or .jsonl file, builtin:NAME, torchvision:NAME or "
        "sklearn:NAME"
    )


def _of_folder(root: Path, val_fraction: float, kind: str | None, limits: Limits) -> Source:
    """The source that reads what is in a folder.

    Raises:
        ValueError: if it holds files of several kinds and none was asked for.
    """
    folders: dict[str, type[ImageFolder | clouds.CloudFolder | VideoFolder]] = {
        "image": ImageFolder,
        "cloud": clouds.CloudFolder,
        "clip": VideoFolder,
    }
    counts = {name: len(files_below(root, source.extensions)) for name, source in folders.items()}
    counts["h5"] = len(list(root.glob("*.h5")))
    found = [kind] if kind else [name for name, count in counts.items() if count]
    if not any(counts[name] for name in found):
        known = ", ".join(sorted(extension for source in folders.values() for extension in source.extensions))
        raise FileNotFoundError(f"{root}: nothing to pack below it; known are {known} and .h5 files")
    if len(found) > 1:
        there = ", ".join(f"{counts[name]} of kind {name}" for name in found)
        raise ValueError(f"{root}: files of several kinds, {there}: say which by --kind")
    return clouds.Hdf5(root, limits) if found == ["h5"] else folders[found[0]](root, val_fraction)
