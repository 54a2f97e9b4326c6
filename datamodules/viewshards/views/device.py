"""The `device` backend: crop and flip were done on the CPU; colour, blur and solarisation for a whole batch at once.

The numbers come with the batch, one row a view, drawn by the sample's own generator: nothing depends on the rank, the
device or the batch a sample fell into.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from viewshards.views.augmentation import BRIGHTNESS, CONTRAST, HUE, Augmentation, Draw

NONE = -1.0
COLUMNS = 11  # four (operation, factor) pairs, grey, sigma, solarize


def row(draw: Draw) -> list[float]:
    """A draw as the COLUMNS numbers that `colour` takes."""
    pairs = [*draw.jitter, *[(NONE, 0.0)] * (4 - len(draw.jitter))]
    return [x for pair in pairs for x in pair] + [float(draw.grey), draw.sigma, float(draw.solarize)]


def colour(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Applies the colour part of a batch's draws.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        draws: (B, COLUMNS) float32, a `row` each.
        augmentation: for the blur's kernel.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    draws = draws.to(images.device)
    for step in range(4):
        operation, factor = draws[:, 2 * step], draws[:, 2 * step + 1].view(-1, 1, 1, 1)
        changed = images
        for number, change in ((BRIGHTNESS, _brightness), (CONTRAST, _contrast), (HUE, _hue), (2, _saturation)):
            changed = torch.where((operation == number).view(-1, 1, 1, 1), change(images, factor), changed)
        images = changed
    grey, sigma, solarize = (draws[:, column].view(-1, 1, 1, 1) for column in (8, 9, 10))
    images = torch.where(grey > 0, _grey(images), images)
    images = torch.where(sigma > 0, _blur(images, draws[:, 9].clamp(min=1e-3), augmentation.kernel), images)
    return torch.where((solarize > 0) & (images >= 128 / 255), 1 - images, images)


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + other * (1 - factor)).clamp(0, 1)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, _grey(x).mean((2, 3), keepdim=True), factor)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, _grey(x), factor)


def _hue(x: Tensor, factor: Tensor) -> Tensor:
    high, low = x.amax(1), x.amin(1)
    spread = (high - low).clamp(min=1e-8)
    r, g, b = x.unbind(1)
    sector = torch.where(
        high == r, (g - b) / spread, torch.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread)
    )
    hue = (sector / 6 + factor.view(-1, 1, 1)) % 1.0
    # HSV back to RGB: each channel is the value minus the chroma times a trapezoid of the hue.
    place = torch.stack([hue * 6 + 5, hue * 6 + 3, hue * 6 + 1], 1) % 6
    return high[:, None] - (high - low)[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def _blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    batch, channels, height, width = x.shape
    half = kernel // 2
    places = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-0.5 * (places / sigma[:, None].to(x.dtype)) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(x, [half] * 4, mode="reflect").reshape(1, batch * channels, height + 2 * half, width + 2 * half)
    x = F.conv2d(x, weight[:, None, None, :], groups=batch * channels)
    x = F.conv2d(x, weight[:, None, :, None], groups=batch * channels)
    return x.view(batch, channels, height, width)
