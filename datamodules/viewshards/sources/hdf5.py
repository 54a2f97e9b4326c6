"""The HDF5 files of ModelNet40 and ScanObjectNN."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import override

from viewshards.account import Account, printable
from viewshards.decode import array_bytes
from viewshards.extras import needed
from viewshards.limits import Limits
from viewshards.sources.clouds import points_first
from viewshards.sources.reader import Reader
from viewshards.sources.rows import Choices
from viewshards.sources.source import Source, hashed_split, times_of, unique
from viewshards.sources.splits import layout, split_in
from viewshards.sources.tree import File
from viewshards.views.points import checked


class Hdf5(Source):
    """A folder of HDF5 files with `data` (n, N, 3) and `label` (n,): ModelNet40's and ScanObjectNN's.

    A file with `train`, `val` or `test` in its name is that, any other `train`; parts of a set differ by a number.
    Class names come from `shape_names.txt` beside the files, one a line, if it is there.
    """

    def __init__(self, root: Path, files: Sequence[File], choices: Choices, account: Account, reader: Reader) -> None:
        limits = reader.limits
        h5py = needed("h5py", "points", root)
        self.root, self.name = root, root.resolve().name.replace(".", "_")
        listed = root / "shape_names.txt"
        classes = listed.read_text().splitlines() if listed.is_file() else []
        self._files, self.samples, self._places = [], [], []
        highest = -1
        self._paths = paths = [root / file.name for file in files]
        kinds = {re.sub(r"\d+$", "", path.stem) for path in paths}
        names = [file.name for file in files]
        places = layout(root, names, choices.splits)
        told = [place.split if (place := places.places.get(name)) else None for name in names]
        told = [split or split_in(path.stem) for split, path in zip(told, paths, strict=True)]
        stems = unique(name.rpartition(".")[0] for name in names)
        splits = [split or "train" for split in told]
        if len(kinds) > len(set(splits)):  # ScanObjectNN's variants lie side by side
            raise ValueError(f"{root}: files of several sets, {', '.join(sorted(kinds))}: put those of one in a folder")
        for number, path in enumerate(paths):
            try:
                with h5py.File(path, "r") as file:
                    clouds, labels = (_dataset(file, name, limits) for name in ("data", "label"))
            except Exception as error:  # HDF5 has many kinds
                raise ValueError(f"{path}: {error or type(error).__name__}") from error
            labels = labels.reshape(-1)
            is_right = clouds.ndim == 3 and clouds.dtype.kind == "f" and labels.dtype.kind in "iu"
            if not is_right or len(labels) != len(clouds) or (labels.size and int(labels.min()) < 0):
                raise ValueError(
                    f"{path}: expected data (n, N, 3) of floats and label (n,) of whole numbers of at least 0, got "
                    f"{clouds.shape} of {clouds.dtype} and {labels.shape} of {labels.dtype}"
                )
            highest = max(highest, int(labels.max()) if labels.size else -1)
            limits.check("classes", highest + 1, f"{path}: classes up to its number")
            if len(clouds):  # turned alike, all of them
                first = points_first(clouds[0], reader.clouds, account.notes)
                clouds = clouds if first.shape == clouds[0].shape else clouds.transpose(0, 2, 1)
            self._files.append((clouds, labels))
            split = splits[number]
            for i in range(len(clouds)):
                self.samples.append((f"{stems[number]}-{i:06d}", split))
                self._places.append((number, i))
        if classes and len(classes) <= highest:
            raise ValueError(f"{listed}: {len(classes)} names, classes go up to {highest}")
        self.labels = {"cls": classes or [str(c) for c in range(highest + 1)]}
        if choices.val_fraction is not None and "val" in splits:
            raise ValueError(f"{root}: there is a val split, and --val-fraction would not be used: leave it out")
        if choices.val_fraction is not None:
            keyed = [(key, hashed_split(key, choices.val_fraction)) for key, _ in self.samples]
            self.samples = [new if old[1] == "train" else old for new, old in zip(keyed, self.samples, strict=True)]
        self._account = Account("clouds", len(self.samples), beside=account.found - len(paths), notes=account.notes)
        unnamed = [path.name for path, split in zip(paths, told, strict=True) if split is None]
        if unnamed:
            self._account.notes.append(f"files that name no split are train: {', '.join(unnamed)[:200]}")

    @property
    @override
    def account(self) -> Account:
        return self._account.copy()

    @override
    def times(self) -> str:
        return times_of(self._paths)

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        number, i = self._places[sample]
        clouds, labels = self._files[number]
        return {"points.npy": array_bytes(checked(clouds[i])), "cls": str(labels[i]).encode()}


def _dataset(file: Any, name: str, limits: Limits) -> NDArray[Any]:
    """An array that lies in the file itself; HDF5 can name other files, which are not read."""
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"expected data (n, N, 3) and label (n,); it has {printable(', '.join(file))[:200]}")
    found: Any = file[name] if type(link).__name__ == "HardLink" else None
    if not hasattr(found, "shape") or found.external is not None or found.is_virtual:
        raise ValueError(f"{name} does not lie in this file, but in one that it names")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of {found.dtype}, expected numbers")
    limits.check("array_bytes", found.size * found.dtype.itemsize, f"{name} in bytes")
    values: NDArray[Any] = found[:]
    return values
