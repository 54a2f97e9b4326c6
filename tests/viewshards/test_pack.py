"""Packing: every kind of source, atomic, resumable, readable by webdataset, verified."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.conftest import QUIET
from viewshards.cli import main
from viewshards.encoding import Encoding
from viewshards.existing import contact_sheet, inspect
from viewshards.pack import pack
from viewshards.shards import Manifest, ShardSet
from viewshards.sources import Options, open_source
from viewshards.tars import build_index
from viewshards.verify import verify


def picture(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def folder(root, splits=("train", "val"), classes=("cat", "dog"), each=6):
    for split in splits:
        for c, name in enumerate(classes):
            for i in range(each):
                picture(root / split / name / f"{name}.{i}.{'jpg' if i % 2 else 'png'}", seed=c * 100 + i)
    return root


def packed(source, out, **options):
    return pack(open_source(str(source)), out, options.pop("encoding", Encoding()), console=QUIET, **options)


def test_image_folder(tmp_path):
    manifest = packed(folder(tmp_path / "pets"), tmp_path / "out", shard_samples=5, workers=2)
    assert manifest.labels == {"cls": ["cat", "dog"]}
    assert {s: sum(x.samples for x in shards) for s, shards in manifest.splits.items()} == {"train": 12, "val": 12}
    assert [x.samples for x in manifest.splits["train"]] == [5, 5, 2]
    train = ShardSet(str(tmp_path / "out"), "train")
    keys = sorted(train.key(i) for i in range(12))
    assert keys[0] == "cat/cat_0" and len(set(keys)) == 12
    for i in range(12):
        files = train.read(i)
        assert int(files["cls"]) == (0 if train.key(i).startswith("cat") else 1)
    original = (tmp_path / "pets/train/cat/cat.1.jpg").read_bytes()
    assert original in [train.read(i).get("jpg") for i in range(12)]  # bytes are kept as they are
    assert not list(verify(tmp_path / "out"))


def test_folders_without_splits_or_labels(tmp_path):
    root = folder(tmp_path / "pets", splits=("",), each=40)
    manifest = packed(root, tmp_path / "a")
    sizes = {split: sum(x.samples for x in shards) for split, shards in manifest.splits.items()}
    assert sizes["train"] + sizes["val"] == 80 and 1 <= sizes["val"] <= 20
    flat = tmp_path / "flat"
    for i in range(5):
        picture(flat / f"{i}.bmp", seed=i)
    manifest = packed(flat, tmp_path / "b")
    assert manifest.labels == {}
    assert set(ShardSet(str(tmp_path / "b"), "train").read(0)) == {"png", "json"}  # bmp is not for shards


def test_table_with_captions_labels_and_natural_views(tmp_path):
    rows = []
    for i in range(4):
        for view in ("left", "right"):
            picture(tmp_path / f"images/{i}.{view}.png", seed=i)
            rows.append(
                {"file_name": f"images/{i}.{view}.png", "id": f"thing{i}", "view": view, "caption": f"thing {i}",
                 "label": "odd" if i % 2 else "even", "split": "val" if i == 3 else "train", "colour": "red"}
            )  # fmt: skip
    table = tmp_path / "things.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(table), Options(labels="colour"))
    manifest = pack(source, tmp_path / "out", Encoding(), console=QUIET)
    assert manifest.labels == {"cls": ["even", "odd"], "colour": ["red"]}
    train = ShardSet(str(tmp_path / "out"), "train")
    assert len(train) == 3
    files = train.read(0)
    assert set(files) == {"left.png", "right.png", "txt", "cls", "json"}
    assert files["txt"].decode() == f"thing {train.key(0)[-1]}"
    assert json.loads(files["json"])["colour"] == "red"
    csv = tmp_path / "plain.csv"
    csv.write_text("file,caption\nimages/0.left.png,one\nimages/1.left.png,two\n")
    pack(open_source(str(csv), Options(val_fraction=0.0)), tmp_path / "csv", Encoding(), console=QUIET)
    assert {ShardSet(str(tmp_path / "csv"), "train").read(i)["txt"] for i in range(2)} == {b"one", b"two"}


def test_table_errors(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("name\nx\n")
    with pytest.raises(ValueError, match="no column for the file"):
        open_source(str(table))
    table.write_text("file\nmissing.png\n")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 1 files are not there, first .*t.csv line 2, column 'file': 'missing.png'"
    ):
        open_source(str(table))


def test_builtin_and_library_sources(tmp_path):
    emoji = open_source("builtin:emoji")
    assert len(emoji.samples) == 1905 and len(emoji.labels["group"]) == 9
    files = emoji.files(0)
    assert {"google.webp", "twitter.webp", "txt", "json", "cls"} == set(files)
    digits = open_source("builtin:digits")
    assert len(digits.samples) == 1797
    assert open_source("sklearn:digits").labels["cls"] == [str(i) for i in range(10)]
    for wrong, message in (
        ("builtin:cats", "digits, emoji"),
        ("sklearn:iris", "not an image set"),
        ("torchvision:Nothing", "no data set"),
        ("nowhere", "expected a folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_source(wrong)


def test_torchvision_set_on_disk(tmp_path):
    """MNIST's own format, written here, read by torchvision."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 6), ("t10k", 3)):
        header = (0x00000803).to_bytes(4, "big") + n.to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(range(256)) * 3 * n + bytes(16 * n))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            (0x00000801).to_bytes(4, "big") + n.to_bytes(4, "big") + bytes(range(n))
        )
    manifest = pack(
        open_source("torchvision:MNIST", Options(root=str(tmp_path))), tmp_path / "out", Encoding(), console=QUIET
    )
    assert {s: sum(x.samples for x in shards) for s, shards in manifest.splits.items()} == {"train": 6, "val": 3}
    with pytest.raises(ValueError, match="--val-fraction would not be used"):
        open_source("torchvision:MNIST", Options(root=str(tmp_path), val_fraction=0.2))
    with pytest.raises(FileNotFoundError, match="torchvision:CIFAR10: not below"):
        open_source("torchvision:CIFAR10", Options(root=str(tmp_path)))


