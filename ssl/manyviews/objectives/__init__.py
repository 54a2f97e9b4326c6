"""What is minimised: one file a paper, usable in any PyTorch loop."""

from manyviews.objectives.amcl import AMCL, AMCLBarlow, AMCLSimSiam
from manyviews.objectives.bacon import BaCon
from manyviews.objectives.barlow import BarlowTwins, VICReg
from manyviews.objectives.beclr import BECLR
from manyviews.objectives.byol import BYOL, SimSiam
from manyviews.objectives.clip import CLIP
from manyviews.objectives.cmim import CMIM
from manyviews.objectives.cpl import CPL
from manyviews.objectives.dcl import DCL
from manyviews.objectives.deepcluster import DeepCluster
from manyviews.objectives.hallucinator import Hallucinator
from manyviews.objectives.hard import HardContrastive
from manyviews.objectives.hydra import Hydra, HydraMoCo
from manyviews.objectives.infonce import InfoNCE
from manyviews.objectives.meco import MECO
from manyviews.objectives.meow import MEOW, AdaMEOW
from manyviews.objectives.mochi import MoCHi
from manyviews.objectives.multiview import MVDHEL, MVInfoNCE
from manyviews.objectives.nnclr import NNCLR
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective
from manyviews.objectives.pairwise import AverageViews, PairwiseViews
from manyviews.objectives.palm import PALM
from manyviews.objectives.polyview import PolyView
from manyviews.objectives.repulsor import Repulsor
from manyviews.objectives.sepclr import SepCLR
from manyviews.objectives.siglip import SigLIP
from manyviews.objectives.simhand import SiMHand
from manyviews.objectives.sogclr import ISogCLR, SogCLR
from manyviews.objectives.supcon import SupCon
from manyviews.objectives.supremix import SupReMix
from manyviews.objectives.swav import SwAV
from manyviews.objectives.volume import ImageVolume
from manyviews.objectives.whitening import WMSE, GroupWhitened

__all__ = [
    "AMCL",
    "BECLR",
    "BYOL",
    "CLIP",
    "CMIM",
    "CPL",
    "DCL",
    "MECO",
    "MEOW",
    "MVDHEL",
    "NNCLR",
    "PALM",
    "WMSE",
    "AMCLBarlow",
    "AMCLSimSiam",
    "AdaMEOW",
    "AverageViews",
    "BaCon",
    "BarlowTwins",
    "DeepCluster",
    "GroupWhitened",
    "Hallucinator",
    "HardContrastive",
    "Hydra",
    "HydraMoCo",
    "ISogCLR",
    "ImageVolume",
    "InfoNCE",
    "MVInfoNCE",
    "MoCHi",
    "NTXent",
    "Objective",
    "PairwiseViews",
    "PolyView",
    "Repulsor",
    "SepCLR",
    "SiMHand",
    "SigLIP",
    "SimSiam",
    "SogCLR",
    "SupCon",
    "SupReMix",
    "SwAV",
    "VICReg",
]
