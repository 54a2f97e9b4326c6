"""What methods that compare patches and words have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from manyviews.backbones import Encoding, width_of
from manyviews.methods.imagetext import OPEN_CLIP, ImageText
from manyviews.methods.method import Batch, Step
from manyviews.objectives import Objective
from manyviews.optim import Training
from manyviews.similarity import unit
from manyviews.tokens import masked_mean


class TokenImageText(ImageText):
    """An objective over projected tokens: patches (no class token) and words.

    Args:
        backbone, text_backbone, objective, dim, training: as in ImageText.
        reduce: patches to fewer tokens, (n, T, dim) to (n, T', dim); None: all patches.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: Objective,
        dim: int = 256,
        reduce: nn.Module | None = None,
        training: Training = OPEN_CLIP,
    ) -> None:
        super().__init__(backbone, text_backbone, objective, dim, training=training)
        self.token_projector = nn.Linear(width_of(backbone), dim, bias=False)
        self.text_token_projector = nn.Linear(width_of(text_backbone), dim, bias=False)
        self.reduce: nn.Module | None = reduce

    def patches(self, image: Encoding) -> tuple[Tensor, Tensor]:
        """(n, T, dim) patches in the joint space and their mask."""
        tokens, mask = image.patches()
        tokens = self.token_projector(tokens)
        if self.reduce is None:
            return tokens, mask
        fewer = self.reduce(tokens)
        return fewer, torch.ones(fewer.shape[:2], dtype=torch.bool, device=fewer.device)

    def words(self, text: Encoding) -> tuple[Tensor, Tensor]:
        """(n, L, dim) words in the joint space and their mask."""
        tokens, mask = text.patches()
        return self.text_token_projector(tokens), mask

    def step(self, batch: Batch) -> Step:
        """Patches and words of each pair, and what stands for the whole image and the whole text."""
        images, texts = self.towers(batch, tokens=True)
        (v, mask_v), (t, mask_t) = self.patches(images[0]), self.words(texts[0])
        pair = self.whole(images[0], texts[0], (v, mask_v), (t, mask_t))
        context = {**self.context(batch), "tokens": [v, t], "masks": [mask_v, mask_t]}
        return Step(self.objective(pair, **context), images, pair)

    def whole(
        self, image: Encoding, text: Encoding, patches: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """What stands for the whole image and the whole text: here the means of their unit tokens."""
        return [masked_mean(unit(tokens), mask) for tokens, mask in (patches, words)]

    @override
    def joint_image(self, features: Encoding) -> Encoding:
        tokens, mask = self.patches(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)

    @override
    def joint_text(self, features: Encoding) -> Encoding:
        tokens, mask = self.words(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)


def tokens_of(joint: Encoding) -> tuple[Tensor, Tensor]:
    """Tokens and mask."""
    assert joint.tokens is not None and joint.token_mask is not None
    return joint.tokens, joint.token_mask


def with_pooled(joint: Encoding, pooled: Tensor) -> Encoding:
    """The same tokens, with other pooled features, brought to length 1."""
    return Encoding(unit(pooled), joint.tokens, joint.token_mask)
