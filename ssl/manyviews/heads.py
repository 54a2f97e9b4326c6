"""What stands between a backbone and an objective."""

from __future__ import annotations

from torch import nn


def projector(width: int, hidden: int, out: int, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """An MLP head: (Linear - BatchNorm - ReLU) x (layers - 1), Linear, and on demand a final BatchNorm.

    Args:
        width: of the features that come in.
        hidden: width of the hidden layers. out: width of the embedding.
        layers: number of linear layers, 1 or more.
        last_norm: BatchNorm after the last linear layer, which then has no bias (the code of SimCLR and MV-DHEL).
    """
    if layers < 1:
        raise ValueError(f"a projector has at least one layer, got {layers}")
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        width = hidden
    parts.append(nn.Linear(width, out, bias=not last_norm))
    if last_norm:
        parts.append(nn.BatchNorm1d(out))
    return nn.Sequential(*parts)
