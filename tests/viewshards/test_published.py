"""The views of published models against those who publish them, pixel by pixel."""

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from viewshards.views import Published

SHAPES = [(40, 60), (61, 37), (32, 32), (300, 41), (17, 19), (224, 225)]


def picture(height, width):
    g = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(g.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)).resize(
        (width, height)
    )


def by_bytes(transform, image):
    return (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_open_clip(shape, mode, interpolation):
    cfg = PreprocessCfg(
        size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=mode, fill_color=7
    )
    image = picture(*shape)
    ours = Published(32, interpolation=interpolation, mode=mode, fill=7)(np.asarray(image))
    assert np.array_equal(ours, by_bytes(image_transform_v2(cfg, is_train=False), image))


@pytest.mark.parametrize("shape", SHAPES)
def test_as_timm(shape):
    how = {
        "input_size": (3, 32, 32),
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    image = picture(*shape)
    ours = Published(32, resize=int(32 / 0.875))(np.asarray(image))
    assert np.array_equal(ours, by_bytes(timm.data.create_transform(**how), image))


def test_what_is_refused():
    for arguments, message in (
        ({"size": 32, "resize": 16}, r"resize \(16\) must not be smaller"),
        ({"size": 32, "mode": "other"}, "mode must be"),
        ({"size": 32, "interpolation": "area"}, "interpolation must be one of bicubic"),
    ):
        with pytest.raises(ValueError, match=message):
            Published(**arguments)
    with pytest.raises(ValueError, match="of three bands, this picture has 5"):
        Published(8)(np.zeros((9, 9, 5), np.uint8))
    assert Published(8)(np.zeros((1, 5000, 3), np.uint8)).shape == (8, 8, 3)


def test_a_model_of_open_clip_says_what_it_wants():
    from manyviews.backbones.openclip import preprocessing

    for name in ("ViT-B-32", "ViT-B-16-SigLIP"):
        tag = open_clip.get_pretrained_cfg(name, open_clip.list_pretrained_tags_by_model(name)[0])
        found = preprocessing(name)
        assert (found["interpolation"], found["resize_mode"]) == (tag["interpolation"], tag["resize_mode"])
        torch.testing.assert_close(torch.tensor(found["mean"]), torch.tensor(tag["mean"]))
