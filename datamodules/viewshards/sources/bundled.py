"""Sets that come with a package: the emoji with this one, scikit-learn's, and torchvision's from its disk."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from viewshards.sources.source import Source, hashed_split, png


class Emoji(Source):
    """1,905 emoji at 32 px, each drawn by two vendors, with names, keywords, groups and subgroups (shipped)."""

    name = "emoji"

    def __init__(self) -> None:
        # In memory: packing processes are forks, and a file they shared would have one read position for all of them.
        data = (resources.files("viewshards.builtin") / "emoji.zip").read_bytes()
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self.concepts = [json.loads(line) for line in self._archive.read("concepts.jsonl").decode().splitlines()]
        self.samples = [(c["id"], c["split"]) for c in self.concepts]
        groups, subgroups = (sorted({c[f] for c in self.concepts}) for f in ("group", "subgroup"))
        self.labels = {"cls": groups, "group": groups, "subgroup": subgroups}

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        concept = self.concepts[sample]
        files = {f"{view}.webp": self._archive.read(f"{concept['id']}.{view}.webp") for view in ("google", "twitter")}
        files["cls"] = str(self.labels["cls"].index(concept["group"])).encode()
        files["txt"] = concept["name"].encode()
        files["json"] = json.dumps({k: v for k, v in concept.items() if k != "split"}, ensure_ascii=False).encode()
        return files


class Arrays(Source):
    """Images held in memory as arrays (n, H, W[, 3]) uint8 with integer labels."""

    def __init__(
        self, name: str, images: NDArray[np.uint8], targets: Sequence[int], classes: list[str], splits: Sequence[str]
    ) -> None:
        self.name, self.images, self.targets = name, images, [int(t) for t in targets]
        self.labels = {"cls": classes}
        self.samples = [(f"{i:06d}", split) for i, split in enumerate(splits)]

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        return {"png": png(Image.fromarray(self.images[sample])), "cls": str(self.targets[sample]).encode()}


class Sklearn(Arrays):
    """A bundled scikit-learn image set by the name of its loader: `digits` (1,797 handwritten digits of 8x8)."""

    def __init__(self, name: str = "digits", val_fraction: float | None = None) -> None:
        from sklearn import datasets

        loader = getattr(datasets, f"load_{name}", None)
        data = loader() if loader else None
        if data is None or not hasattr(data, "images") or not hasattr(data, "target"):
            raise ValueError(f"sklearn:{name}: not an image set bundled with scikit-learn; there is sklearn:digits")
        images = np.rint(data.images * (255 / data.images.max())).astype(np.uint8)
        share = 0.2 if val_fraction is None else val_fraction
        splits = [hashed_split(f"{i:06d}", share) for i in range(len(images))]
        super().__init__(name, images, data.target, [str(c) for c in data.target_names], splits)


class Torchvision(Source):
    """A torchvision classification set that is on disk already (`root`); nothing is downloaded."""

    def __init__(self, name: str, root: str, val_fraction: float | None) -> None:
        import torchvision.datasets as sets

        known = [each for each in sets.__all__ if isinstance(getattr(sets, each), type)]
        if name not in known:
            near = [each for each in known if each.lower().startswith(name.lower())]
            near = near or get_close_matches(name.lower(), [each.lower() for each in known], 3)
            near = [each for each in known if each.lower() in {one.lower() for one in near}]
            hint = f"did you mean {' or '.join(near[:5])}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"torchvision has no data set {name!r}; {hint}")
        maker = getattr(sets, name)
        self.name = name.lower()
        try:
            try:
                self._parts = {"train": maker(root, train=True), "val": maker(root, train=False)}
            except TypeError:  # sets that name their splits, and sets without any
                try:
                    self._parts = {split: maker(root, split=split) for split in ("train", "test")}
                except TypeError:
                    self._parts = {"": maker(root)}
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(f"torchvision:{name}: not below {root!r} ({error})") from error
        except (TypeError, ValueError) as error:  # sets that want more than a folder and a split
            raise ValueError(
                f"torchvision:{name}: not a set of pictures with splits that can be packed ({error})"
            ) from error
        if val_fraction is not None and "val" in self._parts:
            raise ValueError(
                f"torchvision:{name}: there is a val split, and --val-fraction would not be used: leave it out"
            )
        self.places = [(part, i) for part, data in self._parts.items() for i in range(len(data))]
        self.samples = []
        for part, i in self.places:
            key = f"{part or 'all'}-{i:07d}"
            is_split = part and not (part == "train" and val_fraction and "val" not in self._parts)
            self.samples.append((key, part if is_split else hashed_split(key, val_fraction)))
        first = next(iter(self._parts.values()))
        self.labels = {"cls": [str(c) for c in getattr(first, "classes", [])]}

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        part, i = self.places[sample]
        image, target = self._parts[part][i]
        return {"png": png(image), "cls": str(int(target)).encode()}
