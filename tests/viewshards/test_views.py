"""Augmentations: what is drawn, that the three backends do the same, and that nothing global is touched."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from viewshards.order import generator
from viewshards.views import (
    BYOL,
    CIFAR,
    Augmentation,
    CentreCrop,
    Draw,
    MoCoV2,
    MultiCrop,
    MultiView,
    SimCLR,
    device,
    opencv,
    reference,
)

FULL = Augmentation(96, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5, solarize=0.2)


def photograph(height=160, width=200, seed=0):
    """Smooth colours with some edges: what pictures have and noise has not."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.3, 2, (3, 3))]
    image = np.stack(waves, -1) * 100 + 128
    image[40:90, 60:120] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def levels(a, b):
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


SINGLE = {
    "crop, smaller": (Draw((10, 20, 140, 150)), 1.5),
    "crop, larger": (Draw((10, 20, 50, 60)), 0.6),
    "flip": (Draw((0, 0, 96, 96), flip=True), 0.0),
    "brightness": (Draw((0, 0, 96, 96), jitter=((0, 1.4),)), 0.6),
    "contrast": (Draw((0, 0, 96, 96), jitter=((1, 0.4),)), 0.6),
    "contrast up": (Draw((0, 0, 96, 96), jitter=((1, 1.7),)), 0.8),
    "saturation": (Draw((0, 0, 96, 96), jitter=((2, 1.6),)), 0.8),
    "hue": (Draw((0, 0, 96, 96), jitter=((3, 0.13),)), 2.0),
    "hue back": (Draw((0, 0, 96, 96), jitter=((3, -0.2),)), 2.0),
    "grey": (Draw((0, 0, 96, 96), grey=True), 0.6),
    "blur": (Draw((0, 0, 96, 96), sigma=1.3), 0.6),
    "solarize": (Draw((0, 0, 96, 96), solarize=True), 0.0),
}


@pytest.mark.parametrize("name", SINGLE)
def test_each_operation_equals_torchvision(name):
    draw, bound = SINGLE[name]
    image = photograph()
    assert levels(opencv.apply(image, FULL, draw), reference.apply(image, FULL, draw)) <= bound


@pytest.mark.parametrize("name", [n for n in SINGLE if "crop" not in n])
def test_each_operation_on_the_device_equals_torchvision(name):
    draw, _ = SINGLE[name]
    image = photograph()
    view = torch.from_numpy(opencv.geometry(image, FULL, draw).copy()).permute(2, 0, 1)[None].float() / 255
    out = device.colour(view, torch.tensor([device.row(draw)]), FULL)[0].permute(1, 2, 0).numpy() * 255
    assert levels(out, reference.apply(image, FULL, draw)) <= 0.8
    assert out.min() >= 0 and out.max() <= 255.001


def test_whole_augmentations_agree_over_many_draws():
    image = photograph()
    difference = {"cv2": [], "device": []}
    for seed in range(60):
        draw = FULL.draw(generator(seed), *image.shape[:2])
        expected = reference.apply(image, FULL, draw)
        difference["cv2"].append(levels(opencv.apply(image, FULL, draw), expected))
        view = torch.from_numpy(opencv.geometry(image, FULL, draw).copy()).permute(2, 0, 1)[None].float() / 255
        out = device.colour(view, torch.tensor([device.row(draw)]), FULL)[0].permute(1, 2, 0).numpy() * 255
        difference["device"].append(levels(out, expected))
    assert np.mean(difference["cv2"]) < 2.0, difference
    assert np.mean(difference["device"]) < 2.0, difference


