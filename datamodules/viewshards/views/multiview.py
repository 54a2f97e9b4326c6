"""V views of a sample: which augmentations, of which natural views, by which backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from viewshards.decode import Picture
from viewshards.views import device, opencv, reference
from viewshards.views.augmentation import Augmentation
from viewshards.views.published import Published, without_ends

Backend = Literal["cv2", "torchvision", "device"]
Natural = Literal["across", "within", "ordered"]


class MultiView:
    """One augmentation a view, V >= 1.

    A sample may have several natural views (two vendors' drawings of one emoji, two cameras). Then each augmented view
    is made of one of them: they are put in random order, and view v takes the (v modulo their number)-th. With as many
    natural views as augmented ones, each is used once.

    Args:
        augmentations: one a view, equal sizes first, then smaller crops.
        backend: `cv2` (default), `torchvision` (reference), or `device` (crop and flip here, colour on the device).
        natural: `across` as above; `ordered`: in their own order, where it has a meaning; `within`: all augmented
            views are of one natural view, drawn for each sample.
    """

    modality = "image"

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        backend: Backend = "cv2",
        natural: Natural = "across",
    ) -> None:
        if not augmentations:
            raise ValueError("a sample needs at least one view")
        if backend not in ("cv2", "torchvision", "device"):
            raise ValueError(f"backend must be 'cv2', 'torchvision' or 'device', got {backend!r}")
        if natural not in ("across", "within", "ordered"):
            raise ValueError(f"natural must be 'across', 'within' or 'ordered', got {natural!r}")
        self.augmentations = list(augmentations)
        self.backend, self.natural = backend, natural

    def __call__(self, images: Sequence[Picture], rng: np.random.Generator) -> tuple[list[Picture], list[list[float]]]:
        """V views (size, size, 3) uint8, and with backend `device` a row of numbers each for `device.colour`."""
        order = rng.permutation(len(images))
        if self.natural != "across":
            order = order[:1] if self.natural == "within" else np.arange(len(images))
        views, rows = [], []
        for v, augmentation in enumerate(self.augmentations):
            image = images[order[v % len(order)]]
            draw = augmentation.draw(rng, *image.shape[:2])
            if self.backend == "device":
                views.append(opencv.geometry(image, augmentation, draw))
                rows.append(device.row(draw))
            else:
                views.append((reference if self.backend == "torchvision" else opencv).apply(image, augmentation, draw))
        return views, rows

    def plain(self) -> PlainViews:
        """What evaluation sees: a centre crop of the first view's size."""
        return PlainViews(CentreCrop(self.augmentations[0].size))


class SimCLR(MultiView):
    """SimCLR's views (Chen et al., ICML 2020, appendix A).

    Args:
        size: side in pixels. views: how many, all alike.
        strength: of the colour jitter; 1.0 on ImageNet, 0.5 on CIFAR.
        blur: probability; the paper has 0.5 on ImageNet and none on CIFAR.
        min_scale: smallest crop, as a share of the area.
        flip: probability; 0 for digits and text.
        backend, natural: see `MultiView`.
    """

    def __init__(
        self,
        size: int = 224,
        views: int = 2,
        strength: float = 1.0,
        blur: float = 0.5,
        min_scale: float = 0.08,
        flip: float = 0.5,
        backend: Backend = "cv2",
        natural: Natural = "across",
    ) -> None:
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        view = Augmentation(size, (min_scale, 1.0), flip=flip, jitter=jitter, grey=0.2, blur=blur)
        super().__init__([view] * views, backend, natural)


class MoCoV2(MultiView):
    """The views of MoCo v2 and SimSiam: larger crops, weaker saturation.

    Args:
        size: side in pixels. views: how many. backend: see `MultiView`.
    """

    def __init__(self, size: int = 224, views: int = 2, backend: Backend = "cv2") -> None:
        super().__init__(
            [Augmentation(size, (0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=0.5)] * views, backend
        )


class BYOL(MultiView):
    """BYOL's two unequal views, also those of Barlow Twins, VICReg and MoCo v3.

    Args:
        size: side in pixels. min_scale: smallest crop; MoCo v3's ResNet-50 uses 0.2. backend: see `MultiView`.
    """

    def __init__(self, size: int = 224, min_scale: float = 0.08, backend: Backend = "cv2") -> None:
        shared = {"jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2}
        first = Augmentation(size, (min_scale, 1.0), blur=1.0, **shared)  # type: ignore[arg-type]
        second = Augmentation(size, (min_scale, 1.0), blur=0.1, solarize=0.2, **shared)  # type: ignore[arg-type]
        super().__init__([first, second], backend)


class CIFAR(MultiView):
    """The CIFAR views of the solo-learn recipes.

    Args:
        kind: `symmetric` (jitter 0.8, blur 0.5), `weak` (the same with jitter 0.4), `asymmetric` (jitter 0.4, no blur,
            solarisation 0.2 on the second view).
        size: side in pixels. views: how many; `asymmetric` has 2. backend: see `MultiView`.
    """

    def __init__(
        self,
        kind: Literal["symmetric", "weak", "asymmetric"] = "symmetric",
        size: int = 32,
        views: int = 2,
        backend: Backend = "cv2",
    ) -> None:
        if kind == "asymmetric":
            if views != 2:
                raise ValueError(f"asymmetric views come in twos, got views={views}")
            first = Augmentation(size, jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2)
            second = Augmentation(size, jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, solarize=0.2)
            super().__init__([first, second], backend)
        elif kind in ("symmetric", "weak"):
            jitter = (0.8, 0.8, 0.8, 0.2) if kind == "symmetric" else (0.4, 0.4, 0.4, 0.1)
            super().__init__([Augmentation(size, jitter=jitter, grey=0.2, blur=0.5)] * views, backend)
        else:
            raise ValueError(f"kind must be 'symmetric', 'weak' or 'asymmetric', got {kind!r}")


class MultiCrop(MultiView):
    """SwAV's multi-crop (Caron et al., NeurIPS 2020): large views first, then small ones.

    Args:
        sizes: sides in pixels, large and small. crops: how many of each.
        large, small: crop scales of each. strength: of the colour jitter. blur: probability. backend: see `MultiView`.
    """

    def __init__(
        self,
        sizes: tuple[int, int] = (224, 96),
        crops: tuple[int, int] = (2, 6),
        large: tuple[float, float] = (0.14, 1.0),
        small: tuple[float, float] = (0.05, 0.14),
        strength: float = 1.0,
        blur: float = 0.5,
        backend: Backend = "cv2",
    ) -> None:
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        super().__init__(
            [
                Augmentation(size, scale, jitter=jitter, grey=0.2, blur=blur)
                for size, scale, count in zip(sizes, (large, small), crops, strict=True)
                for _ in range(count)
            ],
            backend,
        )


class CentreCrop:
    """The view of evaluation: shorter side resized to `resize`, centre crop of `size`. No randomness.

    Args:
        size: side in pixels.
        resize: shorter side before the crop; default `size * 256 / 224` from 64 pixels on, else `size`.
    """

    def __init__(self, size: int, resize: int | None = None) -> None:
        self.size = size
        self.resize = resize if resize is not None else (round(size * 256 / 224) if size >= 64 else size)
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if self.resize < size:
            raise ValueError(f"resize ({self.resize}) must not be smaller than size ({size})")

    def __call__(self, image: Picture) -> Picture:
        """(H, W, 3) to (size, size, 3)."""
        image = without_ends(image)
        height, width = image.shape[:2]
        factor = self.resize / min(height, width)
        image = opencv.resize(image, max(self.resize, round(height * factor)), max(self.resize, round(width * factor)))
        top, left = (image.shape[0] - self.size) // 2, (image.shape[1] - self.size) // 2
        return image[top : top + self.size, left : left + self.size]


class PlainViews:
    """Each natural view through the same deterministic transform: what evaluation sees."""

    modality = "image"

    def __init__(self, transform: CentreCrop | Published) -> None:
        self.transform = transform

    def __call__(self, images: Sequence[Picture], rng: np.random.Generator) -> tuple[list[Picture], list[list[float]]]:
        """One view a natural view."""
        return [self.transform(image) for image in images], []
