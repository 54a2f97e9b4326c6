"""Files that mean harm, or are odd: they start nothing, take no memory, stop no training, change no data in silence."""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import packable
from tests.process import environment
from tests.viewshards.test_decode import encoded
from tests.viewshards.test_pack import packed
from tests.viewshards.test_video import movie, numbered
from viewshards import Captions, ShardDataModule
from viewshards import index as indices
from viewshards.cache import ShardCache, is_remote
from viewshards.cli import main
from viewshards.decode import decode
from viewshards.existing import inspect
from viewshards.index import BrokenShard, Index
from viewshards.limits import Limits
from viewshards.pictures import picture
from viewshards.sample import BrokenSample, Contents
from viewshards.shards import MANIFEST, Manifest, ShardSet, changes
from viewshards.sources import Options, open_source
from viewshards.tars import build_index
from viewshards.verify import verify
from viewshards.video import Tracks, Video
from viewshards.views import Augmentation, MultiView, PointViews, SimCLR, VideoViews

PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)))


def npy(value, **options):
    buffer = io.BytesIO()
    np.save(buffer, value, **options)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def tar_of(path, samples):
    """A plain tar of samples: {key: {extension: bytes}}."""
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for extension, data in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def shards_of(folder, samples):
    folder.mkdir(parents=True, exist_ok=True)
    tar_of(folder / "set-train-0.tar", samples)
    build_index(folder)
    return folder


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program `gs` in front of any other: the file it leaves says that it was started."""
    marker, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield marker
    assert not marker.exists()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


# Decoders.


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "a.png"])
def test_a_picture_that_is_a_program_starts_none(ghostscript, tmp_path, extension):
    with pytest.raises(ValueError, match="does not decode"):
        decode(extension, EPS)
    for suffix in (".png", ".jpg", ".tif", ".gif", ".bmp", ".webp"):
        file = tmp_path / f"x{suffix}"
        file.write_bytes(EPS)
        with pytest.raises((ValueError, OSError)):
            picture(packable(file)[1])
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/0.png").write_bytes(EPS)
    with pytest.raises(ValueError, match="known format"):
        packable(tmp_path / "frames")
    for other in (
        b"\xd7\xcd\xc6\x9a" + bytes(100),
        b"SIMPLE  =                    T" + bytes(2880),
    ):
        with pytest.raises(ValueError, match="does not decode"):
            decode(extension, other)


def huge_png(side):
    ihdr = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def huge_jpeg(side):
    import simplejpeg

    data = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def test_sizes_are_looked_at_before_anything_is_unpacked():
    for extension, data in (("png", huge_png(13_000)), ("jpg", huge_jpeg(65_500)), ("webp", huge_png(60_000))):
        with pytest.raises(ValueError, match=r"pixels.*limit of 50,000,000.*--limit pixels=|exceeds limit"):
            decode(extension, data)
    small = encoded(Image.fromarray(np.zeros((100, 100), np.uint8)))
    with pytest.raises(ValueError, match="more than the limit of 9,999"):
        decode("png", small, Limits(pixels=9_999))
    assert decode("png", small, Limits(pixels=10_000)).shape == (100, 100, 3)


@pytest.mark.parametrize(
    "text",
    [b"1" * 31, b"1_0", b"+5", "٣".encode(), b"1e3", b"0x10", b"", b"-2", b"1.0", b"nan", b"1 2", b"c" * 300],
)
def test_class_numbers_are_digits_and_bounded(text, tmp_path):
    with pytest.raises(ValueError, match=r"\.cls does not decode"):
        decode("cls", text)
    tar_of(tmp_path / "a-train.tar", {"0": {"png": PNG, "cls": text}})
    with pytest.raises(BrokenShard, match=r"a-train.tar: 0: .cls"):
        build_index(tmp_path)
    assert [decode("cls", right) for right in (b"7\n", b" 0", b"-1", b"999999")] == [7, 0, -1, 999999]
    with pytest.raises(ValueError, match="more than the limit"):
        decode("cls", b"30000000")
    assert decode("cls", b"30000000", Limits(classes=30_000_001)) == 30_000_000


def test_json_and_texts_are_bounded():
    deep = b"[" * 65 + b"]" * 65
    for data, limits in (
        (deep, Limits()),
        (b"[" * 200_000, Limits()),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, Limits()),
        (b'["' + b"x" * 100 + b'"]', Limits(json_bytes=100)),
        (b"1" * 10_000, Limits()),
    ):
        with pytest.raises(ValueError, match=r"\.json does not decode"):
            decode("json", data, limits)
    assert decode("json", deep[1:-1]) is not None
    with pytest.raises(ValueError, match="limit of 10"):
        decode("txt", b"x" * 11, Limits(text_bytes=10))


def test_arrays_are_as_large_as_they_say():
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"
    asks = header.ljust(127) + b"\n"
    for data in (
        asks + bytes(10),
        npy(np.zeros(10))[:-1],
        npy(np.zeros(10)) + b"x",
        npy(np.array(["text"])),
        npy(np.zeros(3, [("a", "f4")])),
        npy(np.array([{}], object), allow_pickle=True),
        b"\x93NUMPY\x03\x00",
        header.replace(b"(1000000000000,)", b"(-1, -10)").ljust(127) + b"\n" + bytes(10),
    ):
        with pytest.raises(ValueError, match=r"\.npy does not decode"):
            decode("npy", data)
    for value in (
        np.eye(3),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float32(3),
        np.array([True]),
    ):
        found = decode("npy", npy(value))
        assert found.dtype == np.asarray(value).dtype and (found == value).all() and found.shape == np.shape(value)
    with pytest.raises(ValueError, match="limit of 10"):
        decode("npy", npy(np.zeros(10)), Limits(array_bytes=10))


def test_only_the_arrays_that_are_asked_for_are_unpacked():
    buffer = io.BytesIO(npz(ids=np.zeros((2, 4, 4), np.int64)))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.npy", npy(np.zeros(2_000_000)))
    whole = buffer.getvalue()
    # The bomb's bytes are spoilt: whoever unpacks it fails.
    at = whole.find(b"bomb.npy") + 40
    spoilt = whole[:at] + bytes(200) + whole[at + 200 :]
    arrays = decode("traj.npz", spoilt)
    assert Tracks.of(arrays).ids.shape == (2, 4, 4) and "bomb" in arrays
    with pytest.raises(ValueError, match="bomb does not unpack"):
        arrays["bomb"]
    with pytest.raises(ValueError, match="limit of"):
        decode("traj.npz", whole, Limits(array_bytes=1000))["bomb"]
    clip = {"frames.npy": npy(np.zeros((2, 8, 8, 3), np.uint8)), "traj.npz": spoilt}
    assert Contents(clip).problems() == []


@pytest.mark.parametrize(
    "arrays",
    [
        {"masks": np.full((2, 4, 4), 10**9), "graph": np.zeros((1, 2), int)},
        {"ids": np.full((2, 4, 4), 10**9)},
        {"ids": np.full((2, 4, 4), -1)},
        {"ids": np.zeros((2, 4, 4))},
        {"ids": np.zeros((2, 4), int)},
        {"ids": np.zeros((0, 4, 4), int)},
        {"ids": np.zeros((2, 4, 4), int), "frame_index": np.array([0, 99])},
        {"ids": np.zeros((2, 4, 4), int), "frame_index": np.array([-1, 0])},
        {"ids": np.zeros((2, 4, 4), int), "frame_index": np.array([0.0, 1.0])},
        {"ids": np.zeros((2, 4, 4), int), "frame_index": np.array([0])},
        {"masks": np.ones((2, 4, 4), int), "graph": np.ones((1, 3), int)},
        {"masks": np.ones((2, 4, 4), int), "graph": np.full((1, 2), 7)},
        {"other": np.zeros(3)},
    ],
)
def test_tracks_fit_their_clip(arrays):
    files = {"frames.npy": npy(np.zeros((5, 8, 8, 3), np.uint8)), "traj.npz": npz(**arrays)}
    with pytest.raises(BrokenSample, match="traj.npz"):
        Contents(files).clip("frames.npy")
    assert Contents(files).problems()


def test_clips_are_of_known_containers(tmp_path):
    """FFmpeg knows play lists, which name other files; a clip is what its first bytes say."""
    secret = tmp_path / "secret.mp4"
    movie(secret, numbered(10))
    for data in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        f"RIFF0000WAVE{secret}".encode(),
        b"", b"\x00" * 100, EPS,
    ):  # fmt: skip
        for extension in ("mp4", "webm"):
            with pytest.raises(ValueError, match="known container"):
                decode(extension, data)
    whole = secret.read_bytes()
    assert Video(whole).length == 10
    with pytest.raises(ValueError, match="frames of a clip: 10, more than the limit of 9"):
        Video(whole, Limits(frames=9))
    with pytest.raises(ValueError, match="frames of 32 x 32 pixels: 1,024, more than the limit of 1,000"):
        Video(whole, Limits(pixels=1000))
    # A header that names a thousand million frames.
    at = whole.find(b"stsz") + 12
    lies = whole[:at] + struct.pack(">I", 10**9) + whole[at + 4 :]
    with pytest.raises(ValueError):
        Video(lies).check()


# Clouds and meshes.


def test_a_mesh_opens_no_other_file(ghostscript, tmp_path):
    (tmp_path / "x.mtl").write_text("newmtl a\nmap_Kd x.png\n")
    (tmp_path / "x.png").write_bytes(EPS)
    faces = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl a\nf 1/1 2/2 3/3\n"
    (tmp_path / "a.obj").write_text(f"mtllib x.mtl\n{faces}")
    assert decode(*packable(tmp_path / "a.obj")).shape == (8192, 3)
    ply = "ply\nformat ascii 1.0\ncomment TextureFile x.png\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nproperty float s\nproperty float t\n"
    ply += (
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n3 0 1 2\n"
    )
    (tmp_path / "a.ply").write_text(ply)
    assert decode(*packable(tmp_path / "a.ply")).shape == (8192, 3)


def meshes(folder):
    import trimesh

    box = trimesh.creation.icosphere(2)
    for name in ("a.ply", "a.obj", "a.off"):
        box.export(folder / name)
    box.export(folder / "text.ply", encoding="ascii")
    trimesh.PointCloud(box.vertices).export(folder / "points.ply")
    return [folder / name for name in ("a.ply", "a.obj", "a.off", "text.ply", "points.ply")]


def test_cut_meshes_and_lying_headers_are_told(tmp_path):
    for path in meshes(tmp_path):
        whole = path.read_bytes()
        packable(path)
        for share in (0.1, 0.5, 0.97):
            if path.suffix == ".obj":  # which names no counts: only faces without their vertices show
                continue
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(ValueError, match=f"{path.name} is no readable"):
                packable(path)
    (tmp_path / "b.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\n"
        b"property float z\nend_header\n" + bytes(96)
    )
    (tmp_path / "b.off").write_text("OFF\n4000000000 1 0\n0 0 0\n3 0 1 2\n")
    (tmp_path / "b.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 9\n")
    for name in ("b.ply", "b.off", "b.obj"):
        with pytest.raises(ValueError, match="no readable"):
            packable(tmp_path / name)


def test_an_hdf5_file_reads_no_other_file(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"], file["label"] = np.zeros((4, 8, 3), np.float32), np.zeros(4, int)
    attacks = {
        "external": lambda f: f.update(data=h5py.ExternalLink(str(secret), "data")),
        "soft": lambda f: f.update(data=h5py.SoftLink("/other")),
        "storage": lambda f: f.create_dataset("data", (4, 8, 3), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]),
        "virtual": lambda f: f.create_virtual_dataset("data", layout()),
        "huge": lambda f: f.create_dataset("data", (10**6, 10**5, 3), "f4", chunks=(1, 100, 3)),
        "types": lambda f: f.create_dataset("data", (4, 8, 3), "S4"),
        "group": lambda f: f.create_group("data"),
        "class": lambda f: (
            f.create_dataset("data", (4, 8, 3), "f4"),
            f.__delitem__("label"),
            f.update(label=np.full(4, 10**9)),
        ),
    }

    def layout():
        made = h5py.VirtualLayout((4, 8, 3), "f4")
        made[:] = h5py.VirtualSource(str(secret), "data", (4, 8, 3))
        return made

    for name, attack in attacks.items():
        folder = tmp_path / name
        folder.mkdir()
        with h5py.File(folder / "x.h5", "w") as file:
            file["label"] = np.zeros(4, int)
            attack(file)
        with pytest.raises(ValueError, match=r"x.h5"):
            open_source(str(folder))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(ValueError, match=r"x.h5"):
        open_source(str(tmp_path / "bad"))


# Tars.


def add(archive, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def test_hard_links_are_the_file_they_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.txt", b"zero")
        add(archive, "1.txt", b"", type=tarfile.LNKTYPE, linkname="0.txt")
        add(archive, "2.txt", b"two")
    index = indices.scan(tmp_path / "a.tar")
    descriptor = os.open(tmp_path / "a.tar", os.O_RDONLY)
    try:
        assert [index.read(descriptor, i)["txt"] for i in range(3)] == [b"zero", b"zero", b"two"]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("1.txt", {"type": tarfile.LNKTYPE, "linkname": "9.txt"}, "'1.txt' is a hard link to '9.txt'"),
        ("1.txt", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "hard link to '/etc/passwd'"),
        ("1.txt", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'1.txt' is a symbolic link"),
        ("1.txt", {"type": tarfile.FIFOTYPE}, "'1.txt' is a device"),
        ("1.txt", {"type": tarfile.CHRTYPE}, "'1.txt' is a device"),
        ("1.txt", {"type": tarfile.BLKTYPE}, "'1.txt' is a device"),
        ("x" * 10_000 + ".txt", {}, "bytes of the name"),
        ("x" * 2_000_000 + ".txt", {}, "a header of"),
        ("1.txt", {"pax_headers": {"comment": "x" * 3_000_000}}, "a header of"),
        ("1.txt", {"pax_headers": {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4", "GNU.sparse.name": "x"}}, "1.txt|sparsely"),
    ],
)  # fmt: skip
def test_members_that_a_shard_cannot_hold_are_refused_by_name(tmp_path, name, fields, said):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "0.txt", b"zero")
        add(archive, name, b"" if "type" in fields else b"data", **fields)
        add(archive, "2.txt", b"two")
    if "GNU.sparse.map" in fields.get("pax_headers", {}):
        fake = subprocess.run(["tar", "--version"], capture_output=True).returncode == 0
        assert fake
        sparse = tmp_path / "s.txt"
        with sparse.open("wb") as f:
            f.seek(1 << 20)
            f.write(b"end")
        subprocess.run(["tar", "-cSf", tmp_path / "a.tar", "-C", tmp_path, "s.txt"], check=True)
    with pytest.raises(BrokenShard, match=said) as caught:
        indices.scan(tmp_path / "a.tar")
    assert str(tmp_path / "a.tar") in str(caught.value) and len(str(caught.value)) < 500


def test_what_follows_the_end_of_a_tar_is_told(tmp_path):
    one, two = (tar_of(tmp_path / f"{i}.tar", {str(i): {"txt": b"text"}}) for i in range(2))
    for after in (two.read_bytes(), b"x", bytes(10240) + b"x"):
        (tmp_path / "both.tar").write_bytes(one.read_bytes() + after)
        with pytest.raises(BrokenShard, match="something follows its end"):
            indices.scan(tmp_path / "both.tar")
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + bytes(10240))
    assert len(indices.scan(tmp_path / "both.tar")) == 1


def test_a_pipe_called_tar_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a-train.tar")
    with pytest.raises(BrokenShard, match="not a file"):
        build_index(tmp_path)
    (tmp_path / "a-train.tar").unlink()
    shards_of(tmp_path, {"0": {"png": PNG}})
    (tmp_path / "set-train-0.tar").unlink()
    os.mkfifo(tmp_path / "set-train-0.tar")
    with pytest.raises(BrokenShard, match="is not a file"):
        ShardSet(str(tmp_path), "train")
    assert any("not a file" in problem for problem in verify(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(OSError, match="not a file"):
        Manifest.load(str(tmp_path))


def test_keys_of_any_bytes_go_through(tmp_path, digits):
    names = ["a b", "a\nb", "a'b", 'a"b', "a$(touch x)b", "a;b", "a`b`", "[red]x", "\x1b[31mx", "über", "\udcff"]
    samples = {f"{i}-{name}": {"png": PNG, "cls": b"0"} for i, name in enumerate(names)}
    shards_of(tmp_path, samples)
    assert list(verify(tmp_path)) == []
    shards = ShardSet(str(tmp_path), "train")
    keys = [shards.key(i) for i in range(len(shards))]
    assert keys[:-1] == list(samples)[:-1] and keys[-1] == "10-\\xff"
    batch = next(iter(ShardDataModule(str(tmp_path), 11, SimCLR(8), workers=0).train_dataloader()))
    assert sorted(batch["key"]) == sorted(keys)


def test_files_of_a_sample_that_lie_apart_are_one_sample(tmp_path):
    with tarfile.open(tmp_path / "a-train.tar", "w") as archive:
        for i in range(4):
            add(archive, f"{i}.txt", f"text {i}".encode())
        for i in range(4):
            add(archive, f"{i}.cls", str(i).encode())
    build_index(tmp_path)
    shards = ShardSet(str(tmp_path), "train")
    assert [shards.read(i) for i in range(len(shards))] == [
        {"cls": str(i).encode(), "txt": f"text {i}".encode()} for i in range(4)
    ]


# Indices, manifests, and tars that are not those of the manifest.


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "copy")


def index_of(root):
    tar = sorted(root.glob("*-train-*.tar"))[0]
    return tar, indices.path_of(str(tar)), indices.load(indices.path_of(str(tar)))


@pytest.mark.parametrize("change", ["sizes", "hidden labels", "extensions", "keys", "offsets"])
def test_a_changed_index_is_refused_and_found(copy, change):
    _, path, index = index_of(copy)
    places, keys, extensions = index.places.copy(), index.keys.copy(), list(index.extensions)
    if change == "sizes":
        places[:, extensions.index("png"), 1] -= 1
    elif change == "hidden labels":
        places[:, extensions.index("cls"), 1] = -1
    elif change == "extensions":
        extensions = extensions[::-1]
    elif change == "keys":
        keys[:2] = keys[:2][::-1]
    else:
        places[0], places[1] = index.places[1], index.places[0]
    indices.save(Index(index.bytes, keys, extensions, places), path)
    shards = ShardSet(str(copy), "train")
    with pytest.raises(BrokenShard, match="its sha256 differs from the manifest's"):
        shards.read(0)
    problems = list(verify(copy))
    assert len(problems) == 1 and "sha256 differs" in problems[0]


def test_a_tar_of_the_same_size_with_other_members_is_noticed_when_it_is_read(copy):
    tar, _, index = index_of(copy)
    with tarfile.open(tar) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]
    with tarfile.open(tar, "w") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member.name.replace("0", "9", 1))
            info.size = member.size
            archive.addfile(info, io.BytesIO(data))
    data = tar.read_bytes()[: index.bytes]
    tar.write_bytes(data + bytes(index.bytes - len(data)))
    shards = ShardSet(str(copy), "train")
    with pytest.raises(BrokenShard, match="another member where"):
        shards.read(0)
    with pytest.raises(BrokenShard, match="16 samples in a row cannot be read"):
        list(ShardDataModule(str(copy), 64, SimCLR(8), workers=0).train_dataloader())
    assert any("sha256" in problem or "index" in problem for problem in verify(copy))


@pytest.mark.slow
def test_verify_finds_every_changed_byte(copy):
    """Of a tar, an index or the manifest: one byte each, at 60 random places."""
    assert list(verify(copy)) == []
    rng, files = random.Random(0), [*sorted(copy.glob("*.tar"))[:1], *sorted(copy.glob("*.npz"))[:1], copy / MANIFEST]
    for other in copy.glob("*"):  # one shard is enough, and quicker
        if other.name.startswith("digits-") and not other.name.startswith(files[0].name[:-4]):
            other.unlink()
    manifest = Manifest.load(str(copy))
    manifest.splits = {"train": manifest.splits["train"][:1]}
    manifest.save(copy)
    assert list(verify(copy)) == []
    for number in range(60):
        path = files[number % 3]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(ValueError) if path.name == MANIFEST else contextlib.nullcontext():  # none any more
            assert list(verify(copy)), f"{path}: not found"
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "file", ["../../x.tar", "/etc/x.tar", "a/../../x.tar", "http://x/y.tar", "x.zip", "", 3, None, "x\0.tar"]
)
def test_a_manifest_names_no_file_outside(copy, file):
    content = json.loads((copy / MANIFEST).read_text())
    content["splits"]["train"][0]["file"] = file
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"splits.train\[0\].file: expected the path of a .tar below"):
        ShardSet(str(copy), "train")


@pytest.mark.slow
def test_a_manifest_is_what_it_should_be_or_refused_in_one_line(copy):
    """2,000 mutations: of the text, and of values to those of other types."""
    whole = (copy / MANIFEST).read_text()
    rng = random.Random(0)
    values = [None, -1, 1.5, "x", [], {}, True, 10**30, [[]], {"a": 1}, "../x"]

    def mutated(value):
        if rng.random() < 0.05:
            return rng.choice(values)
        if isinstance(value, dict):
            return {k: mutated(v) for k, v in value.items() if rng.random() > 0.01}
        if isinstance(value, list):
            return [mutated(v) for v in value]
        return value

    for number in range(2000):
        if number % 2:
            data = bytearray(whole.encode())
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (copy / MANIFEST).write_bytes(data)
        else:
            (copy / MANIFEST).write_text(json.dumps(mutated(json.loads(whole))))
        try:
            ShardSet(str(copy), "train").read(0)
        except (ValueError, OSError) as error:
            assert "Traceback" not in str(error)


# Other data.


def module(root, **options):
    return ShardDataModule(str(root), 4, SimCLR(8), workers=0, **options)


def samples(count=10):
    rng = np.random.default_rng(1)
    made = {}
    for i in range(count):
        pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
        made[f"{i:03d}"] = {"png": encoded(Image.fromarray(pixels)), "cls": str(i % 3).encode()}
    return made


def change_of(name, made):
    if name == "samples":
        return samples(11)
    if name == "labels":
        made["003"]["cls"] = b"2" if made["003"]["cls"] != b"2" else b"1"
    elif name == "pixels":
        made["003"]["png"] = made["004"]["png"]
    elif name == "names":
        made = {f"x{key}": files for key, files in made.items()}
    elif name == "captions":
        for files in made.values():
            files["txt"] = b"new"
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("samples", "10 samples there, 11 now"),
        ("labels", "labels differ (.cls)"),
        ("pixels", "contents of .png differ"),
        ("names", "names of samples differ"),
        ("captions", "contents of .txt differ"),
    ],
)
def test_changed_data_stops_a_resume_in_words(tmp_path, name, said, caplog):
    state = module(shards_of(tmp_path / "set", samples())).state_dict()
    same = shards_of(tmp_path / "elsewhere/set", samples())  # the same data in another place, another time
    module(same).load_state_dict(state)
    other = shards_of(tmp_path / "other/set", change_of(name, samples()))
    with pytest.raises(ValueError) as caught:
        module(other).load_state_dict(state)
    assert f"train: {said}" in str(caught.value) and "--data.accept_changed_data true" in str(caught.value)
    module(other, accept_changed_data=True).load_state_dict(state)
    assert said in caplog.text and "as accepted" in caplog.text


def test_other_class_names_and_other_validation_data_stop_it_too(copy, digits):
    state = module(digits).state_dict()
    manifest = Manifest.load(str(copy))
    manifest.labels["cls"] = manifest.labels["cls"][::-1]
    manifest.save(copy)
    with pytest.raises(ValueError, match="names of classes differ"):
        module(copy).load_state_dict(state)
    manifest = Manifest.load(str(digits))
    manifest.splits["val"].pop()
    manifest.save(copy)
    with pytest.raises(ValueError, match="val: 360 samples there, 300 now"):
        module(copy).load_state_dict(state)


def test_an_index_made_fast_knows_sizes_and_times_and_says_so(tmp_path, capsys, caplog):
    root = shards_of(tmp_path / "set", samples())
    by_contents = module(root).state_dict()
    assert main(["index", str(root), "--fast"]) == 0
    assert "contents were not hashed" in capsys.readouterr().err
    state = module(root).state_dict()
    assert "known by sizes and times only" in caplog.text
    module(root).load_state_dict(state)
    os.utime(root / "set-train-0.tar", ns=(1, 1))
    with pytest.raises(ValueError, match="written at another time"):
        module(root).load_state_dict(state)
    with pytest.raises(ValueError, match="cannot be compared"):
        module(root).load_state_dict(by_contents)
    assert list(verify(root)) == []
    assert changes("nonsense", ShardSet(str(root), "train").fingerprint) == ["the fingerprint there cannot be read"]


def test_cells_and_clusters_are_of_these_shards(tmp_path, caplog):
    root, other = shards_of(tmp_path / "a", samples()), shards_of(tmp_path / "b", change_of("pixels", samples()))
    module(root).keep_numbers(tmp_path / "clusters.npz", np.arange(10) % 2)
    assert module(root).numbers(tmp_path / "clusters.npz").tolist() == [0, 1] * 5
    with pytest.raises(ValueError, match=r"clusters.npz is of other data than .*contents of .png differ"):
        next(iter(module(other, clusters=str(tmp_path / "clusters.npz")).train_dataloader()))
    module(other, accept_changed_data=True).numbers(tmp_path / "clusters.npz")
    np.save(tmp_path / "own.npy", np.arange(10) % 2)
    module(root).numbers(tmp_path / "own.npy")
    assert "does not say of which samples it is" in caplog.text
    for wrong in (npy(np.zeros(10)), npy(np.array([{}], object), allow_pickle=True), b"", npz(other=np.zeros(3))):
        for name in ("x.npy", "x.npz"):
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(ValueError, match=name):
                module(root).numbers(tmp_path / name)


def test_packing_again_compares_times_and_then_contents(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.bmp")
    packed(folder, tmp_path / "out", shard_samples=4)
    assert main(["pack", str(folder), str(tmp_path / "out"), "--shard-samples", "4"]) == 0
    assert "packed already" in capsys.readouterr().err
    os.utime(folder / "0.bmp", ns=(1, 1))
    assert main(["pack", str(folder), str(tmp_path / "out"), "--shard-samples", "4"]) == 0
    said = capsys.readouterr().err
    assert "written anew; comparing their contents" in said and "packed already" in said
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "0.bmp")  # every pixel, the same size
    assert main(["pack", str(folder), str(tmp_path / "out"), "--shard-samples", "4"]) == 2
    assert "the same files with other contents" in capsys.readouterr().err


# Samples.

GOOD = {"png": PNG, "cls": b"1", "txt": b"a thing", "json": b'{"captions": ["a", "b"], "size": [1, 2]}'}
ODD = {
    f"json {i}": {**GOOD, "json": json.dumps(value).encode()}
    for i, value in enumerate(
        [
            {"captions": 5}, {"captions": [1, 2]}, {"captions": [["a"]]}, {"captions": {"en": "a"}}, {"captions": [None]},
            {"captions": ["a", "b"], "hard_captions": [["x"]]}, {"captions": ["a"], "hard_captions": "x"},
            {"captions": ["a"], "hard_captions": [5]}, {"captions": ["a"], "hard_captions": [[5]]},
            {"captions": ["a", "b"], "languages": ["en"]}, {"captions": ["a"], "languages": [3]}, {"same": "x"}, {"same": 1.5},
            {"same": -2}, {"same": 10**30}, {"same": [1]}, {"cases": 3}, {"cases": {"true": 5}}, {"cases": {"order": ["x"]}},
            {"cases": {"true": "x", "order": 3}}, {"cases": {"true": "x", "order": []}}, {"colour": {"a": 1}}, {"colour": [1]},
        ]
    )
}  # fmt: skip
ODD |= {
    "not JSON": {**GOOD, "json": b"{"},
    "deep": {**GOOD, "json": b"[" * 100_000},
    "no UTF-8": {**GOOD, "txt": b"\xff\xfe"},
    "no picture": {"cls": b"1", "txt": b"x"},
    "no number": {**GOOD, "cls": b"one"},
    "half a picture": {**GOOD, "png": PNG[: len(PNG) // 2]},
    "a program": {**GOOD, "png": EPS},
    "an empty picture": {**GOOD, "png": b""},
}


def mixed(folder, odd, good=GOOD, count=20):
    """One odd sample among good ones, with a label field of the `.json`."""
    made = {f"{i:03d}": good for i in range(count)} | {"007": odd}
    root = shards_of(folder, dict(sorted(made.items())))
    manifest = Manifest.load(str(root))
    manifest.labels["colour"] = ["red"]
    manifest.save(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_sample_is_replaced_counted_and_found_by_verify(tmp_path, name):
    if name == "no number":
        root = mixed(tmp_path / "set", {**ODD[name], "cls": b"0"})
        tar = root / "set-train-0.tar"
        made = {f"{i:03d}": GOOD for i in range(20)} | {"007": ODD[name]}
        tar_of(tar, dict(sorted(made.items())))
        manifest = Manifest.load(str(root))
        from viewshards.writer import describe

        indices.save(indices.scan(tar), indices.path_of(str(tar)))
        manifest.splits["train"] = [describe(tar)]
        manifest.save(root)
    else:
        root = mixed(tmp_path / "set", ODD[name])
    text, label = Captions(hard=1, context=8), "cls" if name == "no number" else "colour"
    data = ShardDataModule(str(root), 20, SimCLR(8), workers=0, text=text, label=label, max_broken=0.1, lanes=1)
    (batch,) = list(data.train_dataloader())
    problems = batch["replaced"]
    assert len(problems) == 1 and "007, sample 7: " in problems[0] and "set-train-0.tar" in problems[0]
    assert 7 not in batch["index"].tolist() and batch["weight"].sum() == 19
    (evaluated,) = list(data.evaluation_loader("train", batch_size=20))
    assert evaluated["weight"].tolist().count(0) == 1 and evaluated["replaced"]
    found = list(verify(root))
    assert name == "no picture" or (len(found) == 1 and "007: " in found[0]), found
    inspect(str(root), "train")
    assert main(["inspect", str(root), "--sheet", str(tmp_path / "sheet.png")]) == 0


CLOUD = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "value",
    [
        np.full((64, 3), np.nan, np.float32), np.zeros((64, 2), np.float32), np.zeros((0, 3), np.float32), np.zeros(3),
        np.zeros((64, 3), np.int64), np.full((64, 3), np.inf), np.zeros((2, 2, 2, 2), np.float32), np.array(["x"]),
        np.zeros((64, 3), bool), np.full((64, 3), 1e300),
    ],
)  # fmt: skip
def test_an_odd_cloud_is_replaced_and_found_by_verify(tmp_path, value):
    root = mixed(tmp_path / "set", {"points.npy": npy(value), "cls": b"0"}, {"points.npy": npy(CLOUD), "cls": b"0"})
    data = ShardDataModule(str(root), 20, PointViews(32), workers=0, max_broken=0.1, lanes=1)
    (batch,) = list(data.train_dataloader())
    assert len(batch["replaced"]) == 1 and "sample 7" in batch["replaced"][0]
    assert len(list(verify(root))) == 1


@pytest.mark.slow
def test_an_odd_clip_is_replaced_and_found_by_verify(tmp_path):
    whole = movie(tmp_path / "a.mp4", numbered(12, 64), keyframes=3).read_bytes()
    frames = npy(numbered(6))
    rng, odd = random.Random(0), [b"", whole[: len(whole) // 2], npy(np.zeros((5, 8, 8), np.uint8))]
    for _ in range(6):  # damaged in the middle, where the frames are
        data = bytearray(whole)
        at = rng.randrange(len(data) // 3, len(data) // 2)
        data[at : at + 200] = rng.randbytes(200)
        odd.append(bytes(data))
    views = VideoViews(4, [Augmentation(16)])
    for number, data in enumerate(odd):
        name = "mp4" if number != 2 else "frames.npy"
        root = mixed(tmp_path / f"set{number}", {name: data, "cls": b"0"}, {"frames.npy": frames, "cls": b"0"})
        loaded = ShardDataModule(str(root), 20, views, workers=0, max_broken=0.1, lanes=1)
        broken = 0
        for epoch in range(3):
            loader = loaded.train_dataloader()
            loader.batch_sampler.set_epoch(epoch)
            (batch,) = list(loader)
            broken += len(batch["replaced"])
        assert number > 2 or broken == 3
        assert not broken or list(verify(root)), f"{number}: training stumbles and verify does not"


@pytest.mark.slow
def test_numeric_fields_are_of_one_shape_and_finite(tmp_path):
    good = {**GOOD, "json": b'{"size": [1, 2]}'}
    for wrong in ([1], [1, "x"], {"a": 1}, [[1, 2]], [1, None], "x", [1e400, 1]):
        root = mixed(
            tmp_path / f"{len(str(wrong))}{wrong!s:.3}".replace("/", ""),
            {**good, "json": json.dumps({"size": wrong}).encode()},
            good,
        )
        data = ShardDataModule(str(root), 20, SimCLR(8), workers=0, fields=["size"], max_broken=0.1, lanes=1)
        (batch,) = list(data.train_dataloader())
        assert (
            len(batch["replaced"]) == 1 and batch["size"].shape == (20, 2) and bool(torch.isfinite(batch["size"]).all())
        )


def test_a_sample_with_fewer_views_is_left_out_of_the_evaluation(tmp_path):
    root = mixed(tmp_path / "set", {"a.png": PNG, "cls": b"0"}, {"a.png": PNG, "b.png": PNG, "cls": b"0"})
    data = ShardDataModule(str(root), 20, SimCLR(8), workers=0, max_broken=0.1, lanes=1)
    (batch,) = list(data.evaluation_loader("train", batch_size=20))
    assert len(batch["replaced"]) == 1 and "1 natural views, most samples have 2" in batch["replaced"][0]


def test_one_broken_sample_is_counted_once_however_often_it_is_met(tmp_path):
    root = mixed(tmp_path / "set", {**GOOD, "png": b"not a picture"})
    data = ShardDataModule(str(root), 20, SimCLR(8), workers=0, max_broken=0.05, lanes=1)  # one of twenty
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            data.count_broken(batch["replaced"])
    assert len(data.broken) == 1


@pytest.mark.parametrize("odd", ["a view", "a field"])
def test_an_odd_first_sample_is_the_odd_one(tmp_path, odd):
    good = {"a.png": PNG, "b.png": PNG, "json": b'{"size": [1, 2]}'}
    first = {**good, "json": b'{"size": [1]}'} if odd == "a field" else {"a.png": PNG, "json": good["json"]}
    root = shards_of(tmp_path / "set", {f"{i:03d}": first if i == 0 else good for i in range(20)})
    data = ShardDataModule(str(root), 20, SimCLR(8), workers=0, fields=["size"], max_broken=0.1, lanes=1)
    (batch,) = list(data.evaluation_loader("train", 20)) if odd == "a view" else list(data.train_dataloader())
    assert len(batch["replaced"]) == 1 and "000, sample 0: " in batch["replaced"][0]


def test_clips_that_seek_badly_or_change_their_size(tmp_path):
    import av

    def written(path, sizes, codec, **options):
        with av.open(str(path), "w", options=options.pop("container", {})) as file:
            stream = file.add_stream(codec, rate=24, options=options)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = sizes[0], sizes[0], "yuv420p", 10
            for k, side in enumerate(sizes):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 8 * k % 256, np.uint8), format="rgb24")
                for packet in stream.encode(frame):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
        return path.read_bytes()

    container = {"movflags": "frag_keyframe+empty_moov"}
    clip = Video(written(tmp_path / "a.mp4", [32] * 30, "libx264", bf="3", container=container))
    clip.check()
    for k in range(clip.length):
        assert clip.read([k]).shape == (1, 32, 32, 3)


def test_sizes_that_become_memory_later(tmp_path):
    from viewshards.views import CentreCrop

    for shape in ((60_000, 1, 3), (1, 60_000, 3), (3, 5000, 3), (1, 1, 3)):
        assert CentreCrop(64)(np.zeros(shape, np.uint8)).shape == (64, 64, 3)
    wide = {"frames.npy": npy(np.zeros((6, 8, 8, 3), np.uint8)), "traj.npz": npz(ids=np.zeros((6, 900, 900), np.uint8))}
    with pytest.raises(BrokenSample, match="bytes of ids as whole numbers"):
        Contents(wide, Limits(array_bytes=10_000_000)).clip("frames.npy")
    text = Captions(context=16)
    assert text.tokens(["a" * 100_000, "word " * 50_000]).shape == (2, 16)
    assert (text.tokens(["a cat " * 200]) == text.tokens(["a cat " * 20])).all()


def test_what_has_no_samples_or_odd_names(tmp_path, capsys):
    root = shards_of(tmp_path / "set", {"0": {"png": PNG}})
    manifest = Manifest.load(str(root))
    manifest.splits = {"train": manifest.splits["train"], "val": [], "[/x]": manifest.splits["train"]}
    manifest.save(root)
    data = ShardDataModule(str(root), 1, SimCLR(8), workers=1)
    assert list(data.evaluation_loader("val")) == []
    assert main(["inspect", str(root), "--split", "val", "--sheet", str(tmp_path / "x.png")]) == 2
    assert main(["verify", str(root)]) == 0 and main(["inspect", str(root), "--split", "[/x]"]) == 0


def test_members_of_other_systems_and_names_with_dots(tmp_path):
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a/x-train.tar", "w") as archive:
        for i in range(4):
            add(archive, f"._{i}.png", b"AppleDouble")
            add(archive, f"{i}.png", PNG)
        add(archive, "link.png", b"", type=tarfile.LNKTYPE, linkname="3.png")  # last
    (tmp_path / "a/._x-train.tar").write_bytes(b"AppleDouble")
    manifest = build_index(tmp_path / "a")
    assert manifest.made["account"]["skipped"] == {"._*": 5} and manifest.made["account"]["packed"] == 5
    assert manifest.splits["train"][0].samples == 5 and list(verify(tmp_path / "a")) == []
    tar_of(tmp_path / "b.tar", {str(i): {f"{i:08d}.png": PNG} for i in range(1001)})
    with pytest.raises(BrokenShard, match="names with several dots: is .*--keys last-dot"):
        indices.scan(tmp_path / "b.tar")
    assert len(indices.scan(tmp_path / "b.tar", keys="last-dot")) == 1001


@pytest.mark.slow
def test_a_pack_sees_changes_of_every_source(tmp_path, capsys):
    """HDF5, frames of a clip, trajectories beside one; and a source that changes while a pack is broken off."""
    h5, clips, folder = tmp_path / "h5", tmp_path / "clips", tmp_path / "pictures"
    for made in (h5, clips, folder, tmp_path / "frames/f"):
        made.mkdir(parents=True)

    def write_h5(value):
        with h5py.File(h5 / "x.h5", "w") as file:
            file["data"], file["label"] = np.full((2, 8, 3), value, np.float32), np.zeros(2, int)

    movie(clips / "a.mp4", numbered(6))
    write_h5(1)
    (clips / "a.traj.npz").write_bytes(Tracks(np.ones((2, 4, 4), np.int64), np.array([0, 1])).to_bytes())
    for k in range(2):
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(tmp_path / f"frames/f/{k}.bmp")
    (tmp_path / "frames/t.csv").write_text("file_name\nf\n")
    changes = {
        h5: lambda: write_h5(2),
        clips: lambda: (clips / "a.traj.npz").write_bytes(
            Tracks(np.zeros((2, 4, 4), np.int64), np.array([0, 1])).to_bytes()
        ),
        tmp_path / "frames/t.csv": lambda: Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(
            tmp_path / "frames/f/0.bmp"
        ),
    }
    for number, (source, change) in enumerate(changes.items()):
        command = ["pack", str(source), str(tmp_path / f"out{number}"), "--shard-samples", "4"]
        assert main(command) == 0 and main(command) == 0
        capsys.readouterr()
        change()
        assert main(command) == 2, source
        assert "other contents" in capsys.readouterr().err
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.bmp")
    command = ["pack", str(folder), str(tmp_path / "out"), "--shard-samples", "4"]
    assert main(command) == 0
    made = json.loads((tmp_path / "out" / MANIFEST).read_text())["made"]  # as if it had been killed before its manifest
    (tmp_path / "out" / MANIFEST).unlink()
    plan = {key: value for key, value in made.items() if key not in ("account", "contents")}
    (tmp_path / "out/.pack.json").write_text(json.dumps(plan))
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(folder / "0.bmp")
    os.utime(folder / "0.bmp", ns=(1, 1))
    assert main(command) == 2 and "written since this pack began" in capsys.readouterr().err


def test_bombs_in_sources_are_left_out(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "good.bmp")
    bmp = (folder / "good.bmp").read_bytes()
    (folder / "huge.bmp").write_bytes(bmp[:18] + struct.pack("<ii", 30_000, 30_000) + bmp[26:])
    (folder / "cut.gif").write_bytes(b"GIF89a\xff\xff\xff\xff\x00\x00\x00,")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tif")
    assert main(["pack", str(folder), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert all(f"left out: {name}: " in said for name in ("huge.bmp", "cut.gif"))
    assert "--limit pixels=900000000" in said and "left out: float.tif" not in said
    deep = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for name in ("a.tif", "a.png"):
        Image.fromarray(deep).save(tmp_path / name)
        assert 120 < picture(packable(tmp_path / name)[1]).mean() < 135


# Tables.


@pytest.mark.parametrize(
    "text",
    ["5", "null", '{"file": 5}', '{"file_name": "a"}\n{"x": 1}', '{"file_name": "a", "tracks": 5}', "[1", '{"a": "b"}'],
)
def test_rows_that_are_no_rows(tmp_path, text):
    (tmp_path / "a").write_bytes(PNG)
    (tmp_path / "t.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match="t.jsonl"):
        open_source(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.csv").write_text('file_name\n"' + "x" * 200_000)
    with pytest.raises((ValueError, OSError)):
        open_source(str(tmp_path / "t.csv"))


def test_a_table_names_files_below_it_and_views_that_are_names(tmp_path):
    (tmp_path / "in").mkdir()
    for place in ("out.png", "in/a.png"):
        (tmp_path / place).write_bytes(PNG)
    for file in ("../out.png", str(tmp_path / "out.png"), "x/../../out.png"):
        table = tmp_path / "in/t.csv"
        table.write_text(f"file_name\na.png\n{file}\n")
        (tmp_path / "in/x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"line 3: .* lies outside of the table's folder; --outside"):
            open_source(str(table))
        assert len(open_source(str(table), Options(outside=True)).samples) == 2
    for view in ("a/b", "a.b", "", "a b", "../a"):
        table.write_text(f"file_name,id,view\na.png,1,{view}\n")
        with pytest.raises(ValueError, match="line 2: a view is a name"):
            open_source(str(table))


@pytest.mark.slow
def test_a_table_in_a_folder_with_any_name(tmp_path, capsys):
    for name in ("a b", "a'b", 'a"b', "a$(touch owned)b", "a;touch owned;b", "a\nb", "[red]a", "a`touch owned`"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.png").write_bytes(PNG)
        (folder / "t.jsonl").write_text(json.dumps({"file_name": f"{name}.png", "caption": name}) + "\n")
        out = tmp_path / f"{name}-out"
        assert main(["pack", str(folder / "t.jsonl"), str(out), "--val-fraction", "0"]) == 0
        assert main(["verify", str(out)]) == 0 and main(["inspect", str(out)]) == 0
        if "[" in name:
            assert name in capsys.readouterr().err.replace("\n", "")
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()


# Remote shards.


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@host/x", "https://secret@host/x", "s3://KEY:secret@bucket/x", "http://host/x?token=secret",
        "http://host/x#secret", "http://[::1/secret@x", "http://user:se/cret@host/x", "s3://KEY:se/cret@bucket/x",
        "http://host/x::http://user:secret@y",
    ],
)  # fmt: skip
def test_credentials_in_a_root_are_refused_and_not_repeated(url, tmp_path, capsys):
    for use in (is_remote, lambda root: ShardDataModule(root, 4, SimCLR(8), cache_dir=str(tmp_path))):
        with pytest.raises(ValueError) as caught:
            use(url)
        assert "secret" not in str(caught.value).replace("/x", "").replace("[::1/secret", "") or "::1" in url
    assert main(["inspect", url]) == 2
    assert "user:secret" not in capsys.readouterr().err


@pytest.fixture
def odd_server():
    """Answers without end, stalls, or sends what it is told to."""
    sent = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            name = self.path.strip("/")
            if name == "stalls.tar":
                time.sleep(30)
                return
            self.send_response(200)
            if name == "endless.tar":
                self.end_headers()
                try:
                    for _ in range(100_000):
                        self.wfile.write(bytes(65_536))
                        sent[name] = sent.get(name, 0) + 65_536
                except OSError:
                    return
            data = sent.get(f"file {name}", b"x" * 1000)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.sent, http.url = sent, f"http://127.0.0.1:{http.server_port}"
    yield http
    http.shutdown()


def test_an_answer_without_end_is_cut_off(odd_server, tmp_path):
    with pytest.raises(OSError, match=r"expected 1000"):
        ShardCache(tmp_path).fetch(f"{odd_server.url}/endless.tar", 1000)
    assert odd_server.sent["endless.tar"] < 100_000_000
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_a_server_that_stalls_is_given_up(odd_server, tmp_path, monkeypatch):
    from viewshards import cache

    monkeypatch.setattr(cache, "STALLED", 0.5)
    monkeypatch.setattr(cache, "TRIES", 2)
    with pytest.raises(OSError, match="not fetched whole"):
        ShardCache(tmp_path).fetch(f"{odd_server.url}/stalls.tar", 1000)


def test_what_is_fetched_is_what_the_manifest_says(odd_server, tmp_path):
    right = hashlib.sha256(b"x" * 1000).hexdigest()
    cache = ShardCache(tmp_path)
    assert cache.fetch(f"{odd_server.url}/a.tar", 1000, right).read_bytes() == b"x" * 1000
    odd_server.sent["file b.tar"] = b"y" * 1000
    with pytest.raises(OSError, match="sha256 differs from the manifest's: other data of the same size"):
        cache.fetch(f"{odd_server.url}/b.tar", 1000, right)


def test_the_cache_removes_its_own_files_only(odd_server, tmp_path):
    """A configuration of somebody else can name any folder as a cache."""
    (tmp_path / "thesis.txt").write_bytes(b"x" * 5000)
    (tmp_path / "folder").mkdir()
    cache = ShardCache(tmp_path, limit=1500)
    for name in ("a.tar", "b.tar", "c.tar"):
        cache.fetch(f"{odd_server.url}/{name}", 1000)
    assert (tmp_path / "thesis.txt").exists() and len(list(tmp_path.glob("*.tar"))) == 1


# Waits.


@pytest.mark.slow
def test_a_loader_that_hangs_is_given_up_and_says_which_shard(odd_server, tmp_path):
    """A server that answers with the manifest and indices and then no longer."""
    root = shards_of(tmp_path / "set", samples(16))
    for path in root.iterdir():
        odd_server.sent[f"file {path.name}"] = path.read_bytes()
    (root / "stalls").touch()
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["splits"]["train"][0]["file"] = "stalls.tar"
    odd_server.sent[f"file {MANIFEST}"] = json.dumps(manifest).encode()
    data = ShardDataModule(odd_server.url, 4, SimCLR(8), workers=2, timeout=3, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TimeoutError, match=r"no batch for 3 s \(data.timeout\); loaders are reading .*stalls.tar"):
        next(iter(data.train_dataloader()))


SCRIPT = """
import resource, sys
from viewshards import ShardDataModule
from viewshards.views import SimCLR
files = int(sys.argv[2])
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
data = ShardDataModule(sys.argv[1], 64, SimCLR(64), workers=2)
try:
    print(len(list(data.train_dataloader())), "batches")
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shm", "files", "said"), [
    ("4m", 0, "/dev/shm has 4 MB free, and 2 loaders on each of 1 rank(s) of this node need"),
    ("64m", 100, "100 files may be open at a time, and 2 loaders need about"),
    ("64m", 0, "22 batches"),
])  # fmt: skip
def test_shared_memory_and_open_files_are_looked_at_before_the_first_batch(digits, shm, files, said):
    code = [sys.executable, "-c", SCRIPT, str(digits), str(files)]
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size={shm} tmpfs /dev/shm && exec "$@"',
        "sh",
        *code,
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    assert said in done.stdout, done.stdout + done.stderr
    if "batches" not in said:
        assert "data.workers" in done.stdout


def test_limits_on_the_command_line(tmp_path, capsys):
    root = shards_of(tmp_path / "set", {"0": {"png": PNG, "cls": b"0"}})
    assert main(["verify", str(root), "--limit", "pixels=255"]) == 1
    assert "256, more than the limit of 255" in capsys.readouterr().out
    assert main(["verify", str(root), "--limit", "pixels=256"]) == 0
    for wrong, said in (
        ("pixel=3", "did you mean pixels?"),
        ("pixels=x", "expected NAME=NUMBER"),
        ("pixels=0", "at least 1"),
    ):
        assert main(["verify", str(root), "--limit", wrong]) == 2
        assert said in capsys.readouterr().err
    views = MultiView([Augmentation(8)])
    data = ShardDataModule(str(root), 1, views, workers=0, limits=Limits(pixels=255))
    with pytest.raises(BrokenShard, match="--data.limits.pixels"):
        next(iter(data.train_dataloader()))
