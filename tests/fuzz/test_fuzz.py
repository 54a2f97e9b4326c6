"""Damaged and hostile bytes at every reader: an error of one line, or values within the limits; nothing else.

Seeds are fixed. `make fuzz` gives each target fifty times as many inputs (FUZZ=50). What must hold: no other exception
than ValueError and OSError, none without a message, no input that takes longer than HANGS seconds, no growth of memory
beyond GROWTH bytes.
"""

import io
import json
import os
import random
import resource
import signal
import tarfile
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import trimesh
import yaml
from PIL import Image

from manyviews.backbones import ConvNet, Exported
from manyviews.cli.evaluate import foreign_config
from manyviews.cli.export import export_backbone
from manyviews.cli.fit import _steps_of, check_file
from manyviews.evaluation import FewShotSVM, ZeroShot
from manyviews.foreign import CONFIG_KEY
from manyviews.runs import Ledger, newest_whole
from manyviews.runs.folder import RunFolder
from manyviews.runs.storage import load
from tests.recipe import recipe
from tests.viewshards.test_hostile import GOOD, PNG, meshes, npy, npz, shards_of, tar_of
from tests.viewshards.test_video import movie, numbered
from viewshards import Captions, ShardDataModule
from viewshards import index as indices
from viewshards.decode import decode
from viewshards.limits import Limits
from viewshards.sample import Contents
from viewshards.shards import MANIFEST, ShardSet
from viewshards.sources import open_source
from viewshards.sources.clouds import cloud_of
from viewshards.tars import build_index
from viewshards.verify import verify
from viewshards.video import Video
from viewshards.views import Augmentation, PointViews, SimCLR, VideoViews

pytestmark = pytest.mark.slow
TIMES = int(os.environ.get("FUZZ", "1"))
HANGS = 30
GROWTH = 2**30
WORDS = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"-1", b"1e9", b"99999999", b"../", b"\n", b"{", b"[", b'"']  # fmt: skip


class Hang(BaseException):
    pass


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few random changes: bits, words, cuts, repeats, swaps."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind <= 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            word = rng.choice(WORDS)
            out[at : at + len(word)] = word
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 16, 512, len(out)))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 8, 512))]
        elif kind == 5:
            out[at : at + 8] = rng.randbytes(8)
        else:
            other = rng.randrange(len(out))
            out[at : at + 16], out[other : other + 16] = out[other : other + 16], out[at : at + 16]
    return bytes(out)


STRANGE = [
    None,
    -1,
    1.5,
    "x",
    "",
    [],
    {},
    True,
    10**30,
    [[]],
    {"a": 1},
    "../x",
    "os.system",
    {"class_path": "os.system"},
    ["x"],
    1e308,
]


def restructured(data: bytes, rng: random.Random) -> bytes:
    """JSON or YAML with values of other types, and keys gone or new; or mutated bytes."""
    if rng.random() < 0.3:
        return mutated(data, rng)

    def walk(value):
        if rng.random() < 0.08:
            return rng.choice(STRANGE)
        if isinstance(value, dict):
            out = {key: walk(child) for key, child in value.items() if rng.random() > 0.03}
            return {**out, "more": 1} if rng.random() < 0.02 else out
        return [walk(child) for child in value] if isinstance(value, list) else value

    return json.dumps(walk(json.loads(data))).encode()


