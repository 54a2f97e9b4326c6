"""Point clouds and meshes: arrays in either orientation, texts, PLY, OBJ, OFF, STL, GLB, LAS."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards.account import Question
from viewshards.decode import Arrays, array, array_bytes
from viewshards.extras import needed
from viewshards.limits import DEFAULT, Limits
from viewshards.order import generator
from viewshards.views.points import Cloud, checked

ARRAYS = frozenset({".npy", ".npz"})
MESHES = frozenset({".ply", ".obj", ".off", ".stl", ".glb"})
TEXTS = frozenset({".txt", ".xyz", ".pts"})
SCANS = frozenset({".las", ".laz"})
CLOUDS = ARRAYS | MESHES | TEXTS | SCANS
SAMPLED = 8192
"""Points taken of a mesh's surface."""
COLUMNS = 12
"""Numbers of a point at most: coordinates, normals, colours and a few more; beyond it an axis is that of the points."""
NAMES = ("points", "point_cloud", "pointcloud", "xyz", "pos", "positions", "coords", "coord", "vertices", "pc", "cloud")


@dataclass(frozen=True)
class Layout:
    """What a user says of arrays that can be understood in several ways.

    Attributes:
        axes: `points-first` (N, 3), `points-last` (3, N), or None: by the shape, where it is plain.
        array: which array of an `.npz` is the cloud; None: by its name, or the only one that can be.
    """

    axes: str | None = None
    array: str | None = None


def cloud_of(
    name: str, data: bytes, layout: Layout = Layout(), limits: Limits = DEFAULT, points: int = SAMPLED
) -> tuple[str, bytes, list[str]]:
    """`points.npy`, its contents, and what should be known of it: an array as it is, `points` points of a surface.

    A mesh is sampled evenly over its area with a seed of its name, so that packing again gives the same bytes.

    Args:
        name: of the file. data: its bytes. layout: how arrays are understood. limits: how large it may be.
        points: of a mesh's surface.

    Raises:
        ValueError: if there are no points in it, not as many as it says, or it can be understood in several ways.
    """
    extension = name[name.rfind(".") :].lower()
    told: list[str] = []
    found: NDArray[Any]
    try:
        if extension in MESHES:
            found = _of_mesh(needed("trimesh", "points", name), data, extension[1:], name, points, limits)
        elif extension in SCANS:
            found = _of_scan(needed("laspy", "points", name), data, limits)
        else:
            found = _of_text(data, extension) if extension in TEXTS else _array(data, extension, layout, limits, told)
            found = points_first(found, layout, told)
        kept = _kept(found)
        if len(kept) > 1 and not np.ptp(kept, axis=0).any():
            raise ValueError(f"all of its {len(kept)} points are one")
        return "points.npy", array_bytes(kept), told
    except Question:
        raise
    except Exception as error:  # every format, and every damage of it, fails in its own way
        raise ValueError(f"{name} is no readable {extension} file: {error or type(error).__name__}") from error


def _array(data: bytes, extension: str, layout: Layout, limits: Limits, told: list[str]) -> NDArray[Any]:
    if extension == ".npy":
        found = array(data, limits)
        if found.ndim == 3:
            raise Question(f"an array {found.shape}: if it is a picture, say how many bands it has by --channels")
        return found
    arrays = Arrays(data, limits)
    if layout.array is not None:
        if layout.array not in arrays:
            raise ValueError(f"no array {layout.array!r}, which --cloud-array names; it has {', '.join(arrays)[:200]}")
        return arrays[layout.array]
    clouds = [name for name in arrays if _is_cloud(arrays[name])]
    fitting = [name for name in clouds if name.lower() in NAMES] or clouds
    if len(fitting) != 1:
        raise Question(
            f"{len(fitting)} of its arrays can be a cloud ({', '.join(arrays)[:200]}): say which by --cloud-array NAME"
        )
    if len(arrays) > 1:
        told.append(f"clouds that are the array {fitting[0]!r} of an .npz with others")
    return arrays[fitting[0]]


def _is_cloud(found: NDArray[Any]) -> bool:
    return found.ndim == 2 and found.dtype.kind == "f" and any(3 <= side <= COLUMNS for side in found.shape)


def points_first(found: NDArray[Any], layout: Layout, told: list[str]) -> NDArray[Any]:
    """(N, C) of an array in either orientation; notes what was turned, and what is not kept.

    Raises:
        Question: if both axes can be that of the points.
    """
    if found.ndim != 2:
        return found
    first, last = (3 <= side <= COLUMNS for side in found.shape)
    plain = found.shape[1] == 3 != found.shape[0]  # (N, 3), as nearly all are
    turn = layout.axes == "points-last" or (layout.axes is None and first and found.shape[1] > COLUMNS)
    if layout.axes is None and first and last and not plain:
        raise Question(f"an array {found.shape}: are the points its rows or its columns? say --cloud-axes "
                         "points-first or points-last")  # fmt: skip
    if turn:
        told.append("clouds that were turned from (3, N) to (N, 3)")
        found = found.T
    if found.shape[1] > 3:
        told.append(f"clouds of {found.shape[1]} columns, of which the first three are kept")
    return found


