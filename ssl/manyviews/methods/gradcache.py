"""GradCache (Gao et al., 2021): the exact gradient of a large batch in the memory of a small one.

A batch-coupled loss needs the features of all images at once, but only their features. So the backbone runs in chunks
without a graph, the loss is taken on all features and gives their gradient, and then each chunk runs again with a graph
and receives its part of it: one more forward, exact. Projector and objective see the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.internals import BatchNorm

RngState = tuple[Tensor, Tensor | None]


Features = tuple[Tensor, ...]


class GradCache:
    """One batch on its way through an encoder.

    Args:
        encode: images (b, ...) to one or more tensors of features (b, ...); those that are no floats are constants.
        parameters: those that `encode` trains.
        chunk: images at a time.
        context: the context `encode` runs in (autocast).
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Features],
        parameters: list[nn.Parameter],
        chunk: int,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.encode, self.parameters, self.chunk, self.context = encode, parameters, chunk, context

    def forward(self, images: list[Tensor]) -> list[Features]:
        """Features of each view, as leaves whose gradient `backward` will use."""
        self.chunks = [chunk for view in images for chunk in view.split(self.chunk)]
        self.states: list[RngState] = []
        self.features: list[Features] = []
        with torch.no_grad():
            for chunk in self.chunks:
                self.states.append(_rng_state(chunk))
                found = self.encode(chunk)
                self.features.append(tuple(x.requires_grad_() if x.is_floating_point() else x for x in found))
        per_view = [-(-len(view) // self.chunk) for view in images]
        starts = [sum(per_view[:v]) for v in range(len(images))]
        return [
            tuple(torch.cat(column) for column in zip(*self.features[s : s + n], strict=True))
            for s, n in zip(starts, per_view, strict=True)
        ]

    def backward(self) -> None:
        """Runs each chunk again, with the random numbers of its first run, and sends its gradient through.

        All but the last chunk are summed outside of the parameters' `.grad`, so that DDP's hooks see one backward
        and reduce once.
        """
        sums: list[Tensor | None] = [None] * len(self.parameters)
        after = _rng_state(self.chunks[0])
        last = len(self.chunks) - 1
        for number, (chunk, state, features) in enumerate(zip(self.chunks, self.states, self.features, strict=True)):
            _set_rng_state(state, chunk)
            with self.context():
                found = self.encode(chunk)
            used = [(x, feature.grad) for x, feature in zip(found, features, strict=True) if feature.grad is not None]
            again, incoming = [x for x, _ in used], [g for _, g in used]
            if number < last:
                grads = torch.autograd.grad(again, self.parameters, incoming, allow_unused=True)
                sums = [a if g is None else g if a is None else a.add_(g) for a, g in zip(sums, grads, strict=True)]
            else:
                for parameter, total in zip(self.parameters, sums, strict=True):
                    if total is not None:
                        parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
                torch.autograd.backward(again, incoming)
        _set_rng_state(after, self.chunks[0])
        del self.chunks, self.features, self.states


def check_exact(backbone: nn.Module) -> None:
    """Refuses a backbone whose output for one image depends on the chunk it is in."""
    norms = [name for name, module in backbone.named_modules() if isinstance(module, BatchNorm)]
    if norms:
        raise ValueError(
            f"grad_cache is exact only if an image's features do not depend on its chunk, but the backbone has "
            f"{len(norms)} BatchNorm layers ({norms[0]}, ...): use a backbone with LayerNorm or GroupNorm "
            "(a ViT, ConvNeXt, resnet50_gn), or a batch that fits without grad_cache"
        )


def _rng_state(like: Tensor) -> RngState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


def _set_rng_state(state: RngState, like: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
