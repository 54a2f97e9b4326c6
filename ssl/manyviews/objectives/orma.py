"""Optimal-transport alignment of tokens, after ORMA (BIBM 2024); the equations are derived from its abstract."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import POSITIVES, Positives, contrast, pick_own
from manyviews.objectives.filip import pair_of_tokens
from manyviews.objectives.objective import Objective, choice, exactly_two, positive
from manyviews.similarity import unit
from manyviews.tokens import transported


class ORMA(Objective):
    r"""Three scales: the whole pair; words merged into multi-tokens by transport to patches; the transport cost.

    .. math:: L = L_{global} + w_1 L_{multi} + w_2 L_{token}, \quad
              P = \arg\min \langle P, C \rangle - \epsilon H(P), \quad C = 1 - T R^\top

    each a symmetric InfoNCE with its own learned scale: of the global embeddings; of mean_j cos(sum_i P_ij T_i, R_j);
    of -<P, C>. Softer than FILIP, where each row is free and columns are not bounded.

    Args:
        weights: w1 and w2. epsilon: of the transport's entropy.
        detach: no gradient through the plan. tolerance: of the plan's column sums, relative.
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(
        self,
        weights: tuple[float, float] = (1.0, 1.0),
        epsilon: float = 0.5,
        detach: bool = True,
        tolerance: float = 1e-4,
        positives: Positives = "own",
    ) -> None:
        super().__init__()
        self.positives = choice("positives", positives, POSITIVES)
        self.weights, self.epsilon, self.detach = weights, positive("epsilon", epsilon), detach
        self.tolerance = positive("tolerance", tolerance)
        self.scales = nn.ModuleList(LogitScale() for _ in range(3))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        tokens: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`views`: global image and text; `tokens` (n, R, d) patches and (n, L, d) words; `masks`."""
        a, b = (unit(view) for view in exactly_two(self, views))
        (r, t), (mask_r, mask_t) = pair_of_tokens(self, tokens, masks)
        s = [scale() for scale in self.scales]
        r_all, t_all = rows.gather_with_gradient(r), rows.gather_with_gradient(t)
        there_r, there_t = (rows.gather(mask.byte()).bool() for mask in (mask_r, mask_t))
        how = self.epsilon, self.detach, self.tolerance
        from_text = transported(t, r_all, mask_t, there_r, *how)  # (n, N) each
        from_image = [x.T for x in transported(t_all, r, there_t, mask_r, *how)]
        cost, multi = (
            (pick_own(scale * x, rows, group, self.positives) + pick_own(scale * y, rows, group, self.positives)) / 2
            for scale, x, y in zip(s[1:], from_text, from_image, strict=True)
        )
        self.diagnostics = {"transport_cost": -rows.mean(from_text[0].detach().diagonal(rows.offset))}
        whole = contrast(s[0] * a, b, rows, group, float(s[0].detach()), self.positives)
        return whole + self.weights[0] * multi + self.weights[1] * cost
