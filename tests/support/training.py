"""How the methods of the tests are trained."""

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from manyviews.methods import Method
from manyviews.optim import OptimizerFactory, Schedule, Training

Some = TypeVar("Some", bound=Method)


def fast(optimizer: OptimizerFactory = partial(torch.optim.Adam, lr=0.003), **more: Any) -> dict[str, Training]:
    """The argument `training` of a method: at a constant rate but for the end."""
    return {"training": Training(optimizer, Schedule(warmup_steps=1, scaling="none"), **more)}


def changed(method: Some, **how: Any) -> Some:
    """A method that was made, to be trained otherwise."""
    method.how = replace(method.how, **how)
    return method
