"""Point clouds and meshes to pack: arrays, PLY, OBJ and OFF files, the HDF5 files of ModelNet40 and ScanObjectNN."""

from __future__ import annotations

import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards.decode import Arrays, array
from viewshards.limits import DEFAULT, Limits
from viewshards.order import generator
from viewshards.sources.folders import Folder
from viewshards.sources.source import SPLITS, Source, hashed_split, times_of
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
        return cloud_file(path, limits=self.limits)


class Hdf5(Source):
    """A folder of HDF5 files with `data` (n, N, 3) and `label` (n,): ModelNet40's and ScanObjectNN's.

    A file with `train`, `val` or `test` in its name is that, any other `train`; parts of a set differ by a number.
    Class names come from `shape_names.txt` beside the files, one a line, if it is there.
    """

    def __init__(self, root: Path, limits: Limits = DEFAULT) -> None:
        h5py = _needed("h5py", root)
        self.limits = limits
        self.root, self.name = root, root.resolve().name.replace(".", "_")
        names = root / "shape_names.txt"
        classes = names.read_text().splitlines() if names.is_file() else []
        self._files, self.samples, self._places = [], [], []
        highest = -1
        self._paths = paths = sorted(path for path in root.glob("*.h5") if path.is_file())
        kinds = {re.sub(r"\d+$", "", path.stem) for path in paths}
        splits = [next((s for s in SPLITS if s in path.stem), "train") for path in paths]
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
            if not is_right or len(labels) != len(clouds) or int(labels.min(initial=0)) < 0:
                raise ValueError(
                    f"{path}: expected data (n, N, 3) of floats and label (n,) of whole numbers of at least 0, got "
                    f"{clouds.shape} of {clouds.dtype} and {labels.shape} of {labels.dtype}"
                )
            highest = max(highest, int(labels.max(initial=-1)))
            limits.check("classes", highest + 1, f"{path}: classes up to its number")
            self._files.append((clouds, labels))
            split = splits[number]
            for i in range(len(clouds)):
                self.samples.append((f"{path.stem.replace('.', '_')}-{i:06d}", split))
                self._places.append((number, i))
        self.labels = {"cls": classes or [str(c) for c in range(highest + 1)]}

    def times(self) -> str:  # noqa: D102
        return times_of(self._paths)

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        number, i = self._places[sample]
        clouds, labels = self._files[number]
        return {"points.npy": array_bytes(checked(clouds[i])), "cls": str(labels[i]).encode()}


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()[:200]


def _dataset(file: Any, name: str, limits: Limits) -> NDArray[Any]:
    """An array that lies in the file itself; HDF5 can name other files, which are not read."""
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"expected data (n, N, 3) and label (n,); it has {_printable(', '.join(file))}")
    found: Any = file[name] if type(link).__name__ == "HardLink" else None
    if not hasattr(found, "shape") or found.external is not None or found.is_virtual:
        raise ValueError(f"{name} does not lie in this file, but in one that it names")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of {found.dtype}, expected numbers")
    limits.check("array_bytes", found.size * found.dtype.itemsize, f"{name} in bytes")
    values: NDArray[Any] = found[:]
    return values


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


def cloud_file(path: Path, points: int = SAMPLED, limits: Limits = DEFAULT) -> tuple[str, bytes]:
    """`points.npy` and its contents: an array as it is, `points` points of a mesh's surface, even over its area.

    A mesh is sampled with a seed of its name, so that packing again gives the same bytes.

    Raises:
        ValueError: if there are no points in it, or not as many as it says.
    """
    extension = path.suffix.lower()
    limits.check("file_bytes", path.stat().st_size, "bytes of a cloud")
    data = path.read_bytes()
    trimesh = _needed("trimesh", path) if extension in MESHES else None
    try:
        if extension == ".npy":
            return "points.npy", array_bytes(_kept(array(data, limits)))
        if extension == ".npz":
            arrays = Arrays(data, limits)
            return "points.npy", array_bytes(_kept(arrays["points" if "points" in arrays else next(iter(arrays))]))
        cloud = _of_mesh(trimesh, data, extension.removeprefix("."), path.name, points, limits)
        return "points.npy", array_bytes(checked(cloud))
    except Exception as error:  # every format, and every damage of it, fails in its own way
        raise ValueError(f"{path.name} is no readable {extension} file: {error or type(error).__name__}") from error


def _of_mesh(trimesh: Any, data: bytes, kind: str, name: str, points: int, limits: Limits) -> NDArray[np.float32]:
    """(N, 3): points of the surface, or the vertices where there are no faces."""
    vertices, faces = _declared(data, kind)
    if vertices is not None:
        limits.check("array_bytes", 12 * vertices, "bytes of the vertices that its header names")
        if vertices > len(data) or (faces or 0) > len(data):
            raise ValueError(f"its header names {vertices} vertices and {faces} faces, in a file of {len(data)} bytes")
    # From memory: a file may name materials and textures, which trimesh would look for beside it and open.
    options = {"skip_materials": True} if kind == "obj" else {}
    loaded = trimesh.load(io.BytesIO(data), file_type=kind, process=False, **options)
    mesh = loaded.to_geometry() if hasattr(loaded, "to_geometry") else loaded
    there = np.asarray(getattr(mesh, "vertices", np.zeros((0, 3))))
    triangles = np.asarray(getattr(mesh, "faces", np.zeros((0, 3), int)))
    if vertices is not None and (len(there) != vertices or len(triangles) < (faces or 0)):
        raise ValueError(
            f"its header names {vertices} vertices and {faces} faces, there are {len(there)} and {len(triangles)}: cut?"
        )
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(there):
        raise ValueError("a face names a vertex that is not there")
    if not len(triangles):
        return np.asarray(there, np.float32)
    seed = int(generator(2024, *name.encode()).integers(2**31))
    cloud, _ = trimesh.sample.sample_surface(mesh, points, seed=seed)
    return np.asarray(cloud, np.float32)


def _declared(data: bytes, kind: str) -> tuple[int | None, int | None]:
    """Vertices and faces that the header of a PLY or OFF file names."""
    if kind == "ply":
        lines = [line.split() for line in data[: data.find(b"end_header")][: 2**16].splitlines()]
        named = {line[1]: line[2] for line in lines if len(line) == 3 and line[0] == b"element"}
        counts = [named.get(b"vertex", b""), named.get(b"face", b"0")]
    elif kind == "off":
        lines = [line.partition(b"#")[0].split() for line in data[: 2**16].splitlines()]
        words = [word for line in lines for word in line]
        counts = words[1:3] if words and words[0].endswith(b"OFF") else words[:2]
    else:
        return None, None
    if len(counts) != 2 or not all(count.isdigit() and len(count) < 19 for count in counts):
        raise ValueError("a header that does not say how many vertices and faces there are")
    return int(counts[0]), int(counts[1])


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
