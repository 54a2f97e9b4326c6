"""The closed list of decoders."""

import io
import pickle

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from viewshards.decode import DECODERS, decode, is_known, kind


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures():
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    assert (decode("png", encoded(Image.fromarray(pixels))) == pixels).all()
    assert (decode("google.webp", encoded(Image.fromarray(pixels), "WEBP", lossless=True)) == pixels).all()
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode("jpg", simplejpeg.encode_jpeg(smooth)).astype(int) - smooth).max() < 4
    grey = decode("png", encoded(Image.fromarray(pixels[..., 0])))
    assert grey.shape == (9, 7, 3) and (grey[..., 0] == pixels[..., 0]).all()


def test_transparent_pixels_become_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    out = decode("png", encoded(Image.fromarray(rgba)))
    assert (out[:2] == (255, 0, 0)).all() and (out[2:] == 255).all()
    palette = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    assert (decode("png", encoded(palette, transparency=0))[0, 1] == 255).all()


def test_sixteen_bits_and_cmyk():
    deep = (np.arange(16, dtype=np.uint16) * 4096).reshape(4, 4)
    assert (decode("png", encoded(Image.fromarray(deep)))[..., 1] == np.rint(deep / 257)).all()
    cmyk = Image.fromarray(np.zeros((8, 8, 4), np.uint8), "CMYK")
    assert decode("jpg", encoded(cmyk, "JPEG")).shape == (8, 8, 3)


def test_other_values():
    assert decode("txt", "größe".encode()) == "größe"
    assert decode("json", b'{"a": [1]}') == {"a": [1]}
    assert decode("cls", b"7\n") == 7
    buffer = io.BytesIO()
    np.save(buffer, np.eye(3))
    assert (decode("npy", buffer.getvalue()) == np.eye(3)).all()


def test_nothing_on_the_list_unpickles(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Attack()], dtype=object), allow_pickle=True)
    for extension in DECODERS:
        for data in (pickle.dumps(Attack()), buffer.getvalue()):
            with pytest.raises(ValueError, match="does not decode"):
                decode(extension, data)
    assert not (tmp_path / "owned").exists()


def test_unknown_extensions():
    assert kind("left.PNG") == "png" and is_known("left.PNG")
    assert not is_known("pkl")
    with pytest.raises(ValueError, match=r"no decoder for .pkl; known: avi, avif, bmp, cls"):
        decode("pkl", b"")
