"""Folders of files of one kind, in torchvision's layout."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from viewshards import video
from viewshards.sources.source import IMAGES, SPLITS, Source, files_below, hashed_split, image_file, times_of, unique


class Folder(Source):
    """Files of one kind in `ROOT/[train|val|test/][CLASS/]**`, torchvision's layout, labelled or not."""

    extensions: ClassVar[frozenset[str]]

    def __init__(self, root: Path, val_fraction: float) -> None:
        self.root, self.name = root, root.resolve().name.replace(".", "_")
        splits = [root / split for split in SPLITS if (root / split).is_dir()]
        inside = next((path for split in SPLITS for path in root.glob(f"*/{split}") if path.is_dir()), None)
        if inside and not splits:
            raise ValueError(f"{inside}: splits below classes; the layout is SPLIT/CLASS/FILE, so move them above")
        found = [(base, path) for base in splits or [root] for path in files_below(base, self.extensions)]
        self.paths = [path for _, path in found]
        parts = [path.relative_to(base).parts for base, path in found]
        classes = sorted({part[0] for part in parts if len(part) > 1})
        self.labels = {"cls": classes} if classes else {}
        self.classes = [classes.index(part[0]) if len(part) > 1 else -1 for part in parts]
        keys = unique("/".join(part).rpartition(".")[0] for part in parts)
        self.samples = [
            (key, base.name if splits else hashed_split(key, val_fraction))
            for key, (base, _) in zip(keys, found, strict=True)
        ]

    @abstractmethod
    def content(self, path: Path) -> tuple[str, bytes]:
        """Extension and contents of a file, as a shard holds it."""

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        extension, data = self.content(self.paths[sample])
        files = {extension: data}
        if self.classes[sample] >= 0:
            files["cls"] = str(self.classes[sample]).encode()
        return files

    def fingerprint(self) -> str:  # noqa: D102
        sizes = [path.stat().st_size for path in self.paths]
        return hashlib.sha256(json.dumps([super().fingerprint(), sizes]).encode()).hexdigest()[:16]

    def times(self) -> str:  # noqa: D102
        return times_of(self.paths)


class ImageFolder(Folder):
    """Images in `ROOT/[train|val|test/][CLASS/]**`, torchvision's layout, labelled or not."""

    extensions = IMAGES

    def content(self, path: Path) -> tuple[str, bytes]:  # noqa: D102
        return image_file(path, self.limits)


class VideoFolder(Folder):
    """Clips in `ROOT/[train|val|test/][CLASS/]**`: .mp4, .webm, .mkv, .mov, .avi, with NAME.traj.npz beside, if any."""

    extensions = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi"})

    def content(self, path: Path) -> tuple[str, bytes]:  # noqa: D102
        return video.clip_file(path, self.limits)

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        tracks = self.paths[sample].with_suffix(".traj.npz")
        more = {"traj.npz": tracks.read_bytes()} if tracks.is_file() else {}
        return {**super().files(sample), **more}

    def times(self) -> str:  # noqa: D102
        beside = [path.with_suffix(".traj.npz") for path in self.paths]
        return times_of([*self.paths, *(path for path in beside if path.is_file())])
