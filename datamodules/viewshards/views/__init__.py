"""Views: augmentations as distributions, applied by interchangeable backends."""

from viewshards.views.augmentation import Augmentation, Draw
from viewshards.views.multiview import BYOL, CIFAR, CentreCrop, MoCoV2, MultiCrop, MultiView, PlainViews, SimCLR
from viewshards.views.points import PlainPoints, PointAugmentation, PointViews
from viewshards.views.published import Published
from viewshards.views.video import PlainVideo, VideoViews

__all__ = [
    "BYOL",
    "CIFAR",
    "Augmentation",
    "CentreCrop",
    "Draw",
    "MoCoV2",
    "MultiCrop",
    "MultiView",
    "PlainPoints",
    "PlainVideo",
    "PlainViews",
    "PointAugmentation",
    "PointViews",
    "Published",
    "SimCLR",
    "VideoViews",
]
