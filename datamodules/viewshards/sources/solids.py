"""Surfaces that are made, not read: clouds with exact classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from viewshards.decode import array_bytes
from viewshards.order import generator
from viewshards.sources.source import Source, hashed_split
from viewshards.views.points import turned


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

    @override
    def files(self, sample: int) -> dict[str, bytes]:
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