def test_resize_brings_the_shorter_side_down_only(tmp_path):
    root = tmp_path / "big"
    picture(root / "a/large.jpg", (200, 100))
    picture(root / "a/small.jpg", (40, 30))
    picture(root / "a/large.png", (100, 200))
    packed(root, tmp_path / "out", encoding=Encoding(resize=50))
    sizes = inspect(str(tmp_path / "out"), "train")["picture sizes"]
    assert set(sizes) <= {"100x50", "40x30", "50x100"} and sum(sizes.values()) >= 2


def test_broken_sources_stop_with_their_name_or_are_listed(tmp_path):
    root = folder(tmp_path / "pets", splits=("train",))
    (root / "train/cat/cat.0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1 files would be left out\n  left out: train/cat/cat.0.png: no picture"):
        packed(root, tmp_path / "out", shard_samples=3, strict=True)
    assert not (tmp_path / "out/manifest.json").exists()
    manifest = packed(root, tmp_path / "out", shard_samples=3)  # resumes with the shards that are there
    assert list(manifest.made["account"]["left_out"]) == ["train/cat/cat.0.png"]
    assert sum(s.samples for s in manifest.splits["train"]) == 11


def test_the_same_pack_again_is_free_and_another_is_refused(tmp_path):
    root = folder(tmp_path / "pets")
    first = packed(root, tmp_path / "out", shard_samples=4)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert packed(root, tmp_path / "out", shard_samples=4).splits == first.splits
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="--shard-samples: 4 there, 5 asked for"):
        packed(root, tmp_path / "out", shard_samples=5)
    other = packed(root, tmp_path / "again", shard_samples=4)
    assert [s.sha256 for s in other.splits["train"]] == [s.sha256 for s in first.splits["train"]]  # same bytes
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="tars that are not of this pack"):
        packed(root, tmp_path / "foreign")


