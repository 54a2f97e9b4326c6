"""What is minimised: one file a paper, usable in any PyTorch loop."""

from manyviews.objectives.amcl import AMCL, AMCLBarlow, AMCLSimSiam
from manyviews.objectives.bacon import BaCon
from manyviews.objectives.barlow import BarlowTwins, VICReg
from manyviews.objectives.beclr import BECLR
from manyviews.objectives.byol import BYOL, SimSiam
from manyviews.objectives.cgvlm import CGVLM
from manyviews.objectives.chamfer import PointCMAE, PointMAE
from manyviews.objectives.clip import CLIP, PairwiseCLIP
from manyviews.objectives.cmim import CMIM
from manyviews.objectives.cpl import CPL
from manyviews.objectives.crossentropy import CrossEntropy
from manyviews.objectives.dcl import DCL
from manyviews.objectives.deepcluster import DeepCluster
from manyviews.objectives.dino import DINO
from manyviews.objectives.fdt import FDT
from manyviews.objectives.filip import FILIP
from manyviews.objectives.hallucinator import Hallucinator
from manyviews.objectives.hard import HardContrastive
from manyviews.objectives.hydra import Hydra, HydraMoCo
from manyviews.objectives.improved import BarLIP, ImprovedCLIP, SiamLIP, SwALIP
from manyviews.objectives.infonce import InfoNCE
from manyviews.objectives.mcip import MCIP
from manyviews.objectives.meco import MECO
from manyviews.objectives.meow import MEOW, AdaMEOW
from manyviews.objectives.mgca import MGCA
from manyviews.objectives.mochi import MoCHi
from manyviews.objectives.mocoop import MoCoOp
from manyviews.objectives.multiview import MVDHEL, MVInfoNCE
from manyviews.objectives.nnclr import NNCLR
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective
from manyviews.objectives.orma import ORMA
from manyviews.objectives.pairwise import AverageViews, PairwiseViews
from manyviews.objectives.palm import PALM
from manyviews.objectives.polyview import PolyView
from manyviews.objectives.repulsor import Repulsor
from manyviews.objectives.sepclr import SepCLR
from manyviews.objectives.siglip import SigLIP
from manyviews.objectives.simhand import SiMHand
from manyviews.objectives.slip import SLIP
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
    "CGVLM",
    "CLIP",
    "CMIM",
    "CPL",
    "DCL",
    "DINO",
    "FDT",
    "FILIP",
    "MCIP",
    "MECO",
    "MEOW",
    "MGCA",
    "MVDHEL",
    "NNCLR",
    "ORMA",
    "PALM",
    "SLIP",
    "WMSE",
    "AMCLBarlow",
    "AMCLSimSiam",
    "AdaMEOW",
    "AverageViews",
    "BaCon",
    "BarLIP",
    "BarlowTwins",
    "CrossEntropy",
    "DeepCluster",
    "GroupWhitened",
    "Hallucinator",
    "HardContrastive",
    "Hydra",
    "HydraMoCo",
    "ISogCLR",
    "ImageVolume",
    "ImprovedCLIP",
    "InfoNCE",
    "MVInfoNCE",
    "MoCHi",
    "MoCoOp",
    "NTXent",
    "Objective",
    "PairwiseCLIP",
    "PairwiseViews",
    "PointCMAE",
    "PointMAE",
    "PolyView",
    "Repulsor",
    "SepCLR",
    "SiMHand",
    "SiamLIP",
    "SigLIP",
    "SimSiam",
    "SogCLR",
    "SupCon",
    "SupReMix",
    "SwALIP",
    "SwAV",
    "VICReg",
]
