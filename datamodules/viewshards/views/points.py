"""Views of point clouds: a sample of the points, normalised, then changed by numbers drawn with the sample's own RNG.

A view is (N, 3) float32. A cloud with fewer points than asked for is filled up with rows of NaN, which stand for no
point: what forgets to leave them out cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Cloud = NDArray[np.float32]
"""(N, 3) float32."""


@dataclass(frozen=True)
class PointAugmentation:
    """Random changes of a normalised cloud: scale, turn, tilt, flip, shift, jitter, crop, drop. Defaults: Point-MAE's.

    Attributes:
        scale: range of a factor for each axis.
        shift: largest shift along each axis.
        turn: random rotation: none, about the `up` axis, or any (uniform over all rotations). up: the vertical axis.
        tilt: deviation of small turns about each axis in radians, cut at three times it.
        flip: probability of a reflection along each axis but `up`.
        jitter: deviation of each coordinate, cut at five times it.
        crop: share of the points that a random plane may cut away, at most.
        drop: share of the points that are left out at random, at most.
    """

    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: float = 0.2
    turn: Literal["none", "up", "any"] = "none"
    up: Literal["x", "y", "z"] = "z"
    tilt: float = 0.0
    flip: float = 0.0
    jitter: float = 0.0
    crop: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.turn not in ("none", "up", "any") or self.up not in ("x", "y", "z"):
            raise ValueError(f"turn is none, up or any, and up is x, y or z; got {self.turn!r}, {self.up!r}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be 0 < low <= high, got {self.scale}")
        if min(self.shift, self.tilt, self.jitter) < 0:
            raise ValueError(f"shift, tilt and jitter are at least 0, got {self.shift}, {self.tilt}, {self.jitter}")
        for name in ("flip", "crop", "drop"):
            if not 0 <= getattr(self, name) < 1 + (name == "flip"):
                raise ValueError(f"{name} is a share below 1, got {getattr(self, name)}")

    def __call__(self, cloud: Cloud, rng: np.random.Generator) -> Cloud:
        """A changed copy of (N, 3)."""
        up = "xyz".index(self.up)
        linear = np.diag(rng.uniform(*self.scale, 3))
        if self.turn == "any":
            linear = turned(rng.normal(size=4)) @ linear
        elif self.turn == "up":
            linear = about(up, rng.uniform(0, 2 * np.pi)) @ linear
        if self.tilt:
            for axis in range(3):
                angle = np.clip(rng.normal(0, self.tilt), -3 * self.tilt, 3 * self.tilt)
                linear = about(axis, float(angle)) @ linear
        if self.flip:
            signs = np.where(rng.random(3) < self.flip, -1.0, 1.0)
            signs[up] = 1.0
            linear = np.diag(signs) @ linear
        out = cloud @ linear.T + rng.uniform(-self.shift, self.shift, 3)
        if self.jitter:
            out = out + np.clip(rng.normal(0, self.jitter, out.shape), -5 * self.jitter, 5 * self.jitter)
        gone = np.zeros(len(out), bool)
        if self.crop:
            height = out @ rng.normal(size=3)
            gone |= height > np.quantile(height, 1 - rng.uniform(0, self.crop))
        if self.drop:
            gone |= rng.random(len(out)) < rng.uniform(0, self.drop)
        gone[0] &= not gone.all()
        return np.where(gone[:, None], np.nan, out).astype(np.float32)


class PointViews:
    """V views of a cloud, each of other points of it where it has more than are asked for.

    A sample may hold several clouds (`a.npy`, `b.npy`); view v then is of the (v modulo their number)-th, in random
    order.

    Args:
        points: N of a view.
        augmentations: one a view; None: the points as they are.
        normalise: centroid to 0, largest distance from it to 1, after the points are chosen.
    """

    modality = "points"

    def __init__(
        self,
        points: int = 1024,
        augmentations: Sequence[PointAugmentation | None] = (PointAugmentation(),),
        normalise: bool = True,
    ) -> None:
        if points < 1 or not augmentations:
            raise ValueError(f"a view needs points and an augmentation each, got {points} and {len(augmentations)}")
        self.points, self.augmentations, self.normalise = points, list(augmentations), normalise

    def __call__(self, clouds: Sequence[Cloud], rng: np.random.Generator) -> tuple[list[Cloud], list[list[float]]]:
        """V views (points, 3), and no rows for a device."""
        order, views = rng.permutation(len(clouds)), []
        for v, augmentation in enumerate(self.augmentations):
            cloud = checked(clouds[order[v % len(order)]])
            chosen = self._ready(cloud[rng.permutation(len(cloud))[: self.points]])
            views.append(filled(chosen if augmentation is None else augmentation(chosen, rng), self.points))
        return views, []

    def plain(self) -> PlainPoints:
        """What evaluation sees."""
        return PlainPoints(self)

    def _ready(self, cloud: Cloud) -> Cloud:
        return normalised(cloud) if self.normalise else cloud


class PlainPoints:
    """Each cloud of a sample without changes; of more points than asked for those that farthest-point sampling takes.

    Args:
        views: whose number of points and normalisation hold.
    """

    modality = "points"

    def __init__(self, views: PointViews) -> None:
        self.views = views

    def __call__(self, clouds: Sequence[Cloud], rng: np.random.Generator) -> tuple[list[Cloud], list[list[float]]]:
        """One view a cloud."""
        n = self.views.points
        found = [checked(cloud) for cloud in clouds]
        found = [cloud if len(cloud) <= n else cloud[farthest(cloud, n)] for cloud in found]
        return [filled(self.views._ready(cloud), n) for cloud in found], []


def checked(cloud: NDArray[np.generic]) -> Cloud:
    """(N, 3) float32 of an array of points, further columns (normals, colours) left out.

    Double precision far from the origin is centred first, so that it does not lose its digits.

    Raises:
        ValueError: if it is no cloud.
    """
    if cloud.ndim != 2 or cloud.shape[1] < 3 or not len(cloud) or cloud.dtype.kind != "f":
        raise ValueError(f"a cloud is an array (N, 3) of floats, got {cloud.shape} of {cloud.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is not finite
        is_finite = np.isfinite(cloud[:, :3].astype(np.float32)).all()
    if not is_finite or np.abs(cloud[:, :3].astype(np.float64)).max() > 1e18:  # whose squares float32 cannot hold
        raise ValueError("a cloud with coordinates that are not finite, or too large")
    if cloud.dtype == np.float64 and np.abs(cloud[:, :3]).max() > 1e4:  # map coordinates would be rounded away
        cloud = cloud[:, :3] - cloud[:, :3].mean(0)
    out: Cloud = cloud[:, :3].astype(np.float32)
    return out


def normalised(cloud: Cloud) -> Cloud:
    """The centroid at 0 and the farthest point at distance 1."""
    out: Cloud = cloud - cloud.mean(0)
    out /= max(float(np.linalg.norm(out, axis=1).max()), 1e-12)
    return out


def filled(cloud: Cloud, points: int) -> Cloud:
    """(points, 3), filled up with NaN."""
    return np.concatenate([cloud, np.full((points - len(cloud), 3), np.nan, np.float32)])


def farthest(cloud: Cloud, count: int) -> NDArray[np.int64]:
    """Farthest-point sampling from point 0 on: (count,) indices, ties to the lowest."""
    chosen = np.zeros(count, np.int64)
    nearest = np.full(len(cloud), np.inf, np.float32)
    for k in range(1, count):
        nearest = np.minimum(nearest, ((cloud - cloud[chosen[k - 1]]) ** 2).sum(1))
        chosen[k] = nearest.argmax()
    return chosen


def about(axis: int, angle: float) -> NDArray[np.float64]:
    """(3, 3) rotation about a coordinate axis."""
    a, b = (i for i in range(3) if i != axis)
    out = np.eye(3)
    out[a, a] = out[b, b] = np.cos(angle)
    out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


def turned(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) rotation of a quaternion of any length; normally distributed ones give all rotations evenly."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def drawn(cloud: Cloud, side: int = 96) -> NDArray[np.uint8]:
    """(side, side, 3): a cloud seen from above at a slant, near points dark; what leaves the ball is squeezed in."""
    points = cloud[np.isfinite(cloud).all(1)].astype(float) @ (about(0, np.pi / 3) @ about(2, np.pi / 6)).T
    image = np.full((side, side, 3), 255, np.uint8)
    points /= max(1.0, float(np.linalg.norm(points, axis=1).max(initial=0)) / 1.1)
    depth = (points[:, 2] - points[:, 2].min()) / max(float(np.ptp(points[:, 2])), 1e-6) if len(points) else points
    for k in np.argsort(depth):
        place = (side / 2 + points[k, 0] * side * 0.45, side / 2 - points[k, 1] * side * 0.45)
        shade = 180 - int(140 * depth[k])
        cv2.circle(image, (round(place[0]), round(place[1])), max(1, side // 96), (shade, shade // 2, 200 - shade), -1)
    return image
