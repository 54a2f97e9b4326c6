"""FILIP (Yao et al., ICLR 2022) and Wukong (Gu et al., NeurIPS 2022): late interaction of patches and words."""

from __future__ import annotations

from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import Encoding
from manyviews.heads import LogitScale, TokenLearner
from manyviews.methods.imagetext import OPEN_CLIP
from manyviews.methods.tokens import TokenImageText, tokens_of
from manyviews.objectives.clip import Positives
from manyviews.optim import Training
from manyviews.tokens import late_interaction


class FILIP(TokenImageText):
    """FILIP (Yao et al., ICLR 2022): token-wise late interaction.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        dim: of the joint space of tokens; paper 256.
        logit_scale: s; default 1/0.07, learned, kept in [1, 100].
        keep: share of tokens by which an item is seen by others, see the objective.
        reduce: patches to fewer tokens (Wukong: `manyviews.heads.TokenLearner`); None: all.
        training: paper: LAMB; here as CLIP's.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        logit_scale: LogitScale | None = None,
        keep: float = 1.0,
        reduce: nn.Module | None = None,
        training: Training = OPEN_CLIP,
        positives: Positives = "own",
    ) -> None:
        objective = objectives.FILIP(logit_scale, keep, positives)
        super().__init__(backbone, text_backbone, objective, dim, reduce, training)
        # Only tokens are compared: the maps of pooled features would never get a gradient.
        self.projector = self.text_projector = nn.Identity()

    def similarity(self, images: Encoding, texts: Encoding) -> tuple[Tensor, Tensor]:
        """(B, M) each: mean over patches of their best word, and mean over words of their best patch."""
        (v, mask_v), (t, mask_t) = tokens_of(images), tokens_of(texts)
        return late_interaction(v, t, mask_v, mask_t), late_interaction(t, v, mask_t, mask_v).T


class Wukong(FILIP):
    """Wukong (Gu et al., NeurIPS 2022): a locked image tower, FILIP on a reduced set of visual tokens.

    Args:
        backbone: a pretrained image tower. text_backbone: text tower.
        dim: of the joint space; paper 256. tokens: n', how many visual tokens are left; paper 12 (B) and 24 (L).
        groups: of the reducing convolutions; paper 8.
        logit_scale, training: as in FILIP.
        positives: as in CLIP.
    """

    locked = ("backbone",)

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        tokens: int = 12,
        groups: int = 8,
        logit_scale: LogitScale | None = None,
        training: Training = OPEN_CLIP,
        positives: Positives = "own",
    ) -> None:
        reduce = TokenLearner(dim, tokens, groups)
        super().__init__(backbone, text_backbone, dim, logit_scale, 1.0, reduce, training, positives)
