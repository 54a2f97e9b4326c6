"""What goes in is what was there: own files of every usual kind, packed, indexed, or answered with a question."""

import io
import json
import os
import tarfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from manyviews.backbones import ConvNet, TimmBackbone
from manyviews.backbones import Encoding as Encoded
from manyviews.evaluation.features import extract
from tests.conftest import QUIET, packable
from viewshards import ShardDataModule
from viewshards import index as indices
from viewshards.account import Account, Question, printable, system_file
from viewshards.cli import main
from viewshards.decode import decode
from viewshards.encoding import Encoding
from viewshards.existing import contact_sheet, inspect
from viewshards.index import BrokenShard
from viewshards.pack import pack
from viewshards.pictures import picture as decoded
from viewshards.sample import Contents
from viewshards.shards import Manifest, ShardSet
from viewshards.sources import Options, open_source
from viewshards.sources.splits import split_of
from viewshards.tars import build_index
from viewshards.verify import verify
from viewshards.video import Clip, Video
from viewshards.views import Augmentation, MultiView, SimCLR, VideoViews


def noise(seed=0, size=(60, 40)):
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)


def picture(path, seed=0, size=(24, 16), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).save(path, **options)
    return path


def pictures(root, *names):
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(source, out, how=Encoding(), leaks="keep", strict=False, **options):
    """The account, and the samples by split and key."""
    manifest = pack(open_source(str(source), Options(**options)), out, how, leaks=leaks, strict=strict, console=QUIET)
    account = manifest.made["account"]
    left = len(account["left_out"]) + sum(account["more"].values())
    parts = account["packed"] + account["tables"] + account["frames"] + sum(account["skipped"].values()) + left
    assert parts == account["found"]
    assert not list(verify(out))
    return account, samples(out)


def samples(out):
    found = {}
    for split in Manifest.load(str(out)).splits:
        shards = ShardSet(str(out), split)
        found[split] = {shards.key(i): Contents(shards.read(i), classes=shards.classes) for i in range(len(shards))}
    return found


def notes(account):
    return "\n".join(account["notes"])


def every(found):
    """All samples by the name of their file."""
    return {contents.file_name: contents for split in found.values() for contents in split.values()}


def asks(source, out, *words, **options):
    with pytest.raises((ValueError, OSError)) as caught:
        packed(source, out, **options)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert not (out / "manifest.json").exists()
    return said


# Splits.


@pytest.mark.parametrize(
    "names",
    [("train", "valid", "test"), ("train", "dev", "testing"), ("training", "validation"), ("Train", "VAL"),
     ("train2017", "val2017"), ("TRAINING", "eval"), ("train_set", "test_set"), ("data/train", "data/val")],
)  # fmt: skip
def test_usual_names_of_splits(tmp_path, names):
    root = pictures(tmp_path / "set", *(f"{name}/{c}/{i}.png" for name in names for c in "ab" for i in range(2)))
    _, found = packed(root, tmp_path / "out")
    assert set(found) == {split_of(name.rpartition("/")[2]) for name in names} <= {"train", "val", "test"}
    assert Manifest.load(str(tmp_path / "out")).labels == {"cls": ["a", "b"]}
    assert all(len(each) == 4 for each in found.values())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/a/0.png", "test/a/1.png", "car/a/2.png"], ["car/", "--splits none", "--splits train=train,test=test"]),
        (["train/a/0.png", "val/a/1.png", "extra.png"], ["extra.png", "--splits none"]),
        (["train/a/0.png", "dev/a/1.png", "valid/a/2.png"], ["dev, valid", "val=dev,val=valid"]),
        (["train/train/0.png", "train/test/1.png", "val/train/2.png"], ["called like splits", "--splits"]),
        (["cat/train/0.png", "cat/val/1.png", "dog/2.png"], ["called like splits", "dog", "--splits none"]),
        (["trainA/0.png", "trainB/1.png", "testA/2.png"], ["splits or classes", "train=trainA,train=trainB"]),
    ],
)
def test_doubt_about_splits_is_a_question(tmp_path, names, words):
    asks(pictures(tmp_path / "set", *names), tmp_path / "out", *words)


def test_the_answers_are_used(tmp_path):
    names = ["train/a/0.png", "test/a/1.png", "car/a/2.png"]
    root = pictures(tmp_path / "set", *names)
    account, found = packed(root, tmp_path / "none", splits="none", val_fraction=0.0)
    assert Manifest.load(str(tmp_path / "none")).labels == {"cls": ["car", "test", "train"]} and set(found) == {"train"}
    account, found = packed(root, tmp_path / "named", splits="train=train,val=test")
    assert set(found) == {"train", "val"} and account["left_out"] == {"car/a/2.png": "in no folder that --splits names"}
    asks(root, tmp_path / "x", "nothing to pack in Valid", "it has", splits="train=train,val=Valid")
    asks(root, tmp_path / "x", "expected none, or SPLIT=NAME", splits="train")
    both = pictures(tmp_path / "both", "train2014/a/0.png", "train2017/a/1.png", "val/a/2.png")
    _, found = packed(both, tmp_path / "two", splits="train=train2014,train=train2017,val=val")
    assert {split: len(each) for split, each in found.items()} == {"train": 2, "val": 1}


def test_splits_below_classes_and_classes_below_a_folder(tmp_path):
    root = pictures(
        tmp_path / "modelnet", *(f"{c}/{s}/{i}.png" for c in "ab" for s in ("train", "test") for i in (0, 1))
    )
    account, found = packed(root, tmp_path / "out")
    assert set(found) == {"train", "test"} and "the splits lie below the classes" in notes(account)
    assert {key: contents.label for key, contents in found["test"].items()} == {"a/0": 0, "a/1": 0, "b/0": 1, "b/1": 1}
    assert "there is no split 'val'" in notes(account)
    account, _ = packed(pictures(tmp_path / "w", "all/a/0.png", "all/b/1.png"), tmp_path / "wrapped")
    assert Manifest.load(str(tmp_path / "wrapped")).labels == {"cls": ["a", "b"]} and "below 'all/'" in notes(account)


def test_a_validation_split_out_of_a_given_train(tmp_path):
    root = pictures(tmp_path / "set", *(f"train/a/{i}.png" for i in range(30)), "test/a/0.png")
    _, found = packed(root, tmp_path / "plain")
    assert {split: len(each) for split, each in found.items()} == {"train": 30, "test": 1}
    with pytest.raises(
        ValueError, match=r"no split 'val'; it has test, train. Name another by data.val_split.*--val-fraction"
    ):
        ShardDataModule(str(tmp_path / "plain"), 4, SimCLR(8)).val_dataloader()
    _, found = packed(root, tmp_path / "out", val_fraction=0.3)
    assert set(found) == {"train", "val", "test"} and 2 < len(found["val"]) < 16 and len(found["test"]) == 1
    both = pictures(tmp_path / "b", "train/a/0.png", "val/a/1.png")
    asks(both, tmp_path / "c", "there is a val split, and --val-fraction would not be used", val_fraction=0.3)


def test_equal_files_in_two_splits(tmp_path):
    root = tmp_path / "set"
    for name, seed in (("train/a/0.png", 7), ("train/a/1.png", 8), ("val/a/same.png", 7), ("test/b/again.png", 7)):
        picture(root / name, seed)
    account, found = packed(root, tmp_path / "keep")
    assert "2 samples have files that another split has too" in notes(account) and "train/a/0.png" in notes(account)
    account, found = packed(root, tmp_path / "drop", leaks="drop")
    assert {split: list(each) for split, each in found.items()} == {"train": ["a/1"], "test": ["b/again"]}
    assert set(account["left_out"]) == {"train/a/0.png", "val/a/same.png"}
    with pytest.raises(ValueError, match=r"2 samples have files that another split has too.*\n.*same.png = test"):
        packed(root, tmp_path / "stop", leaks="stop")


# Listing.


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["d/cat/x/train/0.png", "d/dog/x/train/1.png"], ["called like a split", "--splits"]),
        (["mnist_train/0.png", "mnist_test/1.png"], ["splits or classes", "train=mnist_train,test=mnist_test"]),
        (["trainA/0.png", "testA/1.png", "misc/2.png"], ["splits or classes"]),
        (["x/train_a/0.png", "x/test_a/1.png"], ["train=x/train_a,test=x/test_a"]),
        (["tr/0.png", "va/1.png", "te/2.png"], ["splits or classes"]),
    ],
)
def test_words_of_splits_are_a_question(tmp_path, names, words):
    asks(pictures(tmp_path / "set", *names), tmp_path / "out", *words)


