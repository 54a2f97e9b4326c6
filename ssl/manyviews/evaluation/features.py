"""Frozen features of a split, computed once for all protocols."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoding, views_of
from manyviews.distributed import LOCAL, Gather

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Embed = Callable[[Batch], list[Encoding]]
"""Batch to the encoding of each of its views: `Method.embed`."""


@dataclass
class Features:
    """Detached features of N samples, in the order of their index.

    Attributes:
        views: (V, N, D) float32, one slice a natural view.
        label: (N,) int64, -1 unknown. index: (N,) int64. group: (N,) int64, -1: no known duplicates.
        key: N names. file_name: of each sample the name of its file in the source, empty where it is not known. Of one
            process only.
        shards: what the split holds that they are of, if it is known.
    """

    views: Tensor
    label: Tensor
    index: Tensor
    group: Tensor
    key: list[str] = field(default_factory=list)
    file_name: list[str] = field(default_factory=list)
    shards: Any = None

    def labelled(self) -> Features:
        """Without the samples whose label is unknown."""
        keep = self.label >= 0
        return Features(self.views[:, keep], self.label[keep], self.index[keep], self.group[keep], shards=self.shards)

    def flat(self) -> tuple[Tensor, Tensor]:
        """Each natural view as a sample of its own: (V N, D) features and (V N,) labels."""
        return self.views.flatten(0, 1), self.label.repeat(len(self.views))

    def subset(self, positions: Tensor) -> Features:
        """The samples at these positions, with all their views."""
        return Features(self.views[:, positions], self.label[positions], self.index[positions], self.group[positions])


@torch.no_grad()
def extract(module: nn.Module, embed: Embed, batches: Iterable[Batch], gather: Gather = LOCAL) -> Features:
    """Features of every sample with weight > 0, in eval mode, without autocast, in float32.

    Args:
        module: what is put into eval mode and back, each part as it was.
        embed: batch to encodings.
        batches: un-augmented views, as `prepared` gives them.
        gather: of the ranks that share the batches; all of them get all features.
    """
    views, rest = [], []
    with frozen(module):
        for batch in batches:
            with torch.autocast(views_of(batch)[0].device.type, enabled=False):
                pooled = torch.stack([encoding.pooled.float() for encoding in embed(batch)])
            views.append(pooled.cpu())
            rest.append({name: batch[name].cpu() for name in ("label", "index", "group", "weight")})
            rest[-1] |= {name: batch.get(name, [""] * len(batch["key"])) for name in ("key", "file_name")}
    columns = {name: torch.cat([r[name] for r in rest]) for name in ("label", "index", "group", "weight")}
    stacked = torch.cat(views, 1).transpose(0, 1).contiguous()  # (n, V, D)
    names = {name: [each for r in rest for each in r[name]] for name in ("key", "file_name")}
    if gather.world > 1:
        rows = gather(len(stacked))
        stacked, names = rows.gather(stacked), {}
        columns = {name: rows.gather(column) for name, column in columns.items()}
    keep = torch.nonzero(columns["weight"] > 0)[:, 0]
    if not bool(torch.isfinite(stacked[keep]).all()):
        raise FloatingPointError("features are not finite: the weights have diverged, or the encoder reads padding")
    order = keep[torch.argsort(columns["index"][keep])]
    return Features(
        stacked[order].transpose(0, 1).contiguous(),
        columns["label"][order],
        columns["index"][order],
        columns["group"][order],
        **{name: [each[int(i)] for i in order] for name, each in names.items()},
    )


@torch.no_grad()
def prepared(module: Any, data: Any, split: Any, gather: Gather) -> Generator[Batch]:
    """This rank's un-augmented batches of a split on the module's device, normalised, the module in eval mode.

    Args:
        module: with a `device`. data: a data module with `evaluation_loader`. split: `train` or `val`, or what else
            its loader takes.
        gather: of the ranks that share the split.
    """
    with frozen(module):
        for batch in data.evaluation_loader(split, world=gather.world, rank=gather.rank):
            for problem in batch.get("replaced", ()):
                logger.warning("left out of the evaluation: %s", problem)
            moved = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, module.device, 0), 0)
            with torch.autocast(module.device.type, enabled=False):
                yield moved


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode for all parts, and afterwards each part in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
