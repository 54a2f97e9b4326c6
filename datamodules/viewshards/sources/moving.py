"""Generated clips with exact trajectories: coloured shapes that move over a textured background that moves too."""

from __future__ import annotations

import io
import json
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from viewshards.order import generator
from viewshards.sources.source import Source, hashed_split
from viewshards.video import Tracks

Thing = tuple[str, str, str]
"""Colour, shape and direction."""


class Moving(Source):
    """700 clips of 8 frames: two shapes that move, over a panning texture, with captions and exact trajectories.

    A caption names colour, shape and direction of both, in either order. Trajectories 1 and 2 are the things, the one
    named first in front, 3 is the background. `cls`: the direction of the first. In `val` (100) stand combinations of
    two things that training never shows.
    """

    name = "moving"
    colours: ClassVar[dict[str, tuple[int, int, int]]] = {
        "red": (220, 50, 50), "green": (60, 180, 75), "blue": (50, 90, 220), "yellow": (245, 210, 40),
    }  # fmt: skip
    kinds = ("circle", "square", "triangle")
    ways: ClassVar[dict[str, tuple[int, int]]] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}

    def __init__(self, train: int = 600, val: int = 100, side: int = 32, frames: int = 8) -> None:
        self.side, self.frames = side, frames
        self.labels = {"cls": list(self.ways)}
        rng = generator(2024, 23)
        self.samples, self.scenes = [], []
        shown: set[str] = set()
        for split, wanted in (("train", train), ("val", val)):
            while wanted:
                scene = self._scene(rng)
                caption = self._captions(scene)[0]
                held_out = hashed_split(" ".join(word for thing in scene for word in thing[:2]), 0.2) == "val"
                if held_out != (split == "val") or (split == "val" and caption in shown):
                    continue
                shown.update(self._captions(scene))  # in val each caption has one right clip
                self.samples.append((f"{split}-{len(self.samples):05d}", split))
                self.scenes.append(scene)
                wanted -= 1

    def _scene(self, rng: np.random.Generator) -> list[Thing]:
        """Two things, different in colour."""
        colours = rng.permutation(list(self.colours))[:2].tolist()
        return [(c, str(rng.choice(self.kinds)), str(rng.choice(list(self.ways)))) for c in colours]

    @staticmethod
    def _captions(things: list[Thing]) -> list[str]:
        said = [f"a {colour} {kind} moving {way}" for colour, kind, way in things]
        return [f"{said[0]} and {said[1]}", f"{said[1]} and {said[0]}"]

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        things = self.scenes[sample]
        rng = generator(2024, 29, sample)
        frames, ids = self._drawn(things, rng)
        buffer = io.BytesIO()
        np.save(buffer, frames, allow_pickle=False)
        captions = self._captions(things)
        return {
            "frames.npy": buffer.getvalue(),
            "traj.npz": Tracks(ids, np.arange(self.frames)).to_bytes(),
            "cls": str(list(self.ways).index(things[0][2])).encode(),
            "txt": captions[0].encode(),
            "json": json.dumps({"captions": captions}).encode(),
        }

    def _drawn(self, things: list[Thing], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        side, pan = self.side, rng.integers(-1, 2, 2)
        large = side + 2 * self.frames
        texture = cv2.resize(rng.integers(80, 176, (large // 4, large // 4, 3), np.uint8), (large, large))
        radius = side * 0.16
        speed = side * 0.5 / self.frames
        starts = []
        for _, _, way in things:
            ahead = np.array(self.ways[way])
            starts.append(np.where(ahead == 0, rng.uniform(radius, side - radius, 2), side / 2 - ahead * side * 0.25))
        frames = np.zeros((self.frames, side, side, 3), np.uint8)
        ids = np.full((self.frames, side, side), len(things) + 1, np.int64)
        for t in range(self.frames):
            y, x = (self.frames + pan * t).tolist()
            frames[t] = texture[y : y + side, x : x + side]
            for number in range(len(things), 0, -1):  # the first in front
                colour, kind, way = things[number - 1]
                centre = starts[number - 1] + np.array(self.ways[way]) * speed * t
                mask = self._mask(kind, centre, radius)
                frames[t][mask] = self.colours[colour]
                ids[t][mask] = number
        return frames, ids

    def _mask(self, kind: str, centre: NDArray[Any], radius: float) -> NDArray[np.bool_]:
        y, x = np.mgrid[: self.side, : self.side] + 0.5 - np.asarray(centre)[:, None, None]
        if kind == "circle":
            inside = y**2 + x**2 < radius**2
        elif kind == "square":
            inside = np.maximum(abs(y), abs(x)) < radius * 0.9
        else:
            inside = (y < radius * 0.8) & (abs(x) < (y + radius) * 0.6)
        return np.asarray(inside, bool)
