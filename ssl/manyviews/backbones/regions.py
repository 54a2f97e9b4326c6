"""Region-centric features (after DITO, Kim et al., 2023): shifted windows, and the maximum over random boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from manyviews.backbones.encoding import Encoding, width_of


class ShiftedWindows(nn.Module):
    """A backbone on the image and on a copy rolled by half a window, rolled back and averaged.

    Features of window attention then depend less on where the borders of windows fall.

    Args:
        backbone: images to an Encoding with one token a patch of a square grid.
        window: side of a window in pixels; the roll is half of it, a whole number of patches.

    Attributes:
        width: of the backbone.
    """

    def __init__(self, backbone: nn.Module, window: int) -> None:
        super().__init__()
        self.backbone, self.window = backbone, window
        self.width = width_of(backbone)

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) to an Encoding of the same form; without prefix tokens."""
        half = self.window // 2
        plain, rolled = (grid(self.backbone(x)) for x in (images, images.roll((-half, -half), (2, 3))))
        patch = images.shape[2] // plain.shape[2]
        if half % patch:
            raise ValueError(f"half a window ({half} px) must be a multiple of the patch ({patch} px)")
        places = (plain + rolled.roll((half // patch, half // patch), (2, 3))) / 2
        tokens = places.flatten(2).mT
        return Encoding(tokens.mean(1), tokens)


class RandomBoxes(nn.Module):
    """The maximum over the features of randomly sampled boxes as the image's features; in evaluation its own pooling.

    Detector heads can so be trained from captions. Boxes come from torch's generator.

    Args:
        backbone: images to an Encoding with one token a patch of a square grid.
        head: box features (B * boxes, width, size, size) to (B * boxes, D); None: their mean.
        boxes: of an image. size: side of the aligned grid of a box. smallest: side of a box, as a share of the image's.
        width: D of what the head gives; default the backbone's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module | None = None,
        boxes: int = 8,
        size: int = 3,
        smallest: float = 0.2,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.boxes, self.size, self.smallest = backbone, boxes, size, smallest
        self.head: nn.Module = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width = width or width_of(backbone)

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) to an Encoding."""
        places = grid(self.backbone(images))
        tokens = places.flatten(2).mT
        if self.training:
            size = torch.rand(len(images), self.boxes, 2, device=images.device) * (1 - self.smallest) + self.smallest
            corner = torch.rand_like(size) * (1 - size)
        else:  # the whole image
            corner = torch.zeros(len(images), 1, 2, device=images.device)
            size = torch.ones_like(corner)
        return Encoding(self.pooled(places, torch.cat([corner, corner + size], 2)), tokens)

    def pooled(self, places: Tensor, boxes: Tensor) -> Tensor:
        """(B, D): the maximum over boxes (B, k, 4), x and y of two corners as shares of the side."""
        scaled = boxes * boxes.new_tensor([places.shape[3], places.shape[2]] * 2)
        aligned: Tensor = roi_align(places, list(scaled.to(places.dtype)), self.size, aligned=True)
        each = self.head(aligned).view(*boxes.shape[:2], -1)
        highest: Tensor = each.amax(1)
        return highest


def grid(encoding: Encoding) -> Tensor:
    """(B, D, h, w): the patches of an Encoding in their places.

    Raises:
        ValueError: without tokens, or if they are no square grid.
    """
    tokens = encoding.tokens
    if tokens is None:
        raise ValueError("regions need a backbone that gives one token a patch")
    tokens = tokens[:, encoding.prefix_tokens :]
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens are no square grid")
    places: Tensor = tokens.mT.unflatten(2, (side, side))
    return places
