"""The `cv2` backend: every operation on bytes, in OpenCV (and torch where that is faster)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from viewshards.decode import Picture
from viewshards.views.augmentation import BRIGHTNESS, CONTRAST, HUE, Augmentation, Draw

LEVELS = np.arange(256, dtype=np.float32)


def geometry(image: Picture, augmentation: Augmentation, draw: Draw) -> Picture:
    """Crop, resize and flip: (size, size, C)."""
    top, left, height, width = draw.box
    view = resize(image[top : top + height, left : left + width], augmentation.size, augmentation.size)
    return _bands(cv2.flip(view, 1), image) if draw.flip else view


def apply(image: Picture, augmentation: Augmentation, draw: Draw) -> Picture:
    """The whole augmentation: (H, W, C) to (size, size, C); colour is of pictures with three bands.

    Raises:
        ValueError: for jitter or grey of other pictures.
    """
    view = geometry(image, augmentation, draw)
    if image.shape[2] != 3 and (draw.jitter or draw.grey):
        raise ValueError(
            f"jitter and grey are of pictures with three bands, this one has {image.shape[2]}: set them to 0"
        )
    for operation, factor in draw.jitter:
        view = _jitter(view, operation, factor)
    if draw.grey:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if draw.sigma:
        # Beyond 4 sigma the weights round to 0 in bytes: a narrower kernel gives the same picture faster.
        kernel = min(augmentation.kernel, 2 * math.ceil(4 * draw.sigma) + 1)
        view = _bands(cv2.GaussianBlur(view, (kernel, kernel), draw.sigma, borderType=cv2.BORDER_REFLECT_101), image)
    if draw.solarize:
        view = _bands(cv2.LUT(view, np.where(LEVELS < 128, LEVELS, 255 - LEVELS).astype(np.uint8)), image)
    return view


def _bands(view: Picture, like: Picture) -> Picture:
    """With the axis of the bands, which OpenCV leaves out where there is one."""
    return view.reshape(*view.shape[:2], like.shape[2])


def resize(image: Picture, height: int, width: int) -> Picture:
    """Bilinear, antialiased where it shrinks: torch's byte kernel, twice as fast there as OpenCV's area averaging."""
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] <= height and image.shape[1] <= width:
        return _bands(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), image)
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    small = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return _bands(cv2.merge(list(small[0].numpy())), image)  # planes to pixels, ten times as fast as a strided copy


def _jitter(view: Picture, operation: int, factor: float) -> Picture:
    if operation == BRIGHTNESS:
        return cv2.LUT(view, _levels(LEVELS * factor))
    if operation == CONTRAST:
        mean = cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0]
        return cv2.LUT(view, _levels(LEVELS * factor + mean * (1 - factor)))
    if operation == HUE:
        hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(factor * 255) % 256)  # wraps round, as hue does
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    grey = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(view, factor, grey, 1 - factor, 0)


def _levels(values: NDArray[np.float32]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def shown(image: Picture) -> Picture:
    """(H, W, 3) of any number of bands, to look at: one grey, of more the first three."""
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.concatenate([image, np.zeros_like(image[..., :1])], 2) if image.shape[2] == 2 else image[..., :3].copy()
