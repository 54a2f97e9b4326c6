"""What is minimised: one file a paper, usable in any PyTorch loop."""

from manyviews.objectives.amcl import AMCL, AMCLBarlow, AMCLSimSiam
from manyviews.objectives.barlow import BarlowTwins, VICReg
from manyviews.objectives.byol import BYOL, SimSiam
from manyviews.objectives.cmim import CMIM
from manyviews.objectives.dcl import DCL
from manyviews.objectives.deepcluster import DeepCluster
from manyviews.objectives.hallucinator import Hallucinator
from manyviews.objectives.hard import HardContrastive
from manyviews.objectives.hydra import Hydra, HydraMoCo
from manyviews.objectives.infonce import InfoNCE
from manyviews.objectives.mochi import MoCHi
from manyviews.objectives.multiview import MVDHEL, MVInfoNCE
from manyviews.objectives.nnclr import NNCLR
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective
from manyviews.objectives.pairwise import AverageViews, PairwiseViews
from manyviews.objectives.polyview import PolyView
from manyviews.objectives.sogclr import ISogCLR, SogCLR
from manyviews.objectives.supcon import SupCon
from manyviews.objectives.swav import SwAV

__all__ = [
    "AMCL",
    "BYOL",
    "CMIM",
    "DCL",
    "MVDHEL",
    "NNCLR",
    "AMCLBarlow",
    "AMCLSimSiam",
    "AverageViews",
    "BarlowTwins",
    "DeepCluster",
    "Hallucinator",
    "HardContrastive",
    "Hydra",
    "HydraMoCo",
    "ISogCLR",
    "InfoNCE",
    "MVInfoNCE",
    "MoCHi",
    "NTXent",
    "Objective",
    "PairwiseViews",
    "PolyView",
    "SimSiam",
    "SogCLR",
    "SupCon",
    "SwAV",
    "VICReg",
]