@pytest.mark.slow
def test_a_killed_pack_leaves_nothing_that_looks_whole_and_goes_on(tmp_path):
    whole = tmp_path / "whole"
    pack(open_source("builtin:emoji"), whole, Encoding(), shard_samples=100, console=QUIET)
    out = tmp_path / "out"
    arguments = ["pack", "builtin:emoji", str(out), "--shard-samples", "100"]
    command = [sys.executable, "-c", "import sys; from viewshards.cli import main; sys.exit(main())", *arguments]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while len(list(out.glob("*.tar"))) < 3:
        assert process.poll() is None, "the pack ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    assert 3 <= len(finished) < 20
    assert not (out / "manifest.json").exists()
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    again = Manifest.load(str(out))
    assert again.splits == Manifest.load(str(whole)).splits  # sha256 of every shard included
    assert {path.name for path in out.glob(".*")} <= {".pack.lock"}
    kept = [name for name, time_ns in finished.items() if (out / name).stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(finished) - 2  # at most the ones whose index was not yet there


def test_webdataset_reads_our_shards_and_we_read_its(tmp_path, digits):
    train = ShardSet(str(digits), "train")
    reader = webdataset.WebDataset([train.path(0)], shardshuffle=False, empty_check=False)
    theirs = [(sample["__key__"], sample["png"], sample["cls"]) for sample in reader]
    ours = [(train.key(i), train.read(i)["png"], train.read(i)["cls"]) for i in range(train.counts[0])]
    assert theirs == ours
    with webdataset.ShardWriter(str(tmp_path / "foreign-val-%03d.tar"), maxcount=4, verbose=0) as sink:
        for i in range(10):
            sink.write({"__key__": f"k{i}", "txt": f"text {i}", "cls": i % 3, "npy": np.arange(i)})
    manifest = build_index(tmp_path)
    assert {split: [s.samples for s in shards] for split, shards in manifest.splits.items()} == {"val": [4, 4, 2]}
    assert manifest.labels == {"cls": ["0", "1", "2"]}
    assert ShardSet(str(tmp_path), "val").read(7)["txt"] == b"text 7"


def test_verify_finds_every_kind_of_damage(tmp_path):
    packed(folder(tmp_path / "pets"), tmp_path / "out", shard_samples=6)
    assert main(["verify", str(tmp_path / "out")]) == 0
    train = ShardSet(str(tmp_path / "out"), "train")
    first, second = (tmp_path / "out" / train.shards[i].file for i in (0, 1))
    data = bytearray(first.read_bytes())
    offset, size = train._reader(0)[1].files(0)[next(iter(k for k in train.read(0) if k != "cls"))]
    data[offset : offset + size] = bytes(size)
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1024])
    problems = "\n".join(verify(tmp_path / "out"))
    assert "sha256 differs" in problems and f"{train.key(0)}: " in problems and "does not decode" in problems
    assert f"{second}: {second.stat().st_size} bytes, the manifest says" in problems
    assert main(["verify", str(tmp_path / "out")]) == 1


def test_inspect_and_contact_sheet(tmp_path, digits, capsys):
    assert main(["inspect", str(digits), "--sheet", str(tmp_path / "sheet.png")]) == 0
    text = capsys.readouterr().out
    assert "samples: 1437" in text and "8x8" in text and "contact sheet" in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 300 and np.asarray(sheet).std() > 10
    with pytest.raises(OSError, match=r"give a \.png path"):
        contact_sheet(str(digits), "train", tmp_path / "nowhere/sheet.png")


def test_keys_are_unique_and_edits_are_noticed(tmp_path):
    from viewshards.sources.source import unique

    assert unique(["a", "a", "a-2", "b.c", "b_c"]) == ["a", "a-2", "a-2-2", "b_c", "b_c-2"]
    picture(tmp_path / "x.png")
    table = tmp_path / "t.csv"
    prints = []
    for caption in ("one", "two"):
        table.write_text(f"file,caption\nx.png,{caption}\n")
        prints.append(open_source(str(table)).fingerprint())
    assert prints[0] != prints[1]


def test_two_packs_into_one_folder_do_not_mix(tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.pack.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is packing into it"):
            packed(folder(tmp_path / "pets"), tmp_path / "out")
    packed(folder(tmp_path / "pets"), tmp_path / "out")
    assert (tmp_path / "out/.pack.lock").exists()  # removed, it could be held twice


def test_errors_as_the_user_sees_them(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "viewshards pack SOURCE" in capsys.readouterr().err
    assert main(["pack", "builtin:nothing", str(tmp_path / "x")]) == 2
    assert "no built-in set 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pak"])
    assert "pak" in capsys.readouterr().err