def test_folders_that_are_no_classes(tmp_path):
    root = pictures(
        tmp_path / "a", *(f"data/{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "val") for i in "01")
    )
    _, found = packed(root, tmp_path / "a-out")
    assert {split: len(each) for split, each in found.items()} == {"train": 4, "val": 4}
    assert Manifest.load(str(tmp_path / "a-out")).labels == {"cls": ["cat", "dog"]}
    account, _ = packed(pictures(tmp_path / "b", "train/images/0.png", "valid/images/1.png"), tmp_path / "b-out")
    assert Manifest.load(str(tmp_path / "b-out")).labels == {} and "'images' of every split" in notes(account)
    packed(pictures(tmp_path / "c", "train/pets/cat/0.png", "val/pets/dog/1.png"), tmp_path / "c-out")
    assert Manifest.load(str(tmp_path / "c-out")).labels == {"cls": ["cat", "dog"]}
    packed(pictures(tmp_path / "d", "CAT /0.png", "dog/1.png"), tmp_path / "d-out")
    assert Manifest.load(str(tmp_path / "d-out")).labels == {"cls": ["CAT ", "dog"]}


def test_links_among_folders_do_not_multiply(tmp_path):
    for a in range(5):
        picture(tmp_path / f"set/{a}/x.png", a)
    for a in range(5):
        for b in range(5):
            (tmp_path / f"set/{a}/to{b}").symlink_to(tmp_path / f"set/{b}")
    account, _ = packed(tmp_path / "set", tmp_path / "out", splits="none")
    assert account["found"] <= 5 * 16 and len(account["notes"]) < 12


def test_more_files_are_left_out_than_are_named(monkeypatch):
    account = Account("files", 30)
    monkeypatch.setattr("viewshards.account.NAMED", 10)
    for i in range(30):
        account.leave(f"{i}", f"does not decode: detail {i}")
    assert account.left == 30 and len(account.left_out) == 10 and account.more == {"does not decode": 20}
    assert "  30 x does not decode" in account.lines() and "  and 20 more" in account.listed()
    assert Account.of(json.loads(json.dumps(account.to_json()))) == account
    names = ["b\n.png", "b\\n.png", "caf\udce9.png", "caf\\xe9.png"]
    assert len(set(map(printable, names))) == 4


def test_links_are_followed_and_loops_are_told(tmp_path):
    root = pictures(tmp_path / "set", "a/0.png", "a/1.png")
    pictures(tmp_path / "real/b", "0.png", "1.png", "2.png")
    (root / "b").symlink_to(tmp_path / "real/b")
    (root / "a/loop").symlink_to(root)
    (root / "a/gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "a/pipe.png")
    account, found = packed(root, tmp_path / "out", val_fraction=0.0)
    assert account["packed"] == 5 and set(account["left_out"]) == {"a/gone.png", "a/pipe.png"}
    assert "3 files lie outside" in notes(account) and "'a/loop' is a link back" in notes(account)
    assert Counter(contents.label for contents in found["train"].values()) == {0: 2, 1: 3}


def test_system_files_wrong_extensions_and_others(tmp_path, capsys):
    root = pictures(
        tmp_path / "set", "cat/0.jpg", "cat/1.jpg", ".ipynb_checkpoints/0-checkpoint.jpg", "cat/.hidden/2.png"
    )
    for name in ("cat/._0.jpg", "__MACOSX/cat/._0.jpg", "cat/.DS_Store", "Thumbs.db"):
        write(root / name, b"\0\5\x16\7" + bytes(40))
    (
        write(root / "cat/zero.jpg", b""),
        write(root / "cat/notes.txt", "about these"),
        write(root / "cat/cut.png", b"\x89PNG"),
    )
    picture(root / "cat/wrong.png").rename(root / "cat/wrong.jpg")
    picture(root / "cat/bare.png", 5).rename(root / "cat/bare")
    assert main(["pack", str(root), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    account = Manifest.load(str(tmp_path / "out")).made["account"]
    assert account["found"] == 13 and account["packed"] == 4
    assert account["skipped"] == {
        "._*": 1, "__MACOSX": 1, ".DS_Store": 1, "Thumbs.db": 1, ".ipynb_checkpoints": 1, "hidden": 1
    }  # fmt: skip
    assert set(account["left_out"]) == {"cat/zero.jpg", "cat/notes.txt", "cat/cut.png"}
    for line in ("found                             13 files", "packed                             4",
                 "left out: cat/zero.jpg: an empty file", "warning: 3 files were left out",
                 "1 pictures read by their contents: named .jpg, in truth .png"):  # fmt: skip
        assert line in said
    assert set(every(samples(tmp_path / "out"))["cat/wrong.jpg"].files) == {"png", "cls", "json"}
    assert main(["pack", str(root), str(tmp_path / "strict"), "--strict"]) == 2
    assert "left out: cat/zero.jpg: an empty file" in capsys.readouterr().err
    assert not (tmp_path / "strict/manifest.json").exists()


def test_names_lead_back(tmp_path):
    folder = os.fsencode(tmp_path / "set/a b.c")
    os.makedirs(folder)
    for name in (b"caf\xe9.png", b"x.y z.png", b"new\nline.png"):
        with open(folder + b"/" + name, "wb") as f:
            f.write(picture(tmp_path / "one.png").read_bytes())
    (tmp_path / "set/a b.c/x.y z.png").write_bytes(picture(tmp_path / "two.png", 2).read_bytes())
    _, found = packed(tmp_path / "set", tmp_path / "out", val_fraction=0.0)
    assert {c.file_name for c in found["train"].values()} == {
        r"a b.c/caf\xe9.png", "a b.c/x.y z.png", r"a b.c/new\nline.png"
    }  # fmt: skip
    assert set(found["train"]) == {r"a_b_c/caf\xe9", "a_b_c/x_y_z", r"a_b_c/new\nline"}
    data = ShardDataModule(str(tmp_path / "out"), 3, SimCLR(8), workers=0)
    batch = next(iter(data.evaluation_loader("train", 4)))
    assert batch["file_name"][batch["key"].index("a_b_c/x_y_z")] == "a b.c/x.y z.png"
    embed = lambda batch: [Encoded(view.flatten(1), None) for view in batch["image"]]  # noqa: E731
    features = extract(torch.nn.Identity(), embed, data.evaluation_loader("train", 2))
    assert features.file_name == [found["train"][key].file_name for key in features.key]
    contact_sheet(str(tmp_path / "out"), "train", tmp_path / "sheet.png")
    assert "column 1: sample 0, " in (tmp_path / "sheet.txt").read_text()
    assert "(a b.c/x.y z.png)" in (tmp_path / "sheet.txt").read_text()


FILES = st.dictionaries(
    st.lists(
        st.sampled_from(["a", "b c", "train", ".hidden", "._x", "__MACOSX", "x.y", "é", "Thumbs.db"]), max_size=3
    ).flatmap(
        lambda folders: st.sampled_from(
            ["0.png", "1.PNG", "x.jpg", "n.txt", "._0.png", ".DS_Store", "bare", "t.tar"]
        ).map(lambda name: "/".join([*folders, name]))
    ),
    st.sampled_from(["picture", "empty", "broken", "text"]),
    min_size=1,
    max_size=12,
)


OPTIONS = st.sampled_from([{}, {"splits": "none"}, {"kind": "image"}, {"kind": "clip"}, {"table": "none"}])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, options=OPTIONS, named=st.lists(st.integers(0, 11), max_size=5), link=st.booleans())
def test_the_account_of_any_folder_adds_up(tmp_path_factory, files, options, named, link):
    """With tables, clips of frames, links and splits; `packed` looks at the sum."""
    root = tmp_path_factory.mktemp("any")
    contents = {"picture": PNG, "empty": b"", "broken": PNG[:40], "text": b"words"}
    written = []
    for name, what in files.items():
        try:
            write(root / "set" / name, contents[what])
            written.append(name)
        except OSError:  # a file where another name wants a folder
            continue
    rows = [f"{written[i]},words\n" for i in named if i < len(written)]
    if rows:
        write(root / "set/metadata.csv", "".join(["file_name,caption\n", *rows]))
    if link:
        (root / "set/linked").symlink_to(root / "set")
    good = [name for name in written if files[name] == "picture" and not any(map(system_file, name.split("/")))]
    try:
        account, found = packed(root / "set", root / "out", **options)
    except Question:
        return
    except (ValueError, FileNotFoundError):
        assert (
            rows or not good or options.get("kind") == "clip"
        )  # nothing in it can be packed, or the table is at fault
        return
    assert account["found"] == len(written) + bool(rows)
    assert account["packed"] + account["frames"] >= sum(map(len, found.values()))
    if not rows and "kind" not in options:
        assert account["packed"] == len(good) and {files[name] for name in every(found)} == {"picture"}


# Pixels.


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(noise()))


def test_formats(tmp_path):
    pillow = pytest.importorskip("pillow_heif")
    pillow.register_heif_opener()
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "tif": "TIFF", "pgm": "PPM", "heic": "HEIF"}
    names = [
        "jpg",
        "jpeg",
        "jfif",
        "jpe",
        "ppm",
        "pgm",
        "jp2",
        "ico",
        "avif",
        "bmp",
        "tga",
        "gif",
        "tif",
        "webp",
        "png",
        "heic",
    ]
    for seed, name in enumerate(names):
        form = kinds.get(name) or {"jpg": "JPEG"}.get(name, name.upper())
        grey = Image.fromarray(noise(seed)).resize((32, 32))
        (grey.convert("L") if name == "pgm" else grey).save(write(tmp_path / f"set/a.{name}", b""), format=form)
    account, found = packed(tmp_path / "set", tmp_path / "out")
    assert account["packed"] == len(names) and not account["left_out"]
    stored = {name: next(e for e in contents.files if e != "json") for name, contents in every(found).items()}
    kept = {
        "jfif": "jpg",
        "jpe": "jpg",
        **{name: name for name in ("jpg", "jpeg", "jp2", "avif", "webp", "png", "heic")},
    }
    assert stored == {f"a.{name}": kept.get(name, "png") for name in names}
    for name, contents in every(found).items():
        with Image.open(tmp_path / "set" / name) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(contents.picture(stored[name]) - expected).max() <= 3, name
        if stored[name] == name[2:]:
            assert contents.files[stored[name]] == (tmp_path / "set" / name).read_bytes()


def test_one_ramp_in_every_depth_and_container(tmp_path):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64)
    set_ = tmp_path / "set"
    set_.mkdir()
    for name in ("u16.tif", "u16.png", "u16.pgm"):
        Image.fromarray(ramp.astype(np.uint16)).save(set_ / name, **({"format": "PPM"} if name[-1] == "m" else {}))
    Image.fromarray(ramp.astype(np.int32)).save(set_ / "i32.tif")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(set_ / "f32.tif")
    import cv2

    colour = np.repeat(ramp.astype(np.uint16)[..., None], 3, 2)
    cv2.imwrite(str(set_ / "rgb16.png"), colour), cv2.imwrite(str(set_ / "rgb16.tif"), colour)
    account, found = packed(set_, tmp_path / "out", val_fraction=0.0)
    right = np.rint(ramp.astype(np.uint16) / 257)
    for name, contents in every(found).items():
        shown = contents.picture("png")
        assert np.abs(shown[..., 0] - right).max() <= (name == "f32.tif") and (shown[..., 0] == shown[..., 2]).all(), (
            name
        )
    assert "pictures of float pixels with values from 0 to 1: 0 is black, 1 is white" in notes(account)
    assert "pictures of int32 pixels with values from 0 to 65535: 0 is black, 65535 is white" in notes(account)
    Image.fromarray((ramp - 9).astype(np.float32)).save(set_ / "odd.tif")
    asks(set_, tmp_path / "ask", "--value-range", "from -9 to 65526")
    _, found = packed(set_, tmp_path / "said", value_range=(-9, 65526), val_fraction=0.0)
    assert np.abs(every(found)["odd.tif"].picture("png")[..., 0] - ramp / 257).max() <= 0.51


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(form, orientation, tmp_path):
    corners = np.zeros((40, 80, 3), np.uint8)
    corners[:20, :40], corners[:20, 40:] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if form == "AVIF" else {}
    data = encoded(Image.fromarray(corners), form, exif=exif, **options)
    turned = Image.fromarray(corners)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose
    expected = np.asarray(turned.transpose(turns[orientation]) if orientation in turns else turned).astype(int)
    found = decode("jpg" if form == "JPEG" else "png", data)
    assert found.shape == expected.shape
    middle = np.abs(found - expected)[5:-5, 5:-5]
    assert np.percentile(middle, 90) < 12
    path = write(tmp_path / f"set/x.{form.lower()}", data)
    if form != "TIFF":  # packed as PNG already
        out = Encoding(resize=20)(dict([packable(path)]))
        again = decode(*next(iter(out.items())))
        assert again.shape[:2] == ((40, 20) if orientation > 4 else (20, 40))


