"""The view of evaluation of a published model: pixel by pixel what timm, torchvision and open_clip make of it.

But for strips beyond 16:1, whose ends are cut off first where the shorter side is resized.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from viewshards.decode import Picture


def without_ends(image: Picture) -> Picture:
    """The middle of a picture with one side more than 16 times the other: one pixel high, it would become gigabytes."""
    height, width = image.shape[:2]
    side = min(height, width)
    if max(height, width) <= 16 * side:
        return image
    high, wide = (max(0, (length - 16 * side) // 2) for length in (height, width))
    return np.ascontiguousarray(image[high : height - high, wide : width - wide])


INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


class Published:
    """Resized by Pillow, and cut to a square at the centre. No randomness.

    Args:
        size: side in pixels.
        resize: side that is resized to, before the cut; default `size`. timm's crop_pct is size / resize.
        interpolation: `bicubic`, `bilinear`, `nearest` or `lanczos`.
        mode: `shortest`: the shorter side becomes `resize`, what lies beyond the square is cut off; `longest`: the
            longer side does, what is missing is filled; `squash`: both do, whatever the shape was.
        fill: the value of what is filled, 0 to 255.

    Raises:
        ValueError: for an unknown interpolation or mode, or sizes that no square has.
    """

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic",
        mode: Literal["shortest", "longest", "squash"] = "shortest",
        fill: int = 0,
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
        if mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"mode must be 'shortest', 'longest' or 'squash', got {mode!r}")
        self.size, self.resize = size, size if resize is None else resize
        if not 0 < size <= self.resize:
            raise ValueError(f"resize ({self.resize}) must not be smaller than size ({size})")
        self.interpolation, self.mode, self.fill = interpolation, mode, fill

    def __call__(self, image: Picture) -> Picture:
        """(H, W, 3) to (size, size, 3).

        Raises:
            ValueError: for pictures of other bands, which Pillow does not resize.
        """
        if image.shape[2] != 3:
            raise ValueError(f"published views are of three bands, this picture has {image.shape[2]}: use CentreCrop")
        if self.mode == "shortest":
            image = without_ends(image)
        height, width = self._sides(*image.shape[:2])
        picture = Image.fromarray(np.ascontiguousarray(image))
        if picture.size != (width, height):
            picture = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        pixels = np.asarray(picture)
        lacking = [max(0, self.size - side) for side in (height, width)]
        if any(lacking):
            around = [(side // 2, (side + 1) // 2) for side in lacking]
            pixels = np.pad(pixels, [*around, (0, 0)], constant_values=self.fill)
        top, left = (round((side - self.size) / 2.0) for side in pixels.shape[:2])
        return pixels[top : top + self.size, left : left + self.size]

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, rounded as the others do."""
        if self.mode == "squash":
            return self.resize, self.resize
        if self.mode == "longest":
            ratio = max(height, width) / self.resize
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        side = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, side) if height <= width else (side, self.resize)
