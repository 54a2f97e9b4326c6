"""One LightningModule a published method: encoders, heads, objective and the paper's defaults."""

from manyviews.methods.amcl import AMCL
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.barlow import BarlowTwins, VICReg
from manyviews.methods.byol import BYOL, SimSiam
from manyviews.methods.cmim import CMIM
from manyviews.methods.dcl import DCL
from manyviews.methods.hallucinator import Hallucinator
from manyviews.methods.hydra import Hydra, HydraMoCo
from manyviews.methods.method import Method
from manyviews.methods.moco import MoCHi, MoCo, MoCoV3
from manyviews.methods.multiview import MultiView
from manyviews.methods.nnclr import NNCLR
from manyviews.methods.simclr import SimCLR
from manyviews.methods.sogclr import ISogCLR, SogCLR
from manyviews.methods.supcon import SupCon
from manyviews.methods.swav import DeepCluster, SwAV

__all__ = [
    "AMCL",
    "BYOL",
    "CMIM",
    "DCL",
    "NNCLR",
    "Asymmetric",
    "BarlowTwins",
    "DeepCluster",
    "Hallucinator",
    "Hydra",
    "HydraMoCo",
    "ISogCLR",
    "Method",
    "MoCHi",
    "MoCo",
    "MoCoV3",
    "MultiView",
    "SimCLR",
    "SimSiam",
    "SogCLR",
    "SupCon",
    "SwAV",
    "VICReg",
]
