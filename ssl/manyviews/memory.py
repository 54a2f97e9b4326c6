"""Embeddings that outlive their batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows


class Queue(nn.Module):
    """The last `size` embeddings of all ranks, first in, first out; part of the checkpoint, the same on every rank.

    It starts full of random directions, as in MoCo.

    Args:
        size: embeddings held. Any size: a push wraps around.
        dim: D of an embedding.

    Attributes:
        items: (size, D) unit rows. pushed: how many embeddings ever went in.
    """

    items: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("items", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.items)

    @torch.no_grad()
    def push(self, z: Tensor, rows: Rows) -> Tensor:
        """Replaces the oldest entries by the unit rows `z` (m, D) of all ranks. Returns the places written to."""
        new = rows.gather(z)[-len(self) :].to(self.items.dtype)
        places = (self.pushed + torch.arange(len(new), device=new.device)) % len(self)
        self.items[places] = new
        self.pushed += len(new)
        return places

    def filled(self) -> Tensor:
        """Share of the entries that are embeddings, not the random start."""
        return (self.pushed / len(self)).clamp(max=1.0)


def recall(table: Tensor, index: Tensor) -> Tensor:
    """`table` (samples, ...) at `index` (n,).

    Raises:
        ValueError: if an index is outside the table.
    """
    if index.device.type == "cpu" and int(index.max()) >= len(table):  # a GPU would have to be waited for
        raise ValueError(
            f"sample index {int(index.max())}, but the objective was made for samples={len(table)}: set it to the "
            "size of the training set (viewshards inspect shows it)"
        )
    return table[index]


@torch.no_grad()
def remember(table: Tensor, index: Tensor, values: Tensor, rows: Rows) -> None:
    """Writes `values` (n, ...) of all ranks into `table` (samples, ...) at `index` (n,), on every rank alike."""
    table[rows.gather(index)] = rows.gather(values).to(table.dtype)
