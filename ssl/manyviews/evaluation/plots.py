"""Pictures of results, as (H, W, 3) uint8 arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor


def confusion(counts: Tensor, classes: Sequence[str]) -> NDArray[np.uint8]:
    """A confusion matrix, rows (true classes) normalised to 1; numbers are written in up to 20 classes."""
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    side = max(4.0, 0.45 * len(share) if len(share) <= 20 else 9.0)
    figure = Figure(figsize=(side + 1.5, side + 1), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(share) <= 20:
        names = [classes[i] if i < len(classes) else str(i) for i in range(len(share))]
        axes.set_xticks(range(len(share)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(share)), names)
        for i in range(len(share)):
            for j in range(len(share)):
                value = share[i, j].item()
                if value >= 0.005:
                    colour = "white" if value > 0.5 else "black"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
