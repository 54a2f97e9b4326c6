"""Point clouds and meshes to pack: arrays, PLY, OBJ and OFF files, the HDF5 files of ModelNet40 and ScanObjectNN."""

from __future__ import annotations

import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards.order import generator
from viewshards.sources.folders import Folder
from viewshards.sources.source import SPLITS, Source, hashed_split
from viewshards.views.points import Cloud, checked, turned

ARRAYS = frozenset({".npy", ".npz"})
MESHES = frozenset({".ply", ".obj", ".off"})
CLOUDS = ARRAYS | MESHES
SAMPLED = 8192
"""Points taken of a mesh's surface."""


class CloudFolder(Folder):
    """Clouds or meshes in `ROOT/[train|val|test/][CLASS/]**`: .npy, .npz, .ply, .obj, .off."""

    extensions = CLOUDS

    def content(self, path: Path) -> tuple[str, bytes]:  # noqa: D102
        return cloud_file(path)


class Hdf5(Source):
    """A folder of HDF5 files with `data` (n, N, 3) and `label` (n,): ModelNet40's and ScanObjectNN's.

    A file with `train`, `val` or `test` in its name is that, any other `train`; parts of a set differ by a number.
    Class names come from `shape_names.txt` beside the files, one a line, if it is there.
    """

    def __init__(self, root: Path) -> None:
        h5py = _needed("h5py", root)
        self.root, self.name = root, root.resolve().name.replace(".", "_")
        names = root / "shape_names.txt"
        classes = names.read_text().splitlines() if names.is_file() else []
        self._files, self.samples, self._places = [], [], []
        highest = -1
        paths = sorted(root.glob("*.h5"))
        kinds = {re.sub(r"\d+$", "", path.stem) for path in paths}
        splits = [next((s for s in SPLITS if s in path.stem), "train") for path in paths]
        if len(kinds) > len(set(splits)):  # ScanObjectNN's variants lie side by side
            raise ValueError(f"{root}: files of several sets, {', '.join(sorted(kinds))}: put those of one in a folder")
        for number, path in enumerate(paths):
            file = h5py.File(path, "r")
            missing = {"data", "label"} - set(file)
            if missing or file["data"].ndim != 3:
                raise ValueError(f"{path}: expected data (n, N, 3) and label (n,); it has {', '.join(file)}")
            clouds, labels = file["data"][:], file["label"][:].reshape(-1).astype(int)
            highest = max(highest, int(labels.max()))
            self._files.append((clouds, labels))
            split = splits[number]
            for i in range(len(clouds)):
                self.samples.append((f"{path.stem.replace('.', '_')}-{i:06d}", split))
                self._places.append((number, i))
        self.labels = {"cls": classes or [str(c) for c in range(highest + 1)]}

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        number, i = self._places[sample]
        clouds, labels = self._files[number]
        return {"points.npy": array_bytes(checked(clouds[i])), "cls": str(labels[i]).encode()}


class Solids(Source):
    """800 surfaces of eight kinds as clouds of 1,024 points, each stretched, turned any way, and a little noisy.

    Args:
        samples: how many. points: of each.
    """

    name = "solids"
    kinds = ("sphere", "cube", "cylinder", "torus", "cone", "wave", "helix", "hyperboloid")

    def __init__(self, samples: int = 800, points: int = 1024) -> None:
        self.points = points
        self.samples = [(f"{i:06d}", hashed_split(f"{i:06d}", 0.3)) for i in range(samples)]
        self.labels = {"cls": list(self.kinds)}

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        rng = generator(2024, 19, sample)
        kind = sample % len(self.kinds)
        cloud = self._surface(self.kinds[kind], rng) * rng.uniform(0.7, 1.3, 3)
        cloud = cloud @ turned(rng.normal(size=4)).T + rng.normal(0, 0.01, cloud.shape)
        return {
            "points.npy": array_bytes(cloud.astype(np.float32)),
            "cls": str(kind).encode(),
            "txt": f"a {self.kinds[kind]}".encode(),
        }

    def _surface(self, kind: str, rng: np.random.Generator) -> NDArray[np.float64]:
        n = self.points
        u, v = rng.uniform(0, 2 * np.pi, n), rng.uniform(-1, 1, n)
        x, y = np.cos(u), np.sin(u)
        if kind == "sphere":
            r = np.sqrt(1 - v**2)
            return np.stack([r * x, r * y, v], 1)
        if kind == "cube":
            cloud = rng.uniform(-1, 1, (n, 3))
            cloud[np.arange(n), rng.integers(0, 3, n)] = np.where(rng.random(n) < 0.5, -1, 1)
            return cloud
        if kind == "cylinder":
            return np.stack([x, y, 1.5 * v], 1)
        if kind == "torus":
            tube = rng.uniform(0, 2 * np.pi, n)
            r = 1 + 0.35 * np.cos(tube)
            return np.stack([r * x, r * y, 0.35 * np.sin(tube)], 1)
        if kind == "cone":
            r = np.sqrt(rng.random(n))
            return np.stack([r * x, r * y, 1.5 * (1 - r)], 1)
        if kind == "wave":
            a, b = rng.uniform(-1, 1, (2, n))
            return np.stack([a, b, 0.25 * np.sin(4 * a) * np.cos(4 * b)], 1)
        if kind == "helix":
            turns = 3 * np.pi * v
            return np.stack([np.cos(turns), np.sin(turns), 1.2 * v], 1) + rng.normal(0, 0.05, (n, 3))
        r = np.sqrt(0.25 + v**2)
        return np.stack([r * x, r * y, v], 1)


def cloud_file(path: Path, points: int = SAMPLED) -> tuple[str, bytes]:
    """`points.npy` and its contents: an array as it is, `points` points of a mesh's surface, even over its area.

    A mesh is sampled with a seed of its name, so that packing again gives the same bytes.

    Raises:
        ValueError: if there are no points in it.
    """
    extension = path.suffix.lower()
    if extension in ARRAYS:
        try:
            found = np.load(path, allow_pickle=False)
            if extension == ".npz":
                found = found["points" if "points" in found else found.files[0]]
        except Exception as error:  # damaged archives fail in their own ways
            raise ValueError(f"{path.name} is no readable {extension} file: {error}") from error
        return "points.npy", array_bytes(_kept(found))
    trimesh = _needed("trimesh", path)
    try:
        loaded = trimesh.load(path, process=False)
    except Exception as error:  # every format fails in its own way
        raise ValueError(f"{path.name} is no readable {extension} file: {error}") from error
    mesh = loaded.to_geometry() if hasattr(loaded, "to_geometry") else loaded
    cloud: Any
    if len(getattr(mesh, "faces", ())):
        seed = int(generator(2024, *path.name.encode()).integers(2**31))
        cloud, _ = trimesh.sample.sample_surface(mesh, points, seed=seed)
    else:
        cloud = np.asarray(getattr(mesh, "vertices", np.zeros((0, 3))))
    return "points.npy", array_bytes(checked(np.asarray(cloud, np.float32)))


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """A cloud as it is stored: half precision stays, everything else becomes float32."""
    cloud: Cloud = checked(array)
    return cloud.astype(np.float16) if array.dtype == np.float16 else cloud


def array_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _needed(package: str, path: Path) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading it needs {package}: pip install 'manyviews[points]'") from error