def test_profiles_and_cmyk_become_srgb():
    flat = Image.new("RGB", (32, 32), (200, 60, 60))
    lab = ImageCms.createProfile("LAB")
    assert lab is not None
    swapped = swapped_profile()
    data = encoded(flat, "PNG", icc_profile=swapped)
    jpeg = encoded(flat, "JPEG", icc_profile=swapped, quality=100, subsampling=0)
    expected = np.array(ImageCms.profileToProfile(
        flat, ImageCms.ImageCmsProfile(io.BytesIO(swapped)), ImageCms.createProfile("sRGB")).getpixel((9, 9)))  # fmt: skip
    assert np.abs(expected - (200, 60, 60)).max() > 20
    for found in (decode("png", data), decode("jpg", jpeg)):
        assert np.abs(found[9, 9].astype(int) - expected).max() <= 3
    broken = encoded(flat, "PNG", icc_profile=b"no profile at all")
    assert tuple(decode("png", broken)[9, 9]) == (200, 60, 60)
    cmyk = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(decode("jpg", cmyk)[9, 9].astype(int) - (255, 0, 0)).max() <= 3
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert tuple(decode("png", encoded(flat, "PNG", icc_profile=srgb))[9, 9]) == (200, 60, 60)
    large = encoded(flat, "PNG", icc_profile=swapped + bytes(np.random.default_rng(0).bytes(2 * 2**20)))
    assert decode("png", large).shape == (32, 32, 3)


