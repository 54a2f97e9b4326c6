"""The registry that drives the objective tests: every objective of the package must have rows here.

A row: name of the case, a fresh objective, its slow reference `f(views, group)`, and the numbers it must give on the
worked example T3 (two and three views of three images; None where it is defined for two views only).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from manyviews import objectives as o
from tests.manyviews import references as ref


class Case(NamedTuple):
    name: str
    make: Callable[[], o.Objective]
    reference: Callable[[list[Tensor], Any], Tensor]
    two: float
    three: float | None

    @property
    def views(self) -> int:
        return 2 if self.three is None else 3


CASES = [
    Case("NTXent-t.5", lambda: o.NTXent(0.5), lambda z, g: ref.ntxent(z, 0.5, g), 0.96854400, None),
    Case("NTXent-t.1", lambda: o.NTXent(0.1), lambda z, g: ref.ntxent(z, 0.1, g), 1.33519908, None),
    Case("DCL-t.5", lambda: o.DCL(0.5), lambda z, g: ref.dcl(z, 0.5, None, g), 0.40624399, None),
    Case("DCL-t.1", lambda: o.DCL(0.1), lambda z, g: ref.dcl(z, 0.1, None, g), -0.00558242, None),
    Case("DCLW-t.5", lambda: o.DCL(0.5, 0.5), lambda z, g: ref.dcl(z, 0.5, 0.5, g), 0.47871233, None),
    Case("DCLW-t.1", lambda: o.DCL(0.1, 0.5), lambda z, g: ref.dcl(z, 0.1, 0.5, g), 0.35675932, None),
    Case("MVInfoNCE", lambda: o.MVInfoNCE(0.5), lambda z, g: ref.mv_infonce(z, 0.5, True, g), 0.98028409, 0.70053377),
    Case(
        "MVInfoNCE-formula",
        lambda: o.MVInfoNCE(0.5, same_view_negatives=False),
        lambda z, g: ref.mv_infonce(z, 0.5, False, g),
        0.68748501,
        0.54657101,
    ),
    Case("MVDHEL", lambda: o.MVDHEL(0.5), lambda z, g: ref.mv_dhel(z, 0.5, False, g), 0.61666236, 0.36188221),
    Case(
        "MVDHEL-ordered",
        lambda: o.MVDHEL(0.5, ordered=True),
        lambda z, g: ref.mv_dhel(z, 0.5, True, g),
        -0.07648482,
        -0.33126497,
    ),
    Case("PairwiseViews", lambda: o.PairwiseViews(0.5), lambda z, g: ref.pwe(z, 0.5, g), 0.96854400, 0.83968831),
    Case("AverageViews", lambda: o.AverageViews(0.5), lambda z, g: ref.avg(z, 0.5, g), 0.96854400, 0.79376319),
    Case("PolyView", lambda: o.PolyView(0.5), lambda z, g: ref.pvc(z, 0.5, "geometric", g), 0.96854400, 1.10183070),
    Case(
        "PolyView-arithmetic",
        lambda: o.PolyView(0.5, kind="arithmetic"),
        lambda z, g: ref.pvc(z, 0.5, "arithmetic", g),
        0.96854400,
        1.09171280,
    ),
]
