"""What protocols in the joint space of images and texts have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.backbones import Encoding
from manyviews.evaluation.features import Features, frozen
from manyviews.evaluation.protocol import Protocol, Result

CHUNK = 256
"""Texts, and rows of scores, at a time; no result depends on it."""


class JointProtocol(Protocol):
    """Asks a method for `embed_image`, `embed_text` and `similarity`, and a data module for `tokens`."""

    labels: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    """Whether samples must have texts."""

    @abstractmethod
    def measure(self, module: Any, data: Any) -> Result:
        """The numbers of the val split; called on every rank, the same result on each."""

    @override
    def ready(self, module: Any, data: Any) -> None:
        super().ready(module, data)
        if not hasattr(module, "embed_image"):
            raise ValueError(f"{type(self).__name__} needs a method with texts, not {type(module).__name__}")

    def evaluate(self, train: Features, val: Features) -> Result:
        """Frozen features are not enough here."""
        raise TypeError(f"{type(self).__name__} needs the method's towers: call measure(method, data)")

    @override
    def check(self, batch: dict[str, Any]) -> None:
        super().check(batch)
        if self.texts and "text" not in batch:
            raise ValueError(f"{type(self).__name__} needs texts: set data.text to viewshards.Captions")


def finite(scores: Tensor) -> Tensor:
    """The scores, if they are numbers: nothing compares with NaN, so that it would count as the best.

    Raises:
        FloatingPointError: if they are not.
    """
    if not bool(torch.isfinite(scores).all()):
        raise FloatingPointError("scores of images and texts are not finite: the weights have diverged")
    return scores


@torch.no_grad()
def embed_texts(module: Any, data: Any, texts: list[str]) -> Encoding:
    """The texts in the joint space, by the tokenizer of training."""
    with frozen(module):
        ids = [data.tokens(texts[i : i + CHUNK]).to(module.device) for i in range(0, len(texts), CHUNK)]
        return Encoding.cat([module.embed_text(part) for part in ids])