def swapped_profile():
    """An RGB profile whose red and blue primaries have traded places: sRGB's own, its name taken away."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    place = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = place[b"rXYZ"], place[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "none".encode("utf-16-be")).replace(b"sRGB", b"none")


def test_tiffs_of_more_than_8_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    colour = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    right = np.rint(colour / 257).astype(np.uint8)

    def written(name, values, **options):
        tifffile.imwrite(tmp_path / name, values, **{"photometric": "rgb", **options})
        return (tmp_path / name).read_bytes()

    turns = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1), 8: np.rot90}
    for orientation, turn in turns.items():
        for values in (colour, (colour >> 8).astype(np.uint8)):
            data = written("o.tif", values, extratags=[(274, "H", 1, orientation, True)])
            expected = right if values is colour else values
            np.testing.assert_array_equal(decoded(data), turn(expected))
    for planar in (written("p.tif", np.moveaxis(colour, -1, 0), planarconfig="separate"),):
        with pytest.raises(ValueError, match="planes of their own"):
            decoded(planar)
    four = np.concatenate([colour, colour[..., :1]], 2)
    with pytest.raises(ValueError, match="4 bands that are not RGB, grey or transparency: pack it with --channels 4"):
        decoded(written("x.tif", four, extrasamples=["unspecified"]))
    grey = colour[..., 0]
    white = decoded(written("w.tif", 65535 - grey, photometric="miniswhite"))
    assert np.abs(white[..., 0].astype(int) - right[..., 0]).max() <= 1
    wide = written("u.tif", (grey.astype(np.uint32) << 16), photometric="minisblack")
    shown = decoded(wide, ranges={"int32": (0, 2**32 - 1)})
    assert np.abs(shown[..., 0].astype(int) - right[..., 0]).max() <= 1
    assert decoded(written("big.tif", (colour >> 8).astype(np.uint8), bigtiff=True)).shape == (20, 30, 3)
    flat = np.full((8, 8, 3), (200 * 257, 60 * 257, 60 * 257), np.uint16)
    import cv2

    plain, deep = (
        encoded(Image.new("RGB", (8, 8), (200, 60, 60)), icc_profile=swapped_profile()),
        cv2.imencode(".png", flat[..., ::-1])[1].tobytes(),
    )
    place = plain.index(b"iCCP") - 4
    length = int.from_bytes(plain[place : place + 4], "big") + 12
    deep = deep[:33] + plain[place : place + length] + deep[33:]
    assert np.abs(decoded(deep)[3, 3].astype(int) - decoded(plain)[3, 3]).max() <= 2


def test_transparency_and_pages(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decoded(encoded(clear)) == 255).all() and (decoded(encoded(clear.convert("LA"))) == 255).all()
    deep = np.zeros((8, 8, 4), np.uint16)
    import cv2

    assert (decoded(cv2.imencode(".png", deep)[1].tobytes()) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert tuple(decoded(encoded(palette))[0, 0]) == (50, 60, 70)
    assert (decoded(encoded(palette, transparency=1)) == 255).all()
    pages = [Image.fromarray(noise(k)) for k in range(3)]
    pages[0].save(write(tmp_path / "set/p.tif", b""), save_all=True, append_images=pages[1:])
    pages[0].save(write(tmp_path / "set/g.gif", b""), save_all=True, append_images=pages[1:])
    account, _ = packed(tmp_path / "set", tmp_path / "out")
    assert "1 files of several pages of which the first is kept" in notes(account)
    assert "1 animations of which the first frame is kept; --kind clip packs all of them" in notes(account)
    account, found = packed(tmp_path / "set", tmp_path / "clips", kind="clip", val_fraction=0.0)
    assert every(found)["g.gif"].clip("frames.npy").video.length == 3 and list(account["left_out"]) == ["p.tif"]


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_any_number_of_bands(tmp_path, bands):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (8, 20, 30, bands)).astype(np.uint16)
    root = tmp_path / "set"
    for i, value in enumerate(values):
        folder = root / ("train" if i < 6 else "val")
        folder.mkdir(parents=True, exist_ok=True)
        if i % 2:
            np.save(folder / f"{i}.npy", value.transpose(2, 0, 1) if i == 3 else value)
        else:
            planar = {"planarconfig": "contig"} if bands > 1 else {}
            tifffile.imwrite(
                folder / f"{i}.tif", value.squeeze(-1) if bands == 1 else value, photometric="minisblack", **planar
            )
    account, found = packed(root, tmp_path / "out", channels=bands)
    assert account["packed"] == 8
    for name, contents in every(found).items():
        number = int(name.partition("/")[2][0])
        np.testing.assert_array_equal(contents.picture("bands.npy"), np.rint(values[number] / 257).astype(np.uint8))
    views = MultiView([Augmentation(16, blur=0.5, solarize=0.5)] * 2)
    data = ShardDataModule(str(tmp_path / "out"), 3, views, workers=0, mean=(0.5,) * bands, std=(0.2,) * bands)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"][0].shape == (3, bands, 16, 16) and data.as_pictures(batch["image"][0]).shape == (3, 3, 16, 16)
    batch = data.on_after_batch_transfer(next(iter(data.evaluation_loader("val", 2))), 0)
    for backbone in (ConvNet([8, 16], in_chans=bands), TimmBackbone("resnet18", small_stem=True, in_chans=bands)):
        assert backbone(batch["image"][0]).pooled.shape == (2, backbone.width)
    with pytest.raises(ValueError, match=rf"pictures of {bands} bands, data.mean has 3 numbers"):
        plain = ShardDataModule(str(tmp_path / "out"), 3, views, workers=0)
        plain.on_after_batch_transfer(next(iter(plain.train_dataloader())), 0)
    coloured = ShardDataModule(str(tmp_path / "out"), 3, SimCLR(8), workers=0)
    with pytest.raises(BrokenShard, match=rf"jitter and grey are of pictures with three bands, this one has {bands}"):
        for _ in range(9):
            list(coloured.train_dataloader())
    on_device = MultiView([Augmentation(16)], backend="device")
    made = ShardDataModule(str(tmp_path / "out"), 3, on_device, workers=0, mean=(0.5,) * bands, std=(0.2,) * bands)
    with pytest.raises(ValueError, match=f"pictures have {bands} bands: set backend: cv2"):
        made.on_after_batch_transfer(next(iter(made.train_dataloader())), 0)
    contact_sheet(str(tmp_path / "out"), "train", tmp_path / "sheet.png")
    resized = Encoding(resize=10)({"bands.npy": next(iter(found["train"].values())).files["bands.npy"]})
    assert decode("npy", resized["bands.npy"]).shape == (10, 15, bands)
    asks(root, tmp_path / "other", f"--channels {bands + 1} asks for", channels=bands + 1)


# Tables.

ROWS = "file_name,caption,label\r\n" + "".join(f"p {i}.png,thing {i},{'xy'[i % 2]}\r\n" for i in range(4))


def table(tmp_path, name, content, encoding="utf-8"):
    for i in range(4):
        picture(tmp_path / f"t/p {i}.png", i)
    return write(tmp_path / "t" / name, content.encode(encoding) if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("bom.csv", "\ufeff" + ROWS, "utf-8"), ("semicolon.csv", ROWS.replace(",", ";"), "utf-8"),
        ("tab.tsv", ROWS.replace(",", "\t"), "utf-8"), ("tab.csv", ROWS.replace(",", "\t"), "utf-8"),
        ("bar.csv", ROWS.replace(",", "|"), "utf-8"), ("utf16.csv", ROWS, "utf-16"), ("utf32.csv", ROWS, "utf-32"),
        ("blanks.csv", ROWS.replace("file_name,caption,label", "file_name, caption, label"), "utf-8"),
        ("names.csv", ROWS.replace("file_name,caption,label", "Image_Path,Title,Class"), "utf-8"),
        ("excel.csv", "sep=;\r\n" + ROWS.replace(",", ";"), "utf-8"), ("gaps.csv", ROWS.replace("\r\n", "\r\n\r\n"), "utf-8"),
    ],
)  # fmt: skip
def test_tables_are_read(tmp_path, name, content, encoding):
    account, found = packed(table(tmp_path, name, content, encoding), tmp_path / "out")
    assert account["unit"] == "rows" and account["found"] == account["packed"] == 4
    assert {name: (each.caption, each.label) for name, each in every(found).items()} == {
        f"p {i}.png": (f"thing {i}", i % 2) for i in range(4)
    }
    assert Manifest.load(str(tmp_path / "out")).labels == {"cls": ["x", "y"]} and name in notes(account)


LINES = [
    {"file_name": "p 0.png", "caption": "a"}, {"file_name": "p 1.png", "caption": "b", "label": "x"},
    {"file_name": "p 2.png", "caption": "  ", "label": "y"},
]  # fmt: skip


def test_lists_of_objects_with_gaps(tmp_path):
    texts = {"list.json": json.dumps(LINES), "sparse.jsonl": "\n".join(map(json.dumps, LINES)),
             "lines.json": "\n".join(map(json.dumps, LINES)), "x.ndjson": "\n".join(map(json.dumps, LINES))}  # fmt: skip
    for name, text in texts.items():
        account, found = packed(table(tmp_path, name, text), tmp_path / f"{name}-out")
        said = {each.file_name: (each.caption, each.label) for each in every(found).values()}
        assert said == {"p 0.png": ("a", -1), "p 1.png": ("b", 0), "p 2.png": (None, 1)}
        assert "1 of 3 samples have no caption" in notes(account) and "1 of 3 samples have no label" in notes(account)
    both = {"file_name": "p 0.png", "caption": "one", "captions": ["two", "three", " "]}
    _, found = packed(table(tmp_path, "both.jsonl", json.dumps(both)), tmp_path / "both", val_fraction=0.0)
    assert next(iter(found["train"].values())).about["captions"] == ["one", "two", "three"]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"filename": ["p 0.png", "p 1.png"], "class": [3.0, None]}), tmp_path / "t/x.parquet")
    _, found = packed(tmp_path / "t/x.parquet", tmp_path / "parquet")
    assert Manifest.load(str(tmp_path / "parquet")).labels == {"cls": ["3"]}
    assert {each.label for each in every(found).values()} == {0, -1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latin1.csv", ROWS.replace("thing", "caf\xe9").encode("latin-1"), ["latin1.csv line 2", "0xE9", "--encoding latin-1"]),
        ("utf16.csv", ROWS.encode("utf-16-le"), ["zero bytes", "--encoding", "utf-16-le"]),
        ("ragged.csv", ROWS.replace("thing 1", "one, two"), ["ragged.csv line 3", "4 fields", "header has 3", "quotes"]),
        ("quote.csv", ROWS.replace("thing 1", '"thing 1'), ["quote.csv line 3"]),
        ("conflict.csv", "file_name,split\np 0.png,train\np 0.png,val\n", ["line 2", "line 3", "'train'", "'val'"]),
        ("label.csv", "file_name,label\np 0.png,x\np 0.png,y\n", ["line 2", "line 3", "label", "'x'", "'y'"]),
        ("views.csv", "file,id,view\np 0.png,1,a\np 1.png,1,a\n", ["line 2", "line 3", "two files for view 'a'"]),
        ("missing.jsonl", '{"file_name": "p 0.png"}\n{"caption": "x"}', ["missing.jsonl line 2", "'file_name'"]),
        ("bad.jsonl", '{"file_name": "p 0.png"}\n{bad\n', ["bad.jsonl line 2, column 2"]),
        ("bad.json", '[{"file_name": "p 0.png"},\n {bad]', ["bad.json line 2, column 3"]),
        ("twice.jsonl", '{"file_name": "p 0.png", "label": 1, "label": 2}', ["twice.jsonl line 1", "'label' is there twice"]),
        ("multi.jsonl", '{"file_name": "p 0.png", "label": ["x", "y"]}', ["multi.jsonl line 1", "--labels"]),
        ("gone.csv", "file_name\np 0.png\nq.png\n", ["1 of 2 files are not there", "gone.csv line 3", "'q.png'"]),
        ("none.csv", "picture_of,what\np 0.png,x\n", ["no column for the file", "'picture_of', 'what'", "--columns file_name="]),
        ("two.csv", "file,title,text\np 0.png,x,y\n", ["which column is the caption", "--columns caption=text"]),
        ("same.csv", "file,Label,label\np 0.png,x,y\n", ["two columns of one name", "'Label'"]),
        ("coco.json", '{"images": [], "annotations": []}', ["expected a list of objects", "'images'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_named(tmp_path, name, content, words):
    asks(table(tmp_path, name, content), tmp_path / "out", *words)


def test_answers_about_tables(tmp_path):
    source = table(tmp_path, "t.csv", "picture_of,title,text,what\np 0.png,x,y,z\n")
    account, found = packed(source, tmp_path / "a", columns="file_name=picture_of,caption=text,label=what")
    (contents,) = every(found).values()
    assert (contents.caption, contents.label, contents.about["title"]) == ("y", 0, "x")
    source = table(tmp_path, "l.csv", ROWS.replace("thing", "caf\xe9").encode("latin-1"))
    _, found = packed(source, tmp_path / "b", encoding="latin-1")
    assert every(found)["p 0.png"].caption == "caf\xe9 0"
    splits = "file_name,split\n" + "".join(
        f"p {i}.png,{s}\n" for i, s in enumerate(("Train", "training", "validation", "VAL"))
    )
    source = table(tmp_path, "s.csv", splits)
    _, found = packed(source, tmp_path / "c")
    assert {split: len(each) for split, each in found.items()} == {"train": 2, "val": 2}
    account, found = packed(source, tmp_path / "d", splits="train=Train,test=VAL")
    assert {split: len(each) for split, each in found.items()} == {"train": 1, "test": 1}
    assert len(account["left_out"]) == 2
    asks(source, tmp_path / "e", "no encoding of texts", encoding="nothing")
    asks(source, tmp_path / "e", "no encoding of texts", encoding="base64")
    asks(source, tmp_path / "e", "kinds are file_name", columns="x=y")
    numbers = "file_name,label\n" + "".join(f"p {i}.png,{n}\n" for i, n in enumerate((2, 10, 1, 0)))
    packed(table(tmp_path, "n.csv", numbers), tmp_path / "f")
    assert Manifest.load(str(tmp_path / "f")).labels == {"cls": ["0", "1", "2", "10"]}


def test_what_tables_say_is_kept(tmp_path):
    source = table(tmp_path, "a.csv", "file,alt,caption\np 0.png,right,wrong\n")
    _, found = packed(source, tmp_path / "a", columns="caption=alt")
    (contents,) = every(found).values()
    assert contents.caption == "right" and contents.about["other_caption"] == "wrong"
    rows = "file,caption,label,split,who\np 0.png,a,,,ann\np 0.png,b,x,test,bob\np 1.png,c,x,train,eve\n"
    account, found = packed(table(tmp_path, "b.csv", rows), tmp_path / "b")
    assert found["test"]["p_0"].label == 0 and "rows of one sample differ in 'who'" in notes(account)
    lists = [{"file": "p 0.png", "caption": ["one", "two"]}, {"file": "p 1.png", "caption": {"en": "x", "de": "y"}}]
    _, found = packed(table(tmp_path, "c.jsonl", "\n".join(map(json.dumps, lists))), tmp_path / "c")
    assert every(found)["p 0.png"].about["captions"] == ["one", "two"]
    assert every(found)["p 1.png"].about["languages"] == ["en", "de"]
    _, found = packed(table(tmp_path, "d.csv", 'file, caption, label\np 0.png, "one, two", "cat"\n'), tmp_path / "d")
    assert next(iter(every(found).values())).caption == "one, two"
    assert Manifest.load(str(tmp_path / "d")).labels == {"cls": ["cat"]}
    splits = "file,split,who\np 0.png,val,a\np 1.png,train,a\n"
    asks(table(tmp_path, "e.csv", splits), tmp_path / "e", "a val split is given, and --split-by who", split_by="who")
    numbers = "file,split\np 0.png,0\np 1.png,1\n"
    asks(table(tmp_path, "f.csv", numbers), tmp_path / "f", "splits are called 0, 1", "--splits train=0")
    asks(table(tmp_path, "f.csv", numbers), tmp_path / "f", "no row is of Train", splits="train=Train,val=1")
    asks(table(tmp_path, "g.csv", "file,set\np 0.png,train\np 1.png,extra\n"), tmp_path / "g", "--columns split=set")
    asks(table(tmp_path, "h.csv", "file,split\np 0.png,train\np 1.png,fold/1\n"), tmp_path / "h", "line 3", "'fold/1'")
    asks(table(tmp_path, "i.csv", "file\np 0.png\n"), tmp_path / "i", "--value-range", value_range=(0, 5))
    asks(table(tmp_path, "i.csv", "file\np 0.png\n"), tmp_path / "i", "--cloud-axes", cloud_axes="points-first")


def test_a_broken_table_beside_a_folder_is_an_error(tmp_path):
    for number, content in enumerate(
        (b"file_name,text\n0.png,a,b\n", b"file_name,text\n0.png,caf\xe9\n", b"file_name,text\ngone.png,a\n")
    ):
        root = pictures(tmp_path / str(number), "0.png", "1.png")
        write(root / "metadata.csv", content)
        asks(root, tmp_path / "out", "metadata.csv line 2")
    account, _ = packed(root, tmp_path / "out", table="none")
    assert list(account["left_out"]) == ["metadata.csv"]


def test_animations_among_the_pictures_of_a_table(tmp_path):
    root = pictures(tmp_path / "t", "0.png", "1.png")
    frames = [Image.fromarray(noise(k)) for k in range(3)]
    frames[0].save(root / "2.gif", save_all=True, append_images=frames[1:])
    write(root / "metadata.csv", "file_name\n0.png\n1.png\n2.gif\n")
    asks(root, tmp_path / "a", "1 of 3 pictures are animated", "--kind image")
    _, found = packed(root, tmp_path / "b", kind="image", val_fraction=0.0)
    assert {*found["train"]["2"].files} == {"png", "json"}


def test_a_table_beside_a_folder(tmp_path):
    root = pictures(tmp_path / "hf", "train/0.png", "train/1.png", "test/2.png", "test/3.png")
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        lines = [json.dumps({"file_name": f"{i}.png", "text": f"words {i}"}) for i in numbers]
        write(root / split / "metadata.jsonl", "\n".join(lines))
    account, found = packed(root, tmp_path / "out")
    assert {split: sorted(c.caption for c in each.values()) for split, each in found.items()} == {
        "train": ["words 0", "words 1"], "test": ["words 2"]
    }  # fmt: skip
    assert account["tables"] == 2 and account["left_out"] == {
        "test/3.png": "not named by test/metadata.jsonl, train/metadata.jsonl"
    }
    assert "train/metadata.jsonl says which files are packed" in notes(account)
    root = pictures(tmp_path / "flat", "cat/0.png", "dog/1.png")
    write(root / "captions.csv", "file,caption\ncat/0.png,one\ndog/1.png,two\n")
    account, found = packed(root, tmp_path / "b")
    assert {(c.caption, c.label) for c in every(found).values()} == {("one", 0), ("two", 1)}
    write(root / "other.csv", "file,caption\ncat/0.png,else\n")
    asks(root, tmp_path / "c", "several tables name its files: captions.csv, other.csv", "--table")
    account, found = packed(root, tmp_path / "d", table="none")
    assert {c.caption for c in every(found).values()} == {None} and len(account["left_out"]) == 2
    account, found = packed(root, tmp_path / "e", table="other.csv")
    assert [c.caption for c in every(found).values()] == ["else"] and set(account["left_out"]) == {
        "captions.csv",
        "dog/1.png",
    }


def test_files_beside_a_table_are_one_line(tmp_path):
    account, _ = packed(table(tmp_path, "one.csv", "file\np 0.png\n"), tmp_path / "out")
    assert account["beside"] == 3 and account["found"] == 1


# Clips.


def clip(path, times, container=None, codec="libx264", rotate=0, sound=False, size=(64, 48)):
    """Frame k is a grey of value 4 k, its left half 40 darker; `times` in 1/600 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 600)
        stream.bit_rate = 20_000_000
        if rotate:
            stream.set_display_rotation(rotate)
        audio = file.add_stream("aac", rate=16000) if sound else None
        for k, t in enumerate(times):
            image = np.full((size[1], size[0], 3), 4 * k, np.uint8)
            image[:, : size[0] // 2] = np.maximum(image[:, : size[0] // 2].astype(int) - 40, 0)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 600)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 0
            file.mux(audio.encode(samples)), file.mux(audio.encode())
    return path


EVEN = [20 * k for k in range(50)]
TIMES = {"even": EVEN, "vfr": [40 * k for k in range(25)] + [1000 + 20 * k for k in range(25)],
         "dropped": [t for k, t in enumerate([*EVEN, 1000]) if k != 17], "late": [t + 333 for t in EVEN]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "times", "codec"),
    [*((f"{name}.mp4", name, "libx264") for name in TIMES), ("a.avi", "even", "libx264"), ("b.avi", "even", "mpeg4"),
     ("a.mkv", "vfr", "libx264"), ("a.mov", "dropped", "libx264"), ("a.webm", "vfr", "libvpx-vp9"),
     ("b.webm", "even", "libvpx"), ("a.m4v", "even", "mpeg4")],
)  # fmt: skip
def test_frame_k_is_the_kth_that_is_shown(tmp_path, name, times, codec):
    container = "mp4" if name.endswith("m4v") else None
    data = clip(tmp_path / "set" / name, TIMES[times], container, codec).read_bytes()
    video = Video(data)
    assert video.length == 50
    video.check()
    for wanted in ([0], [49], [31, 7, 19], [17, 18], list(range(50))):
        shown = video.read(wanted)[:, 24, 48, 0]
        assert np.abs(shown.astype(int) - 4 * np.array(wanted)).max() <= 3, wanted
    if not name.endswith("avi"):
        expected = np.array(TIMES[times][:50]) / 600
        assert np.abs(video.times - (expected - expected[0])).max() < 0.002
    account, found = packed(tmp_path / "set", tmp_path / "out", val_fraction=0.0)
    assert every(found)[name].files[name[-4:].strip(".")] == data and account["packed"] == 1


