"""SupCon, the supervised contrastive loss (Khosla et al., NeurIPS 2020), in its "out" form."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import logsumexp_self, unit


class SupCon(Objective):
    r"""All views of all images of a label are positives of each other. V >= 2.

    .. math:: L = -\frac{t}{t_0}\, \mathrm{mean}_r \frac{1}{|P(r)|} \sum_{p \in P(r)}
              \Big[ s(r, p)/t - \log \sum_{a \ne r} e^{s(r, a)/t} \Big]

    over all V N rows. An image of unknown label (-1) has its own views as positives; with no labels at all, or a label
    an image, and two views, this is NT-Xent. The sum over positives is a product with a sum over the class, so no
    matrix is formed.

    Args:
        temperature: t > 0. base_temperature: t_0; None: t, so that the factor is 1.
    """

    def __init__(self, temperature: float = 0.1, base_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.scale = 1.0 if base_temperature is None else temperature / positive("base_temperature", base_temperature)

    def loss(self, views: list[Tensor], rows: Rows, label: Tensor | None = None) -> Tensor:
        """`label` (n,): -1 where unknown."""
        (label,) = known(self, label=label)
        z, v = torch.cat([unit(view) for view in views]), len(views)
        classes = torch.where(label >= 0, label, -1 - rows.index(label.device)).repeat(v)
        own = rows.index(z.device) * v
        ids = torch.cat([own + k for k in range(v)])
        everything = logsumexp_self(z * self.temperature**-0.5, ids, rows, bound=1 / self.temperature)
        sums, counts = class_sums(z, classes, rows)
        partners = counts - 1
        mean_positive = ((z * sums).sum(1) - 1) / partners / self.temperature
        self.diagnostics["positives"] = rows.mean(partners)
        return self.scale * rows.mean(everything - mean_positive)


def class_sums(z: Tensor, classes: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """(m, D): for each local row the sum of all ranks' rows of its class, with gradient; (m,) and how many they are."""
    everyone = rows.gather(classes)
    unique, counts = torch.unique(everyone, return_counts=True)
    mine = torch.searchsorted(unique, classes)
    local = torch.zeros(len(unique), z.shape[1], dtype=z.dtype, device=z.device).index_add(0, mine, z)
    return rows.sum_with_gradient(local)[mine], counts[mine].to(z)
