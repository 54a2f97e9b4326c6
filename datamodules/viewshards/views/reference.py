"""The `torchvision` backend: the same draws applied by torchvision on uint8 tensors. Slow; the reference for parity."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from viewshards.decode import Picture
from viewshards.views.augmentation import BRIGHTNESS, CONTRAST, HUE, Augmentation, Draw


def apply(image: Picture, augmentation: Augmentation, draw: Draw) -> Picture:
    """The whole augmentation: (H, W, 3) to (size, size, 3)."""
    size = augmentation.size
    view = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    view = F.resized_crop(view, *draw.box, [size, size], antialias=True)
    if draw.flip:
        view = F.horizontal_flip(view)
    for operation, factor in draw.jitter:
        if operation == BRIGHTNESS:
            view = F.adjust_brightness(view, factor)
        elif operation == CONTRAST:
            view = F.adjust_contrast(view, factor)
        elif operation == HUE:
            view = F.adjust_hue(view, factor)
        else:
            view = F.adjust_saturation(view, factor)
    if draw.grey:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if draw.sigma:
        view = F.gaussian_blur(view, [augmentation.kernel] * 2, [draw.sigma] * 2)
    if draw.solarize:
        view = F.solarize(view, 128)
    return view.permute(1, 2, 0).numpy()  # type: ignore[no-any-return]
