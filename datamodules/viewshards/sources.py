"""What can be packed: folders, tables, torchvision and scikit-learn data sets, and the built-in ones.

A source lists its samples (key and split) at once and gives the files of one when asked, so that packing is parallel.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
SPLITS = ("train", "val", "test")
CAPTION_COLUMNS = ("caption", "captions", "hard_captions", "language")
FILE_COLUMNS = ("file_name", "file", "filepath", "path", "image")


class Source(ABC):
    """Samples to pack.

    Attributes:
        name: of the data set; shards are called `name-split-000000.tar`.
        samples: (key, split) of each sample; keys are unique, without dots.
        labels: class names by label field (`cls`, or a field of the samples' `.json`).
        notes: what a user should know before packing.
    """

    notes: Sequence[str] = ()

    name: str
    samples: list[tuple[str, str]]
    labels: dict[str, list[str]]

    @abstractmethod
    def files(self, sample: int) -> dict[str, bytes]:
        """Contents by extension of one sample."""

    def fingerprint(self) -> str:
        """Changes when the listing does; tells a pack that goes on from one of something else."""
        return hashlib.sha256(json.dumps([self.name, self.samples, self.labels]).encode()).hexdigest()[:16]


def open_source(
    text: str,
    root: str = "data",
    val_fraction: float = 0.1,
    labels: Sequence[str] = (),
    split_by: str | None = None,
    kind: str | None = None,
) -> Source:
    """The source a command line names.

    Args:
        text: a folder, a `.csv` or `.jsonl` file, `builtin:NAME`, `torchvision:NAME` or `sklearn:NAME`.
        root: where torchvision finds its data.
        val_fraction: share of samples that goes to `val`, by a hash of the key, if the source has no splits itself.
        labels: further columns of a table that are labels.
        split_by: column of a table by whose hash the rows are split, so that rows of one value stay together.
        kind: of the files of a folder that holds several: `image`, `cloud`, `clip` or `h5`.

    Raises:
        FileNotFoundError: if there is no such source. ValueError: if it cannot be read as asked.
    """
    is_table = Path(text).suffix in (".csv", ".jsonl")
    if split_by and not is_table:
        raise ValueError(f"{text}: --split-by is for tables, whose columns have names")
    scheme, _, name = text.partition(":")
    if scheme == "builtin":
        from viewshards import clouds, generated, moving  # which are made of those here

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
        return _of_folder(path, val_fraction, kind)
    if is_table:
        return Table(path, val_fraction, labels, split_by)
    raise FileNotFoundError(
        f"{text}: expected a folder of images or clouds, a .csv or .jsonl file, builtin:NAME, torchvision:NAME or "
        "sklearn:NAME"
    )


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
        keys = _unique("/".join(part).rpartition(".")[0] for part in parts)
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


class ImageFolder(Folder):
    """Images in `ROOT/[train|val|test/][CLASS/]**`, torchvision's layout, labelled or not."""

    extensions = IMAGES

    def content(self, path: Path) -> tuple[str, bytes]:  # noqa: D102
        return _image_file(path)


class VideoFolder(Folder):
    """Clips in `ROOT/[train|val|test/][CLASS/]**`: .mp4, .webm, .mkv, .mov, .avi, with NAME.traj.npz beside, if any."""

    extensions = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi"})

    def content(self, path: Path) -> tuple[str, bytes]:  # noqa: D102
        from viewshards import video

        return video.clip_file(path)

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        tracks = self.paths[sample].with_suffix(".traj.npz")
        more = {"traj.npz": tracks.read_bytes()} if tracks.is_file() else {}
        return {**super().files(sample), **more}


def files_below(root: Path, extensions: frozenset[str]) -> list[Path]:
    """All files of these kinds, in order; tracks (NAME.traj.npz) belong to clips."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in extensions and not path.name.endswith(".traj.npz") and path.is_file()
    ]


def _of_folder(root: Path, val_fraction: float, kind: str | None) -> Source:
    """The source that reads what is in a folder.

    Raises:
        ValueError: if it holds files of several kinds and none was asked for.
    """
    from viewshards import clouds

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
    return clouds.Hdf5(root) if found == ["h5"] else folders[found[0]](root, val_fraction)


class Table(Source):
    """A CSV or JSONL table with one file a row.

    Columns: the file (`file_name`, `file`, `filepath`, `path` or `image`; relative to the table; a folder is a clip of
    the frames in it), and if there are any: `caption` (or `captions`, a list, or in JSONL an object from language to
    one or a list), `hard_captions` (a list, of each caption of the row), `language`, `label`, `split`, `tracks` (a
    clip's `traj.npz`), and `id` with `view`, by which several files become the natural views of one sample. Rows of one
    file are further captions of it. In a CSV a list is written as JSON. All other columns are kept in the sample's
    `.json`; there an integer `same` marks known duplicates: samples of one number are right answers to each other in
    retrieval, and never each other's negatives.
    """

    def __init__(self, path: Path, val_fraction: float, labels: Sequence[str], split_by: str | None = None) -> None:
        self.path, self.name = path, (path.parent.resolve().name if path.stem == "metadata" else path.stem)
        rows = _rows(path)
        column = next((c for c in FILE_COLUMNS if c in rows[0]), None)
        if column is None:
            raise ValueError(f"{path}: no column for the file; expected one of {', '.join(FILE_COLUMNS)}")
        missing = [row[column] for row in rows if not (path.parent / row[column]).exists()]
        if missing:
            raise FileNotFoundError(f"{path}: {len(missing)} of its files are not there, first {missing[0]!r}")
        grouped: dict[str, list[dict[str, Any]]] = {}
        has_views = "id" in rows[0] and "view" in rows[0]
        for row in rows:
            grouped.setdefault(str(row["id"]) if has_views else str(row[column]), []).append(row)
        self.column, self.groups = column, list(grouped.values())
        fields = [f for f in ("label", *labels) if f in rows[0]]
        unknown = {*labels, *([split_by] if split_by else [])} - set(rows[0])
        if unknown:
            raise ValueError(f"{path}: no column {', '.join(sorted(unknown))}; it has {', '.join(rows[0])}")
        self.labels = {f: sorted({str(row[f]) for row in rows if row.get(f) not in (None, "")}) for f in fields}
        if "label" in self.labels:
            self.labels["cls"] = self.labels.pop("label")
        self.numbers = {name: number for number, name in enumerate(self.labels.get("cls", []))}
        keys = _unique(key if has_views else key.rpartition(".")[0] for key in grouped)
        self.samples = [
            (key, self._split(key, rows[0], split_by, val_fraction))
            for key, rows in zip(keys, self.groups, strict=True)
        ]

        silent = sum(not _captions(rows) for rows in self.groups)
        if 0 < silent < len(self.groups):
            self.notes = [
                f"{silent} of {len(self.groups)} samples have no caption: methods that read texts cannot use them and "
                "stop, unless data.max_broken allows that share; remove the rows, or give them captions"
            ]

    @staticmethod
    def _split(key: str, row: dict[str, Any], split_by: str | None, val_fraction: float) -> str:
        if split_by:
            return hashed_split(str(row[split_by]), val_fraction)
        return str(row.get("split") or hashed_split(key, val_fraction))

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        rows, files = self.groups[sample], {}
        for row in {row[self.column]: row for row in rows}.values():
            extension, data = _content(self.path.parent / row[self.column])
            plain = extension.rpartition(".")[2]
            files[f"{row['view']}.{plain}" if "view" in row else extension] = data
        first = rows[0]
        if first.get("tracks"):
            files["traj.npz"] = (self.path.parent / first["tracks"]).read_bytes()
        captions = _captions(rows)
        if captions:
            files["txt"] = next(iter(captions)).encode()
        if str(first.get("label", "")) in self.numbers:
            files["cls"] = str(self.numbers[str(first["label"])]).encode()
        rest = {
            k: v
            for k, v in first.items()
            if k not in (self.column, "label", "split", "view", "tracks", *CAPTION_COLUMNS)
        }
        if len(captions) > 1 or any(any(more) for more in captions.values()):
            rest["captions"] = list(captions)
            for name, column in zip(("hard_captions", "languages"), zip(*captions.values(), strict=True), strict=True):
                rest |= {name: list(column)} if any(column) else {}
        if rest:
            files["json"] = json.dumps(rest, ensure_ascii=False).encode()
        return files

    def fingerprint(self) -> str:  # noqa: D102
        sizes = [(self.path.parent / row[self.column]).stat().st_size for rows in self.groups for row in rows]
        content = json.dumps([super().fingerprint(), self.groups, sizes])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


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

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
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

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        return {"png": png(Image.fromarray(self.images[sample])), "cls": str(self.targets[sample]).encode()}


class Sklearn(Arrays):
    """A bundled scikit-learn image set by the name of its loader: `digits` (1,797 handwritten digits of 8x8)."""

    def __init__(self, name: str = "digits", val_fraction: float = 0.2) -> None:
        from sklearn import datasets

        loader = getattr(datasets, f"load_{name}", None)
        data = loader() if loader else None
        if data is None or not hasattr(data, "images") or not hasattr(data, "target"):
            raise ValueError(f"sklearn:{name}: not an image set bundled with scikit-learn; there is sklearn:digits")
        images = np.rint(data.images * (255 / data.images.max())).astype(np.uint8)
        splits = [hashed_split(f"{i:06d}", val_fraction) for i in range(len(images))]
        super().__init__(name, images, data.target, [str(c) for c in data.target_names], splits)


class Torchvision(Source):
    """A torchvision classification set that is on disk already (`root`); nothing is downloaded."""

    def __init__(self, name: str, root: str, val_fraction: float) -> None:
        import torchvision.datasets as sets

        if not hasattr(sets, name):
            raise ValueError(f"torchvision has no data set {name!r}")
        maker = getattr(sets, name)
        self.name = name.lower()
        try:
            try:
                self.parts = {"train": maker(root, train=True), "val": maker(root, train=False)}
            except TypeError:  # sets that name their splits, and sets without any
                try:
                    self.parts = {split: maker(root, split=split) for split in ("train", "test")}
                except TypeError:
                    self.parts = {"": maker(root)}
        except RuntimeError as error:
            raise FileNotFoundError(f"torchvision:{name}: not below {root!r} ({error})") from error
        self.places = [(part, i) for part, data in self.parts.items() for i in range(len(data))]
        self.samples = []
        for part, i in self.places:
            key = f"{part or 'all'}-{i:07d}"
            self.samples.append((key, part or hashed_split(key, val_fraction)))
        first = next(iter(self.parts.values()))
        self.labels = {"cls": [str(c) for c in getattr(first, "classes", [])]}

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        part, i = self.places[sample]
        image, target = self.parts[part][i]
        return {"png": png(image), "cls": str(int(target)).encode()}


def _rows(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f)) if path.suffix == ".csv" else [json.loads(line) for line in f if line.strip()]
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def _captions(rows: list[dict[str, Any]]) -> dict[str, tuple[list[str], str | None]]:
    """The captions of the rows of one sample, each once, with its hard captions and its language."""
    found: dict[str, tuple[list[str], str | None]] = {}
    for row in rows:
        hard, told = _listed(row.get("hard_captions")), row.get("captions")
        spoken: list[tuple[str | None, list[str]]]
        if isinstance(told, dict):
            spoken = [(language, [said] if isinstance(said, str) else _listed(said)) for language, said in told.items()]
        else:
            spoken = [(row.get("language") or None, _listed(told) or [str(row.get("caption") or "")])]
        for language, captions in spoken:
            for caption in captions:
                if caption and caption not in found:
                    found[caption] = hard, language
    return found


def _listed(value: Any) -> list[str]:
    """A list, in a CSV written as JSON."""
    found = value or []
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f'expected a list of texts, in a CSV as JSON such as ["one", "two"]; got {value!r}')
    return found


def _content(path: Path) -> tuple[str, bytes]:
    """Extension and contents of an image, a cloud or a clip; a folder is a clip of the frames in it."""
    from viewshards import clouds, video

    if path.is_dir() or path.suffix.lower() in video.VIDEOS or _is_animated(path):
        return video.clip_file(path)
    return clouds.cloud_file(path) if path.suffix.lower() in clouds.CLOUDS else _image_file(path)


def _is_animated(path: Path) -> bool:
    if path.suffix.lower() not in (".webp", ".gif"):
        return False
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1) > 1


def _image_file(path: Path) -> tuple[str, bytes]:
    """Extension and contents; formats that shards do not hold become PNG."""
    extension = path.suffix.lower().removeprefix(".")
    if extension in ("jpg", "jpeg", "png", "webp"):
        return extension, path.read_bytes()
    with Image.open(path) as image:
        return "png", png(image.convert("RGBA" if "transparency" in image.info else "RGB"))


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def hashed_split(key: str, val_fraction: float) -> str:
    """`train` or `val`, by a hash of the key."""
    share = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) / 2**32
    return "val" if share < val_fraction else "train"


def _unique(names: Iterable[str]) -> list[str]:
    """Keys: no dot in them (WebDataset cuts there), and no key twice."""
    keys: dict[str, None] = {}
    for name in names:
        wanted = key = name.replace(".", "_").replace(" ", "_")
        number = 1
        while key in keys:
            number += 1
            key = f"{wanted}-{number}"
        keys[key] = None
    return list(keys)
