"""FDT (Chen et al., "Revisiting Multimodal Representation in Contrastive Learning", CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import POSITIVES, Positives, contrast
from manyviews.objectives.objective import Objective, choice, positive
from manyviews.similarity import full_precision


class FDT(Objective):
    r"""Image and text as sparse mixtures of the same finite discrete tokens, which are what is contrasted.

    .. math:: a_k = \max_n q(x_n) \cdot c_k / (\sqrt{D}\, T), \quad w = \mathrm{sparsemax}(a), \quad
              z = \sum_k w_k c_k, \quad L = \mathrm{CLIP}(z_I, z_T)

    with a query network q for each modality and codes c that are keys and values alike.

    Args:
        widths: of image tokens and of text tokens.
        codes: K. dim: D of a code.
        temperature: T. A thousand in the paper with K = 16384; K times the logits' deviation over T should be 10 to 30.
        pool: over tokens: `max`, or `mean`.
        padding: `out`: padding takes no part; `zero`: it counts as a token that fits every code by 0 (authors' code).
        scale: s of CLIP; default e^3, in [e^3, 100].
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(
        self,
        widths: tuple[int, int] = (768, 512),
        codes: int = 16384,
        dim: int = 512,
        temperature: float = 1000.0,
        pool: Literal["max", "mean"] = "max",
        padding: Literal["out", "zero"] = "out",
        scale: LogitScale | None = None,
        positives: Positives = "own",
    ) -> None:
        super().__init__()
        self.positives = choice("positives", positives, POSITIVES)
        self.temperature, self.pool = positive("temperature", temperature), choice("pool", pool, ("max", "mean"))
        self.padding = choice("padding", padding, ("out", "zero"))
        self.codes = nn.Parameter(torch.randn(codes, dim))
        self.queries = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(w), nn.Linear(w, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim))
            for w in widths
        )
        self.scale = scale or LogitScale(math.exp(3), (math.exp(3), 100.0))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        tokens: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`tokens`: (n, T, w) of images and (n, L, w') of texts, not normalised; `masks`. `views` take no part."""
        if tokens is None or len(tokens) != 2:
            raise ValueError("FDT needs tokens=[images (n, T, w), texts (n, L, w')]")
        weights = [
            self.weights(full_precision(x), None if masks is None else masks[m], m) for m, x in enumerate(tokens)
        ]
        a, b = (F.normalize(w @ full_precision(self.codes), dim=1) for w in weights)
        s = self.scale()
        used = rows.sum((torch.cat(weights) > 0).sum(0).to(a.dtype)) > 0
        support = torch.cat([(w > 0).sum(1, keepdim=True) for w in weights], 1).to(a.dtype)
        self.diagnostics = {
            "logit_scale": s.detach(), "codes_used": used.float().mean(), "codes_a_sample": rows.mean(support),
        }  # fmt: skip
        return contrast(s * a, b, rows, group, float(s.detach()), self.positives)

    def weights(self, tokens: Tensor, mask: Tensor | None, modality: int) -> Tensor:
        """(n, K): how much of each code an image (modality 0) or a text (1) holds; rows sum to 1, most are 0."""
        fit = self.queries[modality](tokens) @ full_precision(self.codes).T / math.sqrt(self.codes.shape[1])
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.pool == "mean":
            many = mask.sum(1).clamp(min=1)[:, None] if self.padding == "out" else mask.shape[1]
            pooled = (fit * mask[..., None]).sum(1) / many
        else:
            pooled = fit.masked_fill(~mask[..., None], -math.inf if self.padding == "out" else 0.0).amax(1)
            pooled = torch.where(torch.isfinite(pooled), pooled, 0)  # a text without any token
        return sparsemax(pooled / self.temperature)

    def embed(self, tokens: Tensor, mask: Tensor | None, modality: int) -> Tensor:
        """(n, D): what is contrasted, of length 1."""
        return F.normalize(self.weights(full_precision(tokens), mask, modality) @ full_precision(self.codes), dim=1)


def sparsemax(a: Tensor) -> Tensor:
    """The nearest point of the simplex to each row of `a` (Martins and Astudillo, ICML 2016); many entries are 0."""
    a = a - a.amax(-1, keepdim=True)  # the same point, and sums that keep their digits
    ordered = a.sort(dim=-1, descending=True).values
    sums, number = ordered.cumsum(-1), torch.arange(1, a.shape[-1] + 1, dtype=a.dtype, device=a.device)
    support = (1 + number * ordered > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (a - threshold).relu()