def test_a_device_batch_is_its_samples_one_by_one():
    images = torch.rand(6, 3, 32, 32)
    small = Augmentation(32, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.3, blur=0.5, solarize=0.3)
    rows = torch.tensor([device.row(small.draw(generator(i), 32, 32)) for i in range(6)])
    together = device.colour(images, rows, small)
    alone = torch.cat([device.colour(images[i : i + 1], rows[i : i + 1], small) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_draws_follow_their_distribution():
    augmentation = Augmentation(32, (0.2, 0.9), jitter=(0.4, 0.3, 0.2, 0.1), grey=0.2, blur=0.5, solarize=0.1)
    draws = [augmentation.draw(generator(5, i), 480, 640) for i in range(3000)]
    areas = np.array([d.box[2] * d.box[3] / (480 * 640) for d in draws])
    ratios = np.array([d.box[3] / d.box[2] for d in draws])
    theirs = [RandomResizedCrop.get_params(torch.empty(3, 480, 640), (0.2, 0.9), (3 / 4, 4 / 3)) for _ in range(3000)]
    their_areas = np.array([h * w / (480 * 640) for _, _, h, w in theirs])
    assert areas.min() > 0.19 and areas.max() < 0.91
    assert ratios.min() > 0.74 and ratios.max() < 1.34
    for share in (0.1, 0.5, 0.9):
        assert abs(np.quantile(areas, share) - np.quantile(their_areas, share)) < 0.03
    assert all(d.box[0] + d.box[2] <= 480 and d.box[1] + d.box[3] <= 640 for d in draws)
    for share, expected in (
        (np.mean([d.flip for d in draws]), 0.5),
        (np.mean([bool(d.jitter) for d in draws]), 0.8),
        (np.mean([d.grey for d in draws]), 0.2),
        (np.mean([d.sigma > 0 for d in draws]), 0.5),
        (np.mean([d.solarize for d in draws]), 0.1),
    ):
        assert abs(share - expected) < 0.04
    firsts = [d.jitter[0][0] for d in draws if d.jitter]
    assert all(abs(firsts.count(k) / len(firsts) - 0.25) < 0.05 for k in range(4))  # any operation may come first
    brightness = [f for d in draws for k, f in d.jitter if k == 0]
    assert min(brightness) >= 0.6 and max(brightness) <= 1.4


def test_views_are_a_function_of_the_generator_and_touch_no_global_state():
    views = SimCLR(32, views=3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    a, _ = views([photograph()], generator(1, 2, 3))
    b, _ = views([photograph()], generator(1, 2, 3))
    c, _ = views([photograph()], generator(1, 2, 4))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_natural_views_are_all_used_and_in_any_order():
    plain = MultiView([Augmentation(16, (1.0, 1.0), (1.0, 1.0), flip=0)] * 2)
    naturals = [np.full((16, 16, 3), value, np.uint8) for value in (10, 200)]
    orders = set()
    for seed in range(20):
        views, _ = plain(naturals, generator(seed))
        orders.add(tuple(int(view[0, 0, 0]) for view in views))
    assert orders == {(10, 200), (200, 10)}


def test_natural_views_within_and_in_order():
    still = Augmentation(16, (1.0, 1.0), (1.0, 1.0), flip=0)
    naturals = [np.full((16, 16, 3), value, np.uint8) for value in (10, 200)]
    for natural, expected in (("within", {(10, 10, 10), (200, 200, 200)}), ("ordered", {(10, 200, 10)})):
        plain = MultiView([still] * 3, natural=natural)
        made = [plain(naturals, generator(seed))[0] for seed in range(20)]
        assert {tuple(int(view[0, 0, 0]) for view in views) for views in made} == expected
    with pytest.raises(ValueError, match="natural must be 'across'"):
        MultiView([still], natural="any")


@pytest.mark.parametrize(
    ("views", "sizes"),
    [
        (SimCLR(32), [32, 32]),
        (SimCLR(32, views=4), [32] * 4),
        (MoCoV2(32), [32, 32]),
        (BYOL(32), [32, 32]),
        (CIFAR("symmetric"), [32, 32]),
        (CIFAR("weak"), [32, 32]),
        (CIFAR("asymmetric"), [32, 32]),
        (MultiCrop((32, 16), (2, 3)), [32, 32, 16, 16, 16]),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, list) else "",
)
@pytest.mark.parametrize("backend", ["cv2", "torchvision", "device"])
def test_presets_on_every_backend(views, sizes, backend):
    made = MultiView(views.augmentations, backend)
    images, rows = made([photograph()], generator(0))
    assert [image.shape for image in images] == [(s, s, 3) for s in sizes]
    assert len(rows) == (len(sizes) if backend == "device" else 0)


def test_presets_hold_the_papers_numbers():
    first, second = BYOL().augmentations
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert SimCLR().augmentations[0].kernel == 23 and SimCLR().augmentations[0].jitter == (0.8, 0.8, 0.8, 0.2)
    assert MoCoV2().augmentations[0].scale == (0.2, 1.0)
    assert CIFAR("asymmetric").augmentations[1].solarize == 0.2


def test_centre_crop():
    crop = CentreCrop(32)
    image = photograph(64, 100)
    assert crop(image).shape == (32, 32, 3)
    same = photograph(32, 32)
    assert (crop(same) == same).all()
    assert CentreCrop(224).resize == 256
    with pytest.raises(ValueError, match="must not be smaller"):
        CentreCrop(64, resize=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"scale": (0.5, 0.2)}, "0 < low <= high <= 1"),
        ({"jitter": (0, 0, 0, 0.7)}, "0.5 turns"),
    ],
)
def test_impossible_augmentations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(32, **change)