def test_rotation_sound_odd_sizes_and_one_frame(tmp_path):
    turned = Video(clip(tmp_path / "r.mp4", EVEN[20:40], rotate=90).read_bytes()).read([19])[0]
    assert turned.shape == (64, 48, 3)
    plain = Video(clip(tmp_path / "p.mp4", EVEN[20:40]).read_bytes()).read([19])[0]
    assert np.abs(np.rot90(plain).astype(int) - turned).max() <= 2
    sound = Video(clip(tmp_path / "s.mp4", EVEN[:9], sound=True).read_bytes())
    assert sound.length == 9 and len(sound.read(list(range(9)))) == 9
    one = Video(clip(tmp_path / "o.mp4", [0]).read_bytes())
    assert one.length == 1 and len(one.read([0])) == 1
    odd = Video(clip(tmp_path / "d.mkv", EVEN[:5], codec="ffv1", size=(33, 17)).read_bytes())
    assert odd.read([4]).shape == (1, 17, 33, 3)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.webm", "a.mp4"])
def test_a_clip_that_was_cut_is_no_shorter_clip(tmp_path, name):
    data = clip(tmp_path / name, EVEN, codec="libvpx-vp9" if name == "a.webm" else "libx264").read_bytes()
    for cut in (data[: len(data) * 3 // 4], data[:-40]):
        with pytest.raises(ValueError):
            Video(cut).check()


def test_mirrored_clips_and_pixels_that_are_no_squares(tmp_path):
    data = clip(tmp_path / "a.mp4", EVEN[20:40]).read_bytes()
    plain = Video(data).read([9])[0].astype(int)
    place = (
        data.index(b"tkhd") + 4 + 4 + 8 + 4 + 4 + 4 + 8 + 8
    )  # version and flags, times, track, reserved, duration ...
    one = (0x10000).to_bytes(4, "big")
    assert data[place : place + 4] == one
    for at, turn in ((0, lambda a: a[:, ::-1]), (16, lambda a: a[::-1])):
        mirrored = data[: place + at] + (-0x10000).to_bytes(4, "big", signed=True) + data[place + at + 4 :]
        assert np.abs(Video(mirrored).read([9])[0] - turn(plain)).max() <= 2
    with av.open(str(tmp_path / "wide.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.sample_aspect_ratio = (
            64,
            48,
            "yuv420p",
            Fraction(2, 1),
        )
        (
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noise(0, (64, 48)), format="rgb24"))),
            file.mux(stream.encode()),
        )
    assert Video((tmp_path / "wide.mp4").read_bytes()).read([0]).shape == (1, 48, 128, 3)


