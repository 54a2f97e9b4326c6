"""One file a paper: the equation. Every objective is an `nn.Module` that works in any PyTorch loop."""

from manyviews.objectives.dcl import DCL
from manyviews.objectives.multiview import MVDHEL, MVInfoNCE
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective
from manyviews.objectives.pairwise import AverageViews, PairwiseViews
from manyviews.objectives.polyview import PolyView

__all__ = ["DCL", "MVDHEL", "AverageViews", "MVInfoNCE", "NTXent", "Objective", "PairwiseViews", "PolyView"]
