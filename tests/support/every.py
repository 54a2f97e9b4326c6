"""Every method and backbone of the tables, each with the batches that it is tried on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from manyviews.methods import Method
from tests.manyviews import test_image_methods, test_points, test_text_methods, test_video


@dataclass(frozen=True)
class Trial:
    """A method as it is made by its row of a table, always with the same weights, and its batches."""

    make: Callable[[], Method]
    batches: Callable[[], Any]


def image(name: str) -> Trial:
    return Trial(lambda: test_image_methods.make(name), lambda: test_image_methods.batches(name))


def text(name: str) -> Trial:
    return Trial(lambda: test_text_methods.make(name), lambda: test_text_methods.pairs(name))


def points(name: str) -> Trial:
    return Trial(lambda: test_points.make(name), lambda: test_points.Clouds(name))


def video(backbone: str, method: str) -> Trial:
    def make() -> Method:
        pl.seed_everything(0, verbose=False)
        return test_video.METHODS[method](test_video.BACKBONES[backbone]())

    return Trial(make, lambda: test_video.Clips(method))


TRIALS = {
    **{f"image/{name}": image(name) for name in test_image_methods.METHODS},
    **{f"text/{name}": text(name) for name in test_text_methods.METHODS},
    **{f"points/{name}": points(name) for name in test_points.METHODS},
    **{f"video/{backbone}": video(backbone, "CLIP") for backbone in test_video.BACKBONES},
}
"""Of videos every backbone by CLIP."""
VIDEO_METHODS = {f"video/TrajViT-{name}": video("TrajViT", name) for name in test_video.METHODS if name != "CLIP"}


def tensors(found: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a batch, by where they lie in it."""
    if isinstance(found, torch.Tensor):
        yield name, found
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from tensors(value, f"{name}.{key}")
    elif isinstance(found, list | tuple):
        for number, value in enumerate(found):
            yield from tensors(value, f"{name}.{number}")


def moved(found: Any, to: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A batch with every tensor replaced by `to` of it."""
    if isinstance(found, torch.Tensor):
        return to(found)
    if isinstance(found, dict):
        return {key: moved(value, to) for key, value in found.items()}
    return type(found)(moved(value, to) for value in found) if isinstance(found, list | tuple) else found