def test_what_an_edit_list_cuts_off_is_no_frame(tmp_path):
    whole = clip(tmp_path / "w.mp4", EVEN).read_bytes()
    place = whole.index(b"elst")
    media = int.from_bytes(whole[place + 16 : place + 20], "big")
    scale = int.from_bytes(whole[whole.index(b"mdhd") + 16 : whole.index(b"mdhd") + 20], "big")
    cut = whole[: place + 16] + (media + 10 * scale // 30).to_bytes(4, "big") + whole[place + 20 :]
    video = Video(cut)
    video.check()
    with av.open(io.BytesIO(cut)) as file:
        shown = [frame.to_ndarray(format="rgb24")[24, 48, 0] for frame in file.decode(video=0)]
    assert video.length == len(shown) == 40
    assert np.abs(video.read(list(range(40)))[:, 24, 48, 0].astype(int) - np.array(shown, int)).max() <= 2


def test_clips_sampled_by_time(tmp_path):
    video = Video(clip(tmp_path / "v.mp4", TIMES["vfr"]).read_bytes())
    views = VideoViews(15, by="time")
    places = views._drawn(Clip(video), np.random.default_rng(0))
    steps = np.diff(video.times[places])
    assert (np.diff(places) >= 0).all() and steps[:8].mean() == pytest.approx(steps[8:].mean(), rel=0.3)
    by_frame = VideoViews(15)._drawn(Clip(video), np.random.default_rng(0))
    steps = np.diff(video.times[by_frame])
    assert steps[:7].mean() > 1.5 * steps[8:].mean()


def test_folders_of_frames(tmp_path):
    for place in ("t/clip", "set/train/run/c1"):
        for i in (10, 2, 1, 0, 11):
            Image.fromarray(np.full((16, 24, 3), 20 * i, np.uint8)).save(write(tmp_path / place / f"{i}.png", b""))
        write(tmp_path / place / ".DS_Store", b"x"), write(tmp_path / place / "notes.txt", "words")
    write(tmp_path / "t/a.csv", "file_name,caption\nclip,a clip\n")
    order = [0, 20, 40, 200, 220]
    account, found = packed(tmp_path / "t/a.csv", tmp_path / "a", val_fraction=0.0)
    assert Contents(found["train"]["clip"].files).clip("frames.npy").video.frames[:, 0, 0, 0].tolist() == order
    assert "clip: files among the frames that are none, such as notes.txt" in notes(account)
    account, found = packed(tmp_path / "set", tmp_path / "b", kind="clip")
    assert found["train"]["run/c1"].clip("frames.npy").video.frames[:, 0, 0, 0].tolist() == order
    assert (account["frames"], account["packed"], account["found"]) == (5, 0, 7)
    assert list(account["left_out"]) == ["train/run/c1/notes.txt"]
    picture(tmp_path / "set/train/run/c1/3.png", size=(99, 9))
    asks(
        tmp_path / "set",
        tmp_path / "c",
        "frames of several sizes in one clip: 0.png and 3.png are 24 x 16 and 99 x 9",
        kind="clip",
    )


# Clouds.


def test_clouds_in_every_form(tmp_path):
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    root = tmp_path / "set"
    root.mkdir()
    np.save(root / "rows.npy", points), np.save(root / "columns.npy", points.T)
    np.save(root / "colours.npy", np.hstack([points, points * 0]))
    np.savez(root / "named.npz", normals=points * 0 + 1, points=points), np.savez(root / "one.npz", stuff=points)
    for name, options in (
        ("a.txt", {}), ("b.xyz", {"header": "x y z", "comments": "# "}), ("c.pts", {"header": "300", "comments": ""}),
        ("d.txt", {"delimiter": ","}), ("e.xyz", {"delimiter": ";", "header": "x;y;z", "comments": ""}),
    ):  # fmt: skip
        np.savetxt(root / name, points, **options)
    account, found = packed(root, tmp_path / "out", val_fraction=0.0)
    assert account["packed"] == 10
    for name, contents in every(found).items():
        np.testing.assert_allclose(contents.cloud("points.npy"), points, atol=1e-6, err_msg=name)
    for note in ("1 clouds that were turned", "1 clouds of 6 columns", "1 clouds that are the array 'points'"):
        assert note in notes(account)


def test_columns_of_text_clouds(tmp_path):
    root = tmp_path / "set"
    (
        write(root / "a.txt", "id x y z\n7 1 2 3\n8 4 5 6\n"),
        write(root / "b.xyz", "# nx ny nz x y z\n0 0 0 1 2 3\n0 0 0 4 5 6\n"),
    )
    write(root / "c.txt", "0.1 0.2 x.3\n1 2 3\n4 5 6\n"), write(root / "d.xyz", "1,5 2,5 3,5\n1,5 2,5 3,5\n")
    write(root / "e.xyz", "1 1 1\n1 1 1\n")
    account, found = packed(root, tmp_path / "out", val_fraction=0.0)
    for name in ("a", "b"):
        np.testing.assert_array_equal(found["train"][name].cloud("points.npy"), [[1, 2, 3], [4, 5, 6]])
    for name, why in {"c.txt": "line 1", "d.xyz": "decimal commas", "e.xyz": "points are one"}.items():
        assert why in account["left_out"][name]


def test_hdf5_in_folders_of_any_type_of_label(tmp_path):
    import h5py

    for split, seed in (("train", 0), ("test", 1)):
        (tmp_path / "set" / split).mkdir(parents=True)
        with h5py.File(tmp_path / "set" / split / "data.h5", "w") as file:
            file["data"] = np.random.default_rng(seed).normal(size=(4, 3, 64)).astype(np.float32)
            file["label"] = np.arange(4, dtype=np.uint8)[:, None]
    account, found = packed(tmp_path / "set", tmp_path / "out")
    assert {split: len(each) for split, each in found.items()} == {"train": 4, "test": 4}
    assert found["test"]["test/data-000002"].cloud("points.npy").shape == (64, 3) and "turned" in notes(account)
    asks(tmp_path / "set", tmp_path / "o", "nothing to pack of kind image", channels=3)


def test_doubt_about_clouds_is_a_question(tmp_path):
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    (tmp_path / "two").mkdir(), (tmp_path / "square").mkdir()
    np.savez(tmp_path / "two/x.npz", first=points, second=points + 1)
    asks(tmp_path / "two", tmp_path / "o", "first, second", "--cloud-array NAME")
    _, found = packed(tmp_path / "two", tmp_path / "a", cloud_array="second", val_fraction=0.0)
    np.testing.assert_allclose(found["train"]["x"].cloud("points.npy"), points + 1)
    np.save(tmp_path / "square/x.npy", points[:3].reshape(3, 3))
    asks(tmp_path / "square", tmp_path / "o2", "(3, 3)", "--cloud-axes points-first or points-last")
    _, found = packed(tmp_path / "square", tmp_path / "b", cloud_axes="points-last", val_fraction=0.0)
    np.testing.assert_allclose(found["train"]["x"].cloud("points.npy"), points[:3].T)


def test_meshes_without_area_and_cut_clouds(tmp_path):
    root = tmp_path / "set"
    write(root / "flat.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), write(root / "empty.off", "OFF\n0 0 0\n")
    write(root / "cut.pts", "4\n0 0 0\n1 1 1\n"), write(root / "ragged.xyz", "0 0 0\n1 1\n")
    write(root / "good.xyz", "0 0 0\n1 1 1\n")
    account, _ = packed(root, tmp_path / "out")
    for name, reason in {
        "flat.obj": "its faces have no area", "empty.off": "empty.off", "cut.pts": "names 4 points, there are 2: cut?",
        "ragged.xyz": "line 2: expected 3 numbers, got '1 1'",
    }.items():  # fmt: skip
        assert reason in account["left_out"][name]
    import trimesh

    for kind in ("stl", "glb"):
        trimesh.creation.box((1, 2, 3)).export(tmp_path / f"box.{kind}")
        surface = decode(*packable(tmp_path / f"box.{kind}"))
        assert np.isclose(np.abs(surface), [0.5, 1, 1.5], atol=1e-5).any(1).all() and len(surface) == 8192
    mixed = trimesh.Scene([trimesh.creation.box(), trimesh.PointCloud(np.random.default_rng(0).normal(size=(9, 3)))])
    mixed.export(tmp_path / "mixed.glb")
    with pytest.raises(ValueError, match="meshes and loose points in one file"):
        packable(tmp_path / "mixed.glb")
    laspy = pytest.importorskip("laspy")
    scan = laspy.LasData(laspy.LasHeader())
    scan.x, scan.y, scan.z = (np.arange(9) + k / 10 for k in range(3))
    scan.write(tmp_path / "x.las")
    np.testing.assert_allclose(decode(*packable(tmp_path / "x.las"))[:, 0], np.arange(9), atol=0.01)


# Other people's tars.


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def indexed(root, **options):
    manifest = build_index(root, **options)
    assert not list(verify(root))
    account = manifest.made["account"]
    parts = account["packed"] + account["tables"] + sum(account["skipped"].values()) + len(account["left_out"])
    assert parts == account["found"]
    return account, samples(root)


def test_names_with_dots(tmp_path):
    tar(
        tmp_path / "train-0.tar", [m for i in range(4) for m in ((f"img.{i:03d}.png", PNG), (f"img.{i:03d}.cls", b"1"))]
    )
    with pytest.raises(BrokenShard, match=r"is 'img.000.png' of a sample 'img' with a view '000'.*--keys last-dot"):
        build_index(tmp_path)
    _, found = indexed(tmp_path, keys="last-dot")
    assert {key: c.label for key, c in found["train"].items()} == {f"img.{i:03d}": 1 for i in range(4)}
    versions = [m for i in range(3) for m in ((f"{i}.5.png", PNG), (f"{i}.5.txt", b"x"))]
    with pytest.raises(BrokenShard, match="--keys"):
        indices.scan(tar(tmp_path / "b/train-0.tar", versions))
    views = [m for i in range(3) for m in ((f"{i}.left.png", PNG), (f"{i}.right.png", PNG), (f"{i}.cls", b"0"))]
    assert len(indices.scan(tar(tmp_path / "c/train-0.tar", views))) == 3
    numbered = tar(tmp_path / "d/train-0.tar", [(f"{i}.{v}.png", PNG) for i in ("cat", "dog") for v in range(3)])
    with pytest.raises(BrokenShard, match=r"is 'cat.0.png' of a sample 'cat' with a view '0'"):
        indices.scan(numbered)
    assert len(indices.scan(numbered, keys="first-dot")) == 2 and len(indices.scan(numbered, keys="last-dot")) == 6


def test_unsorted_members_apple_files_and_upper_case(tmp_path):
    members = [(f"{i}.PNG", PNG) for i in range(4)] + [(f"{i}.CLS", b"1") for i in range(4)]
    tar(tmp_path / "train-0.tar", [("./._0.PNG", b"\0\5\x16\7"), *members, ("0.exe", b"x"), ("__MACOSX/1.png", b"y")])
    account, found = indexed(tmp_path)
    assert {key: c.label for key, c in found["train"].items()} == {str(i): 1 for i in range(4)}
    assert account["skipped"] == {"._*": 1, "__MACOSX": 1} and len(account["left_out"]) == 1


def test_tars_joined_byte_by_byte_and_compressed_ones(tmp_path):
    one = tar(tmp_path / "a/one.tar", [("0.png", PNG)]).read_bytes()
    write(tmp_path / "b/train-0.tar", one + tar(tmp_path / "a/two.tar", [("1.png", PNG)]).read_bytes())
    with pytest.raises(BrokenShard, match="perhaps a second tar"):
        build_index(tmp_path / "b")
    write(tmp_path / "c/train-0.tar.gz", b"x"), write(tmp_path / "c/train-1.tar", one)
    with pytest.raises(ValueError, match=r"1 compressed tars.*gunzip .*train-0.tar.gz"):
        build_index(tmp_path / "c")


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        ([b"cat", b"dog", b"cat"], ["cat", "dog"], [0, 1, 0]),
        ([b"30000000", b"5", b"-1"], ["5", "30000000"], [1, 0, -1]),
        ([b"2", b"0", b"2\n"], ["0", "1", "2"], [2, 0, 2]),
    ],
)
def test_classes_of_tars(tmp_path, classes, names, labels):
    members = [m for i, c in enumerate(classes) for m in ((f"{i}.png", PNG), (f"{i}.cls", c), (f"{i}.fine.cls", c))]
    tar(tmp_path / "train-0.tar", members)
    _, found = indexed(tmp_path)
    assert Manifest.load(str(tmp_path)).labels == {"cls": names, "fine.cls": names}
    assert [found["train"][str(i)].label for i in range(3)] == labels
    for label in ("cls", "fine.cls"):
        data = ShardDataModule(str(tmp_path), 3, SimCLR(8), label=label, workers=0)
        assert next(iter(data.evaluation_loader("train", 3)))["label"].tolist() == labels
    assert inspect(str(tmp_path), "train")["classes"]