def attack(seeds, use, times, change=mutated, allowed=(ValueError, OSError)):
    """`use` of each seed as it is, and of `times` changed ones."""
    rng, before = random.Random(0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        use(seed)

    def alarm(*_):
        raise Hang

    previous = signal.signal(signal.SIGALRM, alarm)
    try:
        for number in range(times * TIMES):
            data = change(rng.choice(seeds), rng)
            signal.alarm(HANGS)
            try:
                use(data)
            except allowed as error:
                assert str(error).strip(), f"input {number}: {type(error).__name__} without a message"
            except Hang:
                pytest.fail(f"input {number} took longer than {HANGS} s")
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < GROWTH, f"memory grew by {grown / 1e6:.0f} MB"


def trained_on(folder, views, samples):
    """Index a tar of these samples, and load each as training and evaluation do."""
    shards_of(folder, samples)
    load_all(folder, views, len(samples))


def load_all(folder, views, count):
    text = Captions(hard=1, context=4) if isinstance(views, SimCLR) else None
    data = ShardDataModule(str(folder), count, views, workers=0, text=text, max_broken=1.0, lanes=1)
    for loader in (data.train_dataloader(), data.evaluation_loader("train")):
        for sample in range(len(data.train_set)):
            loader.dataset[0, sample]


# Shards.


def test_tars(tmp_path):
    plain = tar_of(tmp_path / "a.tar", {f"{i}": GOOD for i in range(4)}).read_bytes()
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("x" * 150 + ".txt", "ü.cls"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 1, {"comment": "x" * 600}
            archive.addfile(info, io.BytesIO(b"1"))
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("y" * 300 + ".txt"), io.BytesIO(b""))
    seeds = [plain, *((tmp_path / name).read_bytes() for name in ("b.tar", "c.tar"))]

    def use(data):
        (tmp_path / "x.tar").write_bytes(data)
        index = indices.scan(tmp_path / "x.tar")
        with open(tmp_path / "x.tar", "rb") as file:
            for position in range(len(index)):
                index.read(file.fileno(), position)

    attack(seeds, use, 500)


@pytest.mark.filterwarnings("ignore:.*files of unknown type.*")
def test_training_on_damaged_tars(tmp_path):
    whole = tar_of(tmp_path / "a.tar", {f"{i:02d}": GOOD for i in range(20)}).read_bytes()

    def use(data):
        (tmp_path / "set-train-0.tar").write_bytes(data)
        build_index(tmp_path)
        load_all(tmp_path, SimCLR(8), 20)

    (tmp_path / "a.tar").unlink()
    attack([whole], use, 60)


def test_indices(tmp_path):
    root = shards_of(tmp_path, {f"{i}": GOOD for i in range(8)})
    tar = root / "set-train-0.tar"
    path = indices.path_of(str(tar))

    def use(data):
        with open(path, "wb") as file:
            file.write(data)
        index = indices.load(path)  # as if the manifest did not know its checksum
        with open(tar, "rb") as file:
            for position in range(len(index)):
                index.key(position)
                index.read(file.fileno(), position)

    with open(path, "rb") as file:
        attack([file.read()], use, 600)


@pytest.mark.parametrize("change", [mutated, restructured])
def test_manifests(tmp_path, change):
    root = shards_of(tmp_path, {f"{i}": GOOD for i in range(3)})

    def use(data):
        (root / MANIFEST).write_bytes(data)
        shards = ShardSet(str(root), "train")
        for sample in range(min(3, len(shards))):
            shards.read(sample)

    attack([(root / MANIFEST).read_bytes()], use, 600, change)


def test_verify_finds_every_changed_byte_of_a_set(tmp_path):
    root = shards_of(tmp_path, {f"{i}": GOOD for i in range(3)})
    files = [path for path in root.iterdir() if path.suffix in (".tar", ".npz", ".json")]
    rng = random.Random(0)
    for number in range(150 * TIMES):
        path = files[number % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert list(verify(root)), f"{path.name}: change {number} was not found"
        except ValueError as error:
            assert MANIFEST in str(error)
        path.write_bytes(whole)
    assert list(verify(root)) == []


# Files of a sample.


def pictures():
    image = Image.open(io.BytesIO(PNG)).resize((40, 30))
    made = {}
    for name, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        made[name] = buffer.getvalue()
    return made


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_pictures(extension):
    seeds = [pictures()[extension]]

    def use(data):
        found = decode(extension, data)
        assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8

    attack(seeds, use, 600)


@pytest.mark.parametrize(
    ("extension", "seeds"),
    [
        ("cls", [b"7", b"12345"]),
        ("txt", ["größe of a thing".encode()]),
        ("json", [GOOD["json"], b'{"a": [1, {"b": [2.5, null, "x"]}]}']),
        (
            "npy",
            [
                npy(np.eye(3)),
                npy(np.zeros((3, 4, 5, 3), np.uint8)),
                npy(np.asfortranarray(np.ones((4, 3), np.float16))),
            ],
        ),
    ],
)
def test_small_files(extension, seeds):
    attack(seeds, lambda data: decode(extension, data), 1500)


def test_points(tmp_path):
    cloud = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    views = PointViews(16)

    def use(data):
        found = Contents({"points.npy": data}).cloud("points.npy")
        assert np.isfinite(views([found], np.random.default_rng(0))[0][0]).all()

    attack([npy(cloud), npy(cloud.astype(np.float64))], use, 800)
    trained_on(tmp_path, views, {f"{i}": {"points.npy": npy(cloud)} for i in range(3)})


def test_tracks():
    ids = np.random.default_rng(0).integers(0, 4, (4, 6, 6))
    masks = {"masks": np.ones((4, 6, 6), np.int64), "graph": np.ones((1, 4), np.int64), "frame_index": np.arange(4)}
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as file:
        file.writestr("ids.npy", npy(ids))
    frames = npy(np.zeros((4, 8, 8, 3), np.uint8))

    def use(data):
        clip = Contents({"frames.npy": frames, "traj.npz": data}).clip("frames.npy")
        VideoViews(3, [Augmentation(8)], tracks=True)([clip], np.random.default_rng(0))

    attack([npz(ids=ids, frame_index=np.arange(4)), npz(**masks), stored.getvalue()], use, 800)


def test_clips(tmp_path):
    pytest.importorskip("av")
    seeds = [
        movie(tmp_path / "a.mp4", numbered(12, 32), keyframes=4).read_bytes(),
        movie(tmp_path / "a.webm", numbered(8, 32), codec="libvpx").read_bytes(),
    ]

    def use(data):
        video = Video(data, Limits(frames=1000))
        video.read([0, video.length - 1])
        video.check()

    attack(seeds, use, 250)


def test_fields_of_a_json():
    good = {
        "captions": ["a", "b"], "hard_captions": [["x"], ["y", "z"]], "languages": ["en", None], "same": 3,
        "cases": {"true": "a", "order": ["b"]}, "colour": "red", "size": [1.0, 2.0],
    }  # fmt: skip
    text, rng = Captions(hard=2, context=4), np.random.default_rng(0)

    def use(data):
        contents = Contents({"json": data, "txt": b"c"}, labels=("colour",))
        _ = contents.about, contents.group
        text.draw(contents.fields, rng)
        text.all(contents.fields)
        contents.numbers("size")

    attack([json.dumps(good).encode()], use, 1500, restructured)


# Clouds and meshes to pack.


def test_meshes(tmp_path):
    for path in meshes(tmp_path):
        target = tmp_path / f"x{path.suffix}"

        def use(data, target=target):
            target.write_bytes(data)
            cloud_of(target.name, target.read_bytes(), points=64)

        attack([path.read_bytes()], use, 120)


def test_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "data", data=np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32), compression="gzip"
        )
        file["label"] = np.arange(4)
    whole = (tmp_path / "x.h5").read_bytes()

    def use(data):
        (tmp_path / "x.h5").write_bytes(data)
        source = open_source(str(tmp_path))
        for sample in range(len(source.samples)):
            source.files(sample)

    attack([whole], use, 300)


