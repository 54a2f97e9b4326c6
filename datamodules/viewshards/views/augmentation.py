"""What an augmentation is: a distribution over concrete changes, drawn with a sample's own generator.

Drawing and applying are apart. `Augmentation.draw` fixes every number of one view in a `Draw`; a backend (`cv2`,
`torchvision`, `device`) only applies it. So the backends are compared on equal draws, and the colour that the device
adds is a function of (seed, epoch, sample) like everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Draw:
    """One concrete augmentation.

    Attributes:
        box: top, left, height, width of the crop, in source pixels.
        flip: left-right.
        jitter: (operation, factor) in the order they are applied; hue's factor is a shift in turns.
        grey: to grey scale. sigma: of the Gaussian blur in pixels, 0 for none. solarize: invert from 128 on.
    """

    box: tuple[int, int, int, int]
    flip: bool = False
    jitter: tuple[tuple[int, float], ...] = ()
    grey: bool = False
    sigma: float = 0.0
    solarize: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, flip, colour jitter, grey, blur and solarisation, in that order.

    Attributes:
        size: side of the view in pixels.
        scale: range of the crop's share of the image's area. ratio: range of its aspect ratio.
        flip: probability of a left-right flip.
        jitter: strengths of brightness, contrast, saturation and hue, with probability `jitter_p`, in random order:
            factors from [max(0, 1 - s), 1 + s], hue shifts from [-s, s] turns.
        grey: probability of grey scale.
        blur: probability of a Gaussian blur with sigma from `sigma` and a kernel of 10 % of the side.
        solarize: probability of solarisation at 128.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        for name in ("flip", "jitter_p", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {self.scale}")
        if self.jitter[HUE] > 0.5:
            raise ValueError(f"a hue strength is at most 0.5 turns, got {self.jitter[HUE]}")

    @property
    def kernel(self) -> int:
        """Side of the blur's kernel in pixels: 10 % of the view's, odd."""
        return max(3, self.size // 10 // 2 * 2 + 1)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Draw:
        """One augmentation of an image of this height and width (in pixels)."""
        box = self._box(rng, height, width)
        flip = rng.random() < self.flip
        jitter: tuple[tuple[int, float], ...] = ()
        if any(self.jitter) and rng.random() < self.jitter_p:
            factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in self.jitter[:HUE]]
            factors.append(rng.uniform(-self.jitter[HUE], self.jitter[HUE]))
            jitter = tuple((int(k), float(factors[k])) for k in rng.permutation(4) if self.jitter[k])
        grey = rng.random() < self.grey
        sigma = float(rng.uniform(*self.sigma)) if rng.random() < self.blur else 0.0
        return Draw(box, flip, jitter, grey, sigma, rng.random() < self.solarize)

    def _box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        # As torchvision: the largest central crop whose aspect ratio is allowed.
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w
