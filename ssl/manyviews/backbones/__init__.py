"""Encoders. All return one `Encoding`; any `nn.Module` with a `width` that returns one (or a (B, D) tensor) will do."""

from manyviews.backbones.encoding import Encoding, views_of, width_of
from manyviews.backbones.frozen import Cached, Exported
from manyviews.backbones.images import ConvNet, Pixels, TimmBackbone
from manyviews.backbones.openclip import OpenClipImage, OpenClipText
from manyviews.backbones.points import PointTransformer, ShapeStatistics
from manyviews.backbones.regions import RandomBoxes, ShiftedWindows
from manyviews.backbones.scattering import ScatteringBackbone
from manyviews.backbones.spacetime import FrameMean, ViT3D, ViViT
from manyviews.backbones.trajvit import TrajViT
from manyviews.backbones.weights import load_weights, not_read

__all__ = [
    "Cached",
    "ConvNet",
    "Encoding",
    "Exported",
    "FrameMean",
    "OpenClipImage",
    "OpenClipText",
    "Pixels",
    "PointTransformer",
    "RandomBoxes",
    "ScatteringBackbone",
    "ShapeStatistics",
    "ShiftedWindows",
    "TimmBackbone",
    "TrajViT",
    "ViT3D",
    "ViViT",
    "load_weights",
    "not_read",
    "views_of",
    "width_of",
]
