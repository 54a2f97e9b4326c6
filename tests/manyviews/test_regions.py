"""Shifted windows and random boxes: by their derivation."""

import pytest
import torch
from torch import nn

from manyviews.backbones import Encoding, RandomBoxes, ShiftedWindows
from manyviews.backbones.regions import grid


class Patches(nn.Module):
    """Patches of 4 px: equivariant to rolls by whole patches."""

    width = 6

    def __init__(self, attend=False):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.attend = nn.Conv2d(3, 6, 4, 4), attend

    def forward(self, images):
        places = self.patch(images)
        if self.attend:  # windows of 4 x 4 patches see themselves only
            windows = places.unfold(2, 4, 4).unfold(3, 4, 4)
            mean = windows.mean((4, 5)).repeat_interleave(4, 2).repeat_interleave(4, 3)
            places = places + mean * 5
        tokens = places.flatten(2).mT
        return Encoding(tokens.mean(1), tokens)


def test_a_backbone_without_windows_is_left_as_it_is():
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ShiftedWindows(Patches(), 16)(images).tokens, Patches()(images).tokens)


def test_borders_of_windows_matter_less():
    images = torch.randn(4, 3, 32, 32)

    def error(backbone):
        rolled = grid(backbone(images.roll((4, 4), (2, 3)))).roll((-1, -1), (2, 3))
        return (rolled - grid(backbone(images))).norm().item()

    assert error(ShiftedWindows(Patches(True), 16)) < 0.8 * error(Patches(True))


def test_half_a_window_must_be_whole_patches():
    with pytest.raises(ValueError, match=r"half a window \(6 px\) must be a multiple of the patch \(4 px\)"):
        ShiftedWindows(Patches(), 12)(torch.randn(1, 3, 32, 32))


def test_the_whole_image_is_one_box():
    images = torch.randn(2, 3, 32, 32)
    boxes = RandomBoxes(Patches(), size=8).eval()
    torch.testing.assert_close(boxes(images).pooled, Patches()(images).pooled, atol=1e-5, rtol=1e-4)


def test_order_and_number_of_boxes_do_not_matter():
    boxes = RandomBoxes(Patches())
    places = torch.randn(1, 6, 8, 8)
    some = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.2, 0.3, 0.9, 0.8], [0.5, 0, 1, 1]]])
    pooled = boxes.pooled(places, some)
    torch.testing.assert_close(pooled, boxes.pooled(places, some[:, [2, 0, 1, 1]]))
    torch.testing.assert_close(
        pooled, torch.stack([boxes.pooled(places, some[:, i : i + 1]) for i in range(3)]).amax(0)
    )


def test_training_draws_boxes_from_the_generator():
    boxes, images = RandomBoxes(Patches()), torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    first = boxes(images).pooled
    assert not torch.equal(boxes(images).pooled, first)
    torch.manual_seed(1)
    assert torch.equal(boxes(images).pooled, first)
    head = nn.Sequential(nn.Flatten(), nn.Linear(54, 10))
    assert RandomBoxes(Patches(), head, width=10)(images).pooled.shape == (2, 10)


def test_patches_must_be_a_square():
    with pytest.raises(ValueError, match="6 tokens are no square grid"):
        grid(Encoding(torch.zeros(1, 4), torch.zeros(1, 6, 4)))
    with pytest.raises(ValueError, match="one token a patch"):
        grid(Encoding(torch.zeros(1, 4)))
