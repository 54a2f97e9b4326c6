"""Pictures of a run: (H, W, 3) uint8 arrays."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyviews.similarity import unit

Picture = NDArray[np.uint8]


def to_pixels(images: Tensor, data: Any) -> NDArray[np.uint8]:
    """A view of a batch, such as images (B, 3, H, W), to (B, H, W, 3) bytes; `data` is the data module it is from."""
    if data is not None and hasattr(data, "as_pictures"):
        images = data.as_pictures(images)
    else:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp(min=1e-8)
    pixels: NDArray[np.uint8] = (images.detach().float().cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def grid(rows: list[list[Picture]], border: int = 2) -> Picture:
    """Pictures of any sizes in rows, on white."""
    height = max(p.shape[0] for row in rows for p in row) + border
    width = max(p.shape[1] for row in rows for p in row) + border
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * height, columns * width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, p in enumerate(row):
            sheet[r * height : r * height + p.shape[0], c * width : c * width + p.shape[1]] = p
    return sheet


def views(images: list[Tensor], data: Any, samples: int = 8) -> Picture:
    """The augmented views of a batch: a row a sample, a column a view."""
    columns = [to_pixels(view[:samples], data) for view in images]
    return grid([[column[i] for column in columns] for i in range(len(columns[0]))])


def similarity(projections: Tensor, samples: int = 64) -> Picture:
    """Cosines of view 0 (rows) and view 1 (columns) of a batch; a healthy run shows a bright diagonal."""
    s = unit(projections[0, :samples]) @ unit(projections[1, :samples]).T
    coloured = matplotlib.colormaps["viridis"](((s + 1) / 2).clamp(0, 1).cpu().numpy())
    small = np.round(coloured[..., :3] * 255).astype(np.uint8)
    return np.repeat(np.repeat(small, 4, 0), 4, 1)


def neighbours(queries: Tensor, gallery: Tensor, query_pixels: Picture, gallery_pixels: Picture, k: int = 6) -> Picture:
    """Each query (first column) and its k nearest gallery items by cosine.

    Args:
        queries: (q, D). gallery: (g, D). query_pixels: (q, H, W, 3). gallery_pixels: (g, H, W, 3). k: neighbours.
    """
    nearest = torch.topk(unit(queries) @ unit(gallery).T, min(k, len(gallery)), 1).indices.cpu().numpy()
    gap = np.full((query_pixels.shape[1], 4, 3), 255, np.uint8)
    return grid([[query_pixels[i], gap, *(gallery_pixels[j] for j in row)] for i, row in enumerate(nearest)])


def neighbours_in_batch(images: Tensor, features: Tensor, data: Any, samples: int = 8) -> Picture:
    """The nearest other images of the batch, for its first samples."""
    pixels = to_pixels(images[:256], data)
    u = unit(features[: len(pixels)])
    s = (u @ u.T).fill_diagonal_(-2)
    nearest = torch.topk(s[:samples], min(6, len(s) - 1), 1).indices.cpu().numpy()
    return grid([[pixels[i], *(pixels[j] for j in row)] for i, row in enumerate(nearest)])