# Runs, checkpoints, exports, lists.


def a_config():
    config = recipe("runs/data/x")
    config["model"]["init_args"]["backbone"] = {
        "class_path": "manyviews.backbones.ConvNet",
        "init_args": {"widths": [4]},
    }
    return config


def test_checkpoints(tmp_path):
    content = {CONFIG_KEY: a_config(), "state_dict": {"w": torch.zeros(3)}, "global_step": 3, "loops": {"a": [1]}}
    path = tmp_path / "step-00000003.ckpt"
    torch.save(content, path)

    def use(data):
        path.write_bytes(data)
        newest_whole(tmp_path)
        foreign_config(load(path), path)

    attack([path.read_bytes()], use, 400)


def test_configurations(tmp_path):
    whole = json.dumps(a_config()).encode()
    folder = RunFolder(tmp_path)
    (tmp_path / "run.json").write_text("{}")

    def use(data):
        folder.config_file.write_bytes(data)
        folder.check(json.loads(whole))
        check_file(folder.config_file)
        content = {CONFIG_KEY: yaml.safe_load(data), "state_dict": {}, "global_step": 0}
        foreign_config(content, folder.config_file)

    attack([whole], use, 250, restructured)


def test_files_of_a_run(tmp_path):
    account = {
        "first_step": 0,
        "devices": 1,
        "step": 5,
        "samples": 10,
        "seconds": 1.0,
        "waited": 0.1,
        "host": "x",
        "job": None,
    }
    ledger = Ledger(tmp_path / "attempts")
    ledger.folder.mkdir()

    def use(data):
        (ledger.folder / "0001.json").write_bytes(data)
        (tmp_path / "finished.json").write_bytes(data)
        ledger.all()
        ledger.summary()
        _steps_of(tmp_path / "finished.json")

    attack([json.dumps(account).encode()], use, 600, restructured, allowed=())


def test_exported_folders(tmp_path):
    net = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8]}}
    list(export_backbone(ConvNet([4, 8]), {"init_args": {"backbone": net}}, torch.zeros(1, 3, 8, 8), tmp_path))
    config, weights = ((tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors"))

    def use(data):
        (tmp_path / "config.json").write_bytes(data)
        Exported(str(tmp_path))

    def use_weights(data):
        (tmp_path / "model.safetensors").write_bytes(data)
        Exported(str(tmp_path))

    attack([config], use, 100, restructured)
    (tmp_path / "config.json").write_bytes(config)
    attack([weights], use_weights, 100)


def test_lists(tmp_path):
    bank = {"templates": ["a {c}", "the {c}"], "classnames": {"cat": "a cat"}}
    folds = {
        "details": {"folds": [{"classes": [0, 1], "train": [1, 2], "val": [3]}]},
        "shards": {"train": {"samples": 3}},
    }

    def use(data):
        (tmp_path / "x.json").write_bytes(data)
        ZeroShot(str(tmp_path / "x.json")).read(["cat"])

    def use_folds(data):
        (tmp_path / "x.json").write_bytes(data)
        shards = SimpleNamespace(shards={"samples": 3})
        FewShotSVM(folds=str(tmp_path / "x.json")).drawn(shards, shards)

    attack([json.dumps(bank).encode()], use, 800, restructured)
    attack([json.dumps({"details": folds["details"]}).encode()], use_folds, 800, restructured)


def test_cells(tmp_path):
    root = shards_of(tmp_path, {f"{i}": GOOD for i in range(8)})
    data_module = ShardDataModule(str(root), 4, SimCLR(8), workers=0)
    data_module.keep_numbers(tmp_path / "x.npz", np.arange(8) % 2)

    def use(data):
        (tmp_path / "x.npz").write_bytes(data)
        data_module.numbers(tmp_path / "x.npz")

    attack([(tmp_path / "x.npz").read_bytes()], use, 600)


assert trimesh  # meshes are made with it
