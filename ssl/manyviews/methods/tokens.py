"""What methods that compare patches and words have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from manyviews import distributed
from manyviews.backbones import Encoding
from manyviews.methods.imagetext import ADAMW, ImageText
from manyviews.methods.method import Batch
from manyviews.objectives import Objective
from manyviews.optim import OptimizerFactory, Schedule
from manyviews.similarity import unit
from manyviews.tokens import masked_mean


class TokenImageText(ImageText):
    """An objective over projected tokens: patches (no class token) and words.

    Args:
        backbone, text_backbone, objective, dim, optimizer, schedule, grad_cache, locked: as in ImageText.
        reduce: patches to fewer tokens, (n, T, dim) to (n, T', dim); None: all patches.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: Objective,
        dim: int = 256,
        reduce: nn.Module | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
    ) -> None:
        super().__init__(
            backbone, text_backbone, objective, dim,
            optimizer=optimizer, schedule=schedule, grad_cache=grad_cache, locked=locked,
        )  # fmt: skip
        self.token_projector = nn.Linear(int(backbone.width), dim, bias=False)  # type: ignore[arg-type]
        self.text_token_projector = nn.Linear(int(text_backbone.width), dim, bias=False)  # type: ignore[arg-type]
        self.reduce: nn.Module | None = reduce

    def patches(self, image: Encoding) -> tuple[Tensor, Tensor]:
        """(n, T, dim) patches in the joint space and their mask."""
        assert image.tokens is not None and image.token_mask is not None
        tokens = self.token_projector(image.tokens[:, image.prefix_tokens :])
        if self.reduce is None:
            return tokens, image.token_mask[:, image.prefix_tokens :]
        fewer = self.reduce(tokens)
        return fewer, torch.ones(fewer.shape[:2], dtype=torch.bool, device=fewer.device)

    def words(self, text: Encoding) -> tuple[Tensor, Tensor]:
        """(n, L, dim) words in the joint space and their mask."""
        assert text.tokens is not None and text.token_mask is not None
        return self.text_token_projector(text.tokens), text.token_mask

    def compare_pairs(  # noqa: D102
        self, images: list[Encoding], texts: list[Encoding], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        (v, mask_v), (t, mask_t) = self.patches(images[0]), self.words(texts[0])
        pair = self.whole(images[0], texts[0], (v, mask_v), (t, mask_t))
        context = {**self.context(batch), "tokens": [v, t], "masks": [mask_v, mask_t]}
        return self.objective(pair, gather=distributed.current(), **context), pair

    def whole(
        self, image: Encoding, text: Encoding, patches: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """What stands for the whole image and the whole text: here the means of their unit tokens."""
        return [masked_mean(unit(tokens), mask) for tokens, mask in (patches, words)]

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        tokens, mask = self.patches(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        tokens, mask = self.words(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)


def patches_of(features: Encoding) -> tuple[Tensor, Tensor]:
    """Tokens and mask without the prefix tokens."""
    assert features.tokens is not None and features.token_mask is not None
    return features.tokens[:, features.prefix_tokens :], features.token_mask[:, features.prefix_tokens :]


def tokens_of(joint: Encoding) -> tuple[Tensor, Tensor]:
    """Tokens and mask."""
    assert joint.tokens is not None and joint.token_mask is not None
    return joint.tokens, joint.token_mask


def with_pooled(joint: Encoding, pooled: Tensor) -> Encoding:
    """The same tokens, with other pooled features, brought to length 1."""
    return Encoding(unit(pooled), joint.tokens, joint.token_mask)
