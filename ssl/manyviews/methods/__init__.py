"""One LightningModule a published method: encoders, heads, objective and the paper's defaults."""

from manyviews.methods.amcl import AMCL
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.barlow import BarlowTwins, VICReg
from manyviews.methods.beclr import BECLR
from manyviews.methods.byol import BYOL, SimSiam
from manyviews.methods.cgvlm import CGVLM
from manyviews.methods.classifier import Classifier
from manyviews.methods.clip import ALIGN, CLIP, SigLIP
from manyviews.methods.cmim import CMIM
from manyviews.methods.cosmo import COSMO
from manyviews.methods.dcl import DCL
from manyviews.methods.decoding import Decoding
from manyviews.methods.dino import DINO
from manyviews.methods.fdt import FDT
from manyviews.methods.filip import FILIP, Wukong
from manyviews.methods.hallucinator import Hallucinator
from manyviews.methods.hydra import Hydra, HydraMoCo
from manyviews.methods.imagetext import ImageText
from manyviews.methods.improved import BYOLIP, BarLIP, ImprovedCLIP, SiamLIP, SwALIP
from manyviews.methods.meco import MECO
from manyviews.methods.method import Method, Step
from manyviews.methods.mgca import MGCA
from manyviews.methods.moco import MoCHi, MoCo, MoCoV3
from manyviews.methods.mocoop import MoCoOp
from manyviews.methods.multiview import MultiView
from manyviews.methods.negclip import MCIP, MultiModal, NegCLIP
from manyviews.methods.nnclr import NNCLR
from manyviews.methods.orma import ORMA
from manyviews.methods.pointmae import PointCMAE, PointMAE
from manyviews.methods.pseudo import CPL, BaCon
from manyviews.methods.scatsimclr import ScatSimCLR
from manyviews.methods.sepclr import SepCLR
from manyviews.methods.simclr import SimCLR
from manyviews.methods.slip import SLIP
from manyviews.methods.sogclr import ISogCLR, SogCLR
from manyviews.methods.supcon import SupCon
from manyviews.methods.swav import DeepCluster, SwAV
from manyviews.methods.volume import ImageVolume
from manyviews.methods.whitening import WMSE

__all__ = [
    "ALIGN",
    "AMCL",
    "BECLR",
    "BYOL",
    "BYOLIP",
    "CGVLM",
    "CLIP",
    "CMIM",
    "COSMO",
    "CPL",
    "DCL",
    "DINO",
    "FDT",
    "FILIP",
    "MCIP",
    "MECO",
    "MGCA",
    "NNCLR",
    "ORMA",
    "SLIP",
    "WMSE",
    "Asymmetric",
    "BaCon",
    "BarLIP",
    "BarlowTwins",
    "Classifier",
    "Decoding",
    "DeepCluster",
    "Hallucinator",
    "Hydra",
    "HydraMoCo",
    "ISogCLR",
    "ImageText",
    "ImageVolume",
    "ImprovedCLIP",
    "Method",
    "MoCHi",
    "MoCo",
    "MoCoOp",
    "MoCoV3",
    "MultiModal",
    "MultiView",
    "NegCLIP",
    "PointCMAE",
    "PointMAE",
    "ScatSimCLR",
    "SepCLR",
    "SiamLIP",
    "SigLIP",
    "SimCLR",
    "SimSiam",
    "SogCLR",
    "Step",
    "SupCon",
    "SwALIP",
    "SwAV",
    "VICReg",
    "Wukong",
]