def test_classes_that_are_mixed_or_no_names(tmp_path):
    tar(tmp_path / "a/train-0.tar", [("0.png", PNG), ("0.cls", b"cat"), ("1.png", PNG), ("1.cls", b"1.0")])
    with pytest.raises(BrokenShard, match=r"train-0.tar: 1: .cls: expected a class number"):
        build_index(tmp_path / "a")
    tar(tmp_path / "b/train-0.tar", [("0.png", PNG), ("0.cls", b"cat"), ("1.png", PNG), ("1.cls", b"1")])
    with pytest.raises(BrokenShard, match=r"train-0.tar: 0: class 'cat' in .cls, where others have numbers like 1"):
        build_index(tmp_path / "b")


def test_empty_texts_are_no_captions(tmp_path, capsys):
    tar(
        tmp_path / "train-0.tar",
        [("0.png", PNG), ("0.txt", b" \n"), ("1.png", PNG), ("1.txt", b"a word"), ("2.png", PNG), ("2.txt", b"")],
    )
    _, found = indexed(tmp_path)
    assert [found["train"][str(i)].caption for i in range(3)] == [None, "a word", None]
    assert main(["verify", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "train: 2 of 3 samples have .txt" in said and "not checked: " in said


def test_folders_of_tars(tmp_path):
    for split in ("train", "Valid"):
        tar(tmp_path / f"a/{split}/00000.tar", [("0.png", PNG)])
    assert set(indexed(tmp_path / "a")[1]) == {"train", "val"}
    tar(tmp_path / "b/x-train-0.tar", [("0.png", PNG)]), tar(tmp_path / "b/extra.tar", [("1.png", PNG)])
    with pytest.raises(ValueError, match=r"1 tars name no split, such as extra.tar.*--splits train=extra.tar"):
        build_index(tmp_path / "b")
    _, found = indexed(tmp_path / "b", splits="test=ex*")
    assert {split: len(each) for split, each in found.items()} == {"train": 1, "test": 1}
    tar(tmp_path / "c/val/x-train-0.tar", [("0.png", PNG)])
    with pytest.raises(ValueError, match="names several splits: train, val"):
        build_index(tmp_path / "c")


def test_a_share_of_a_train_of_tars_becomes_val(tmp_path):
    for number in range(2):
        members = [m for i in range(20) for m in ((f"{number}{i:08d}.png", PNG), (f"{number}{i:08d}.txt", b"words"))]
        tar(tmp_path / f"{number:05d}.tar", members)
    write(tmp_path / "00000_stats.json", "{}"), write(tmp_path / "00000.parquet", b"x")
    account, found = indexed(tmp_path)
    assert set(found) == {"train"} and "--val-fraction 0.05 makes a val" in notes(account)
    assert set(account["left_out"]) == {"00000_stats.json", "00000.parquet"}
    before = {*found["train"]}
    _, found = indexed(tmp_path, val_fraction=0.3)
    assert {*found["train"], *found["val"]} == before and not {*found["train"]} & {*found["val"]}
    assert 4 < len(found["val"]) < 20
    batch = next(iter(ShardDataModule(str(tmp_path), 3, SimCLR(8), workers=0).evaluation_loader("val", 40)))
    assert {*batch["key"]} - {""} == {*found["val"]}
    again, found_again = indexed(tmp_path)
    assert {*found_again["val"]} == {*found["val"]} and "val is a share of 0.3 of train" in notes(again)
    assert set(indexed(tmp_path, val_fraction=0.0)[1]) == {"train"} and not list(tmp_path.glob("*.val.idx.npz"))


def test_the_layout_of_clip_benchmark(tmp_path):
    for split in ("train", "test"):
        tar(tmp_path / f"{split}/0.tar", [("s0.png", PNG), ("s0.cls", b"1"), ("s1.png", PNG), ("s1.cls", b"0")])
        write(tmp_path / split / "nshards.txt", "1")
    write(tmp_path / "classnames.txt", "a cat\na dog\na bird\n")
    write(tmp_path / "zeroshot_classification_templates.txt", "a photo of {c}\n")
    account, found = indexed(tmp_path)
    manifest = Manifest.load(str(tmp_path))
    assert set(found) == {"train", "test"} and manifest.labels == {"cls": ["a cat", "a dog", "a bird"]}
    assert manifest.made["templates"] == ["a photo of {c}"] and account["tables"] == 4
    write(tmp_path / "test/nshards.txt", "2")
    with pytest.raises(ValueError, match=r"nshards.txt: it says 2 shards, there are 1"):
        build_index(tmp_path)
    write(tmp_path / "test/nshards.txt", "1"), write(tmp_path / "classnames.txt", "a cat\n")
    with pytest.raises(ValueError, match="1 names, the classes in .cls go up to 1"):
        build_index(tmp_path)


def test_tars_that_cannot_be_taken_in(tmp_path):
    tar(tmp_path / "a/DATA.TAR", [("0.png", PNG)]), tar(tmp_path / "b/0.tar", [("0.flac", b"x")])
    with pytest.raises(ValueError, match=r"must be called .tar, in small letters; rename DATA.TAR"):
        build_index(tmp_path / "a")
    with pytest.raises(ValueError, match="no sample in any tar"):
        build_index(tmp_path / "b")
    tar(tmp_path / "c/x-train-0.tar", [("0.png", PNG)])
    for options, words in (
        ({"splits": "val=zz*"}, "no tar is left for zz"),
        ({"splits": "train=*,val=x*"}, "no tar is left for x"),
    ):
        with pytest.raises(ValueError, match=words):
            build_index(tmp_path / "c", **options)
    tar(tmp_path / "c/val/0.tar", [("0.png", PNG)])
    assert set(indexed(tmp_path / "c", splits="none")[1]) == {"train"}
    with pytest.raises(ValueError, match="--val-fraction would not be used"):
        build_index(tmp_path / "c", val_fraction=0.5)
    write(tmp_path / "c/classnames.txt", "cat\n\ndog\n")
    with pytest.raises(ValueError, match="classnames.txt line 2: blank"):
        build_index(tmp_path / "c")


def test_an_index_of_a_packed_set_keeps_its_names(tmp_path):
    packed(pictures(tmp_path / "set", "train/cat/0.png", "train/dog/1.png", "val/dog/2.png"), tmp_path / "out")
    before = Manifest.load(str(tmp_path / "out"))
    for path in (tmp_path / "out").glob("*.npz"):
        path.unlink()
    after = build_index(tmp_path / "out")
    assert (after.labels, after.splits) == (before.labels, before.splits) and not list(verify(tmp_path / "out"))
    tar(tmp_path / "out/more.tar", [("0.png", PNG), ("0.cls", b"1")])
    with pytest.raises(ValueError, match="packed by viewshards, and more.tar is not of it"):
        build_index(tmp_path / "out")


def test_two_pictures_of_one_view_are_a_question(tmp_path):
    tar(tmp_path / "train-0.tar", [("0.jpg", encoded(Image.fromarray(noise()), "JPEG")), ("0.png", PNG)])
    build_index(tmp_path)
    shards = ShardDataModule(str(tmp_path), 1, SimCLR(8), workers=0)
    with pytest.raises(BrokenShard, match=r"several files for one view, .jpg, .png: name one by data.natural_views"):
        next(iter(shards.evaluation_loader("train", 1)))
    named = ShardDataModule(str(tmp_path), 1, SimCLR(8), workers=0, natural_views=["png"])
    assert next(iter(named.evaluation_loader("train", 1)))["index"].tolist() == [0]


# Options, and packs that go on.


@pytest.mark.parametrize(
    "options",
    [["--workers", "-1"], ["--resize", "0"], ["--shard-samples", "0"], ["--shard-mb", "nan"], ["--val-fraction", "1.5"],
     ["--quality", "50"], ["--resize", "9", "--quality", "101"], ["--labels", "x"], ["--root", "x"], ["--outside"],
     ["--cloud-axes", "points-first"], ["--value-range", "5", "1"], ["--shard-mb", "1", "--shard-samples", "2"],
     ["--table", "none.csv"], ["--encoding", "utf-8"]],
)  # fmt: skip
def test_options_are_checked_and_none_is_ignored(tmp_path, options, capsys):
    root = pictures(tmp_path / "set", "a/0.png")
    try:
        code = main(["pack", str(root), str(tmp_path / "out"), *options])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and options[0] in capsys.readouterr().err.replace("shard_", "--shard-").replace(
        "quality must", "--resize"
    )
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_second_call_sees_every_option(tmp_path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    Image.fromarray(noise().astype(np.float32)[..., 0]).save(root / "f.tif")
    out = str(tmp_path / "out")
    assert main(["pack", str(root), out, "--value-range", "0", "255"]) == 0
    assert main(["pack", str(root), out, "--value-range", "0", "255", "--shard-mb", "100"]) == 0
    assert main(["pack", str(root), out, "--value-range", "0", "999"]) == 2
    assert "--value-range: [0.0, 255.0] there, [0.0, 999.0] asked for" in capsys.readouterr().err
    write(root / "broken.tif", b"II*\0")
    again = str(tmp_path / "again")
    assert main(["pack", str(root), again]) == 0 and main(["pack", str(root), again, "--strict"]) == 2
    equal = tmp_path / "equal"
    picture(equal / "train/a.png", 3), picture(equal / "val/b.png", 3), picture(equal / "train/c.png", 4)
    assert main(["pack", str(equal), str(tmp_path / "leaks"), "--leaks", "stop"]) == 2
    assert main(["pack", str(equal), str(tmp_path / "leaks"), "--leaks", "drop"]) == 0
    assert {split: list(each) for split, each in samples(tmp_path / "leaks").items()} == {"train": ["c"], "val": ["b"]}


def test_leaks_are_dropped_also_after_a_kill(tmp_path):
    root = tmp_path / "set"
    for name, seed in (("train/a.png", 1), ("train/b.png", 2), ("train/c.png", 3), ("val/x.png", 2)):
        picture(root / name, seed)
    _, whole = packed(root, tmp_path / "out", leaks="drop")
    made = Manifest.load(str(tmp_path / "out")).made
    for kept in (0, 1):  # killed before its manifest, with and without the shards written again
        plan = {key: value for key, value in made.items() if key not in ("account", "contents")}
        write(tmp_path / "out/.pack.json", json.dumps(plan))
        (tmp_path / "out/manifest.json").unlink()
        for path in [] if kept else (tmp_path / "out").glob("*train*"):
            path.unlink()
        account, found = packed(root, tmp_path / "out", leaks="drop")
        assert {split: {*each} for split, each in found.items()} == {split: {*each} for split, each in whole.items()}
        assert account["left_out"] == {"train/b.png": "equal to a file of another split: val: val/x.png"}


def test_a_doubtful_file_among_good_ones_stops_the_pack(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for i in range(3):
        np.save(root / f"{i}.npy", np.random.default_rng(i).normal(size=(300, 3)).astype(np.float32))
    np.save(root / "odd.npy", np.zeros((3, 5), np.float32))
    asks(root, tmp_path / "out", "odd.npy: an array (3, 5)", "--cloud-axes")


def test_a_second_call_names_what_differs_and_only_that(tmp_path, capsys):
    root = pictures(tmp_path / "set", *(f"a/{i}.png" for i in range(4)))
    assert main(["pack", str(root), str(tmp_path / "out"), "--resize", "10"]) == 0
    assert main(["pack", str(root), str(tmp_path / "out"), "--resize", "10"]) == 0
    capsys.readouterr()
    assert main(["pack", str(root), str(tmp_path / "out"), "--resize", "12"]) == 2
    said = capsys.readouterr().err
    assert "(--resize: 10 there, 12 asked for)" in said and "--shard" not in said
    write(root / "a/b.png", b"\x89PNG")  # stops the first call before any shard is whole
    assert main(["pack", str(root), str(tmp_path / "again"), "--strict"]) == 2
    assert main(["pack", str(root), str(tmp_path / "again")]) == 0
    assert main(["pack", str(root), str(root / "out")]) == 2
    assert "whose files are packed" in capsys.readouterr().err and not (root / "out").exists()
    assert main(["pack", "torchvision:cifar", str(tmp_path / "x")]) == 2
    assert "did you mean CIFAR10 or CIFAR100?" in capsys.readouterr().err
    assert main(["pack", "builtin:emojis", str(tmp_path / "x")]) == 2
    assert "did you mean emoji" in capsys.readouterr().err


def test_inspect_names_what_is_broken_and_goes_on(tmp_path, capsys):
    tar(tmp_path / "train-0.tar", [("0.png", PNG), ("1.png", PNG[:50]), ("2.png", PNG)])
    build_index(tmp_path)
    assert main(["inspect", str(tmp_path), "--sheet", str(tmp_path / "s.png")]) == 0
    said = capsys.readouterr().out
    assert "sample 1, 1: " in said and "60x40" in said and Path(tmp_path / "s.txt").exists()