def _of_text(data: bytes, extension: str) -> NDArray[np.float64]:
    """Lines of numbers between blanks, commas or semicolons; a `.pts` may begin with how many there are.

    A first line of names says which columns are x, y and z; else they are the first three.
    """
    rows: list[list[str]] = []
    header: list[str] = []
    declared = None
    for number, line in enumerate(data.decode("utf-8-sig").splitlines(), 1):
        if not rows and re.match(r"\s*(#|//)", line):
            header = re.split(r"[\s,;]+", line.strip(" \t#/").lower())
        words = re.split(r"#|//", line)[0].replace(";", " ").split()
        if len(words) >= 3 and all(re.fullmatch(r"-?\d+,\d+", word) for word in words):
            raise ValueError(f"line {number}: decimal commas: write them as points")
        words = [word for part in words for word in part.split(",") if word]
        if not rows and len(words) == 1 and words[0].isdigit():
            declared = int(words[0])
        elif not rows and words and not any(map(_is_number, words)):
            header = [word.lower() for word in words]
        elif words:
            if len(words) < 3 or (rows and len(words) != len(rows[0])) or not all(map(_is_number, words)):
                raise ValueError(
                    f"line {number}: expected {len(rows[0]) if rows else '3 or more'} numbers, got {line[:60]!r}"
                )
            rows.append(words)
    if declared not in (None, len(rows)):
        raise ValueError(f"its first line names {declared} points, there are {len(rows)}: cut?")
    if not rows:
        raise ValueError("there is no line of three numbers in it")
    found = np.array(rows, np.float64)
    if {"x", "y", "z"} <= {*header} and len(header) == found.shape[1]:
        axes = [header.index(axis) for axis in "xyz"]
        found = found[:, [*axes, *(column for column in range(len(header)) if column not in axes)]]
    return found


def is_text_cloud(data: bytes) -> bool:
    """Whether these first bytes of a text are lines of three numbers or more."""
    lines = data.decode(errors="replace").splitlines()[:4]
    rows = [re.split(r"[\s,;]+", line.strip()) for line in lines if line.strip() and not line.startswith(("#", "//"))]
    return any(len(row) >= 3 and all(map(_is_number, row)) for row in rows)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _of_scan(laspy: Any, data: bytes, limits: Limits) -> NDArray[np.float64]:
    with laspy.open(io.BytesIO(data)) as file:
        limits.check("array_bytes", 24 * file.header.point_count, "bytes of the points that its header names")
        return np.asarray(file.read().xyz, np.float64)


def _of_mesh(trimesh: Any, data: bytes, kind: str, name: str, points: int, limits: Limits) -> NDArray[np.float64]:
    """(N, 3): points of the surface, or the vertices where there are no faces."""
    vertices, faces = _declared(data, kind)
    if vertices is not None:
        limits.check("array_bytes", 12 * vertices, "bytes of the vertices that its header names")
        if vertices > len(data) or (faces or 0) > len(data):
            raise ValueError(f"its header names {vertices} vertices and {faces} faces, in a file of {len(data)} bytes")
    # From memory: a file may name materials and textures, which trimesh would look for beside it and open.
    options = {"skip_materials": True} if kind in ("obj", "glb") else {}
    loaded = trimesh.load(io.BytesIO(data), file_type=kind, process=False, **options)
    if hasattr(loaded, "to_geometry"):  # a scene, in which one mesh may be placed any number of times
        placed = (loaded.geometry[loaded.graph[node][1]] for node in loaded.graph.nodes_geometry)
        total = sum(each.nbytes for part in placed for each in (part.vertices, getattr(part, "faces", part.vertices)))
        limits.check("array_bytes", total, "bytes of all its parts")
        if len({hasattr(loaded.geometry[loaded.graph[node][1]], "faces") for node in loaded.graph.nodes_geometry}) > 1:
            raise ValueError("meshes and loose points in one file: one of them would be lost")
        loaded = loaded.to_geometry()
    mesh = loaded
    there = np.asarray(getattr(mesh, "vertices", np.zeros((0, 3))))
    triangles = np.asarray(getattr(mesh, "faces", np.zeros((0, 3), int)))
    if vertices is not None and (len(there) != vertices or len(triangles) < (faces or 0)):
        raise ValueError(
            f"its header names {vertices} vertices and {faces} faces, there are {len(there)} and {len(triangles)}: cut?"
        )
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(there):
        raise ValueError("a face names a vertex that is not there")
    if not len(there):
        raise ValueError("there is no vertex in it")
    if not len(triangles):
        return np.asarray(there, np.float64)
    if not float(mesh.area) > 0:
        raise ValueError("its faces have no area")
    seed = int(generator(2024, *name.encode()).integers(2**31))
    cloud, _ = trimesh.sample.sample_surface(mesh, points, seed=seed)
    return np.asarray(cloud, np.float64)


def _declared(data: bytes, kind: str) -> tuple[int | None, int | None]:
    """Vertices and faces that the header of a PLY or OFF file names."""
    if kind == "ply":
        lines = [line.split() for line in data[: data.find(b"end_header")][: 2**16].splitlines()]
        named = {line[1]: line[2] for line in lines if len(line) == 3 and line[0] == b"element"}
        counts = [named.get(b"vertex", b""), named.get(b"face", b"0")]
    elif kind == "stl" and data[:5].lower() != b"solid":
        if len(data) != 84 + 50 * int.from_bytes(data[80:84], "little"):
            raise ValueError("not of the size that its header says: cut?")
        return None, None
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
