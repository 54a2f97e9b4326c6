"""Point clouds: read from every format, packed, seen as views that are functions of (seed, epoch, sample)."""

import json

import h5py
import numpy as np
import pytest
import torch
import trimesh

from tests.conftest import QUIET, packable
from tests.viewshards.test_pack import packed
from viewshards import Captions, ShardDataModule
from viewshards.cli import main
from viewshards.decode import decode
from viewshards.encoding import Encoding
from viewshards.order import generator
from viewshards.pack import pack
from viewshards.shards import ShardSet
from viewshards.sources.clouds import SAMPLED
from viewshards.sources.solids import Solids
from viewshards.verify import verify
from viewshards.views import PointAugmentation, PointViews
from viewshards.views.points import farthest, normalised


def cloud(n=50, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(dtype)


@pytest.fixture(scope="module")
def solids(tmp_path_factory):
    out = tmp_path_factory.mktemp("solids")
    pack(Solids(160, 200), out, Encoding(), shard_samples=30, workers=2, console=QUIET)
    return out


def module(root, views=None, **options):
    return ShardDataModule(str(root), 16, views or PointViews(64), workers=0, **options)


def test_every_format_of_a_folder(tmp_path):
    box, root = trimesh.creation.box((1, 2, 3)), tmp_path / "parts"
    for split in ("train", "val"):
        for name in ("box", "ball"):
            (root / split / name).mkdir(parents=True)
    box.export(root / "train/box/a.off")
    box.export(root / "train/box/b.obj")
    box.export(root / "train/box/c.ply")
    trimesh.PointCloud(cloud(70)).export(root / "train/ball/d.ply")
    np.save(root / "val/ball/e.x.npy", cloud(40, dtype=np.float16))
    np.savez(root / "val/ball/f.npz", points=cloud(30), colours=cloud(30))
    np.save(root / "val/ball/g.npy", np.hstack([cloud(20), cloud(20)]).astype(np.float64))
    manifest = packed(root, tmp_path / "out")
    assert manifest.labels == {"cls": ["ball", "box"]}
    found = {}
    for split in ("train", "val"):
        shards = ShardSet(str(tmp_path / "out"), split)
        found |= {shards.key(i): shards.read(i) for i in range(len(shards))}
    arrays = {key: decode("points.npy", files["points.npy"]) for key, files in found.items()}
    for key in ("box/a", "box/b", "box/c"):
        surface = np.isclose(np.abs(arrays[key]), [0.5, 1, 1.5], atol=1e-5).any(1)
        assert arrays[key].shape == (SAMPLED, 3) and surface.all()
        share = np.isclose(np.abs(arrays[key][:, 2]), 1.5, atol=1e-5).mean()  # even over the area: 2 * 2 of 22
        assert share == pytest.approx(4 / 22, abs=0.03)
    np.testing.assert_array_equal(arrays["ball/d"], cloud(70))
    assert arrays["ball/e_x"].dtype == np.float16 and arrays["ball/f"].shape == (30, 3)
    np.testing.assert_allclose(arrays["ball/g"], cloud(20), atol=1e-7)
    assert found["box/a"]["cls"] == b"1" and not list(verify(tmp_path / "out"))
    assert packable(root / "train/box/a.off") == packable(root / "train/box/a.off")


def test_files_of_modelnet_and_scanobjectnn(tmp_path):
    root = tmp_path / "scan"
    root.mkdir()
    for name, n in (("training_objectdataset", 6), ("test_objectdataset", 4)):
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["data"] = np.stack([cloud(25, seed=i) for i in range(n)])
            file["label"] = np.arange(n)[:, None] % 3
    manifest = packed(root, tmp_path / "out")
    assert {s: sum(x.samples for x in shards) for s, shards in manifest.splits.items()} == {"train": 6, "test": 4}
    assert manifest.labels == {"cls": ["0", "1", "2"]}
    shards = ShardSet(str(tmp_path / "out"), "test")
    number = [shards.key(i) for i in range(4)].index("test_objectdataset-000002")
    files = shards.read(number)
    np.testing.assert_array_equal(decode("points.npy", files["points.npy"]), cloud(25, seed=2))
    assert files["cls"] == b"2"
    (root / "shape_names.txt").write_text("chair\nrange hood\nlamp\n")
    assert packed(root, tmp_path / "named").labels == {"cls": ["chair", "range hood", "lamp"]}
    (root / "training_objectdataset_augmentedrot.h5").write_bytes((root / "training_objectdataset.h5").read_bytes())
    with pytest.raises(ValueError, match="files of several sets, .*put those of one in a folder"):
        packed(root, tmp_path / "mixed")
    (root / "training_objectdataset_augmentedrot.h5").rename(root / "training_objectdataset2.h5")
    assert sum(x.samples for x in packed(root, tmp_path / "parts").splits["train"]) == 12
    bad = tmp_path / "bad"
    bad.mkdir()
    with h5py.File(bad / "bad.h5", "w") as file:
        file["points"] = cloud()
    root = bad
    with pytest.raises(ValueError, match=r"bad.h5: expected data \(n, N, 3\) and label \(n,\); it has points"):
        packed(root, tmp_path / "other")


def test_a_table_of_clouds_split_by_family(tmp_path):
    rows = []
    for i in range(40):
        np.save(tmp_path / f"{i}.npy", cloud(seed=i))
        rows.append(
            {"file_name": f"{i}.npy", "label": "ab"[i % 2], "caption": f"part {i}", "family": i // 4, "split": "train"}
        )
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        "pack",
        str(tmp_path / "t.jsonl"),
        str(tmp_path / "out"),
        "--split-by",
        "family",
        "--val-fraction",
        "0.4",
    ]
    assert main(arguments) == 0
    families = {}
    for split in ("train", "val"):
        shards = ShardSet(str(tmp_path / "out"), split)
        families[split] = {json.loads(shards.read(i)["json"])["family"] for i in range(len(shards))}
    assert families["train"] | families["val"] == set(range(10)) and not families["train"] & families["val"]
    assert main([*arguments[:2], str(tmp_path / "no"), "--split-by", "famly"]) == 2
    data = ShardDataModule(str(tmp_path / "out"), 4, PointViews(16), text=Captions(context=8), workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch["points"][0].shape == (4, 16, 3) and batch["text"][0].shape == (4, 8)


def test_what_is_no_cloud_is_refused(tmp_path, capsys):
    for name, array, message in (
        ("flat", np.zeros((5, 2), np.float32), r"a cloud is an array (N, 3) of floats, got (5, 2)"),
        ("ints", np.zeros((5, 3), int), "of int64"),
        ("nan", np.full((5, 3), np.nan), "not finite"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "x.npy", array)
        assert main(["pack", str(folder), str(tmp_path / f"{name}-out")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh/x.obj").write_text("nothing")
    assert main(["pack", str(tmp_path / "mesh"), str(tmp_path / "mesh-out")]) == 2
    assert "x" in capsys.readouterr().err
    for name, data in (("empty.npy", b""), ("cut.npz", b"PK nothing")):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_bytes(data)
        assert main(["pack", str(tmp_path / name[:3]), str(tmp_path / f"{name}-out")]) == 2
        assert f"{name}: an empty file" in (said := capsys.readouterr().err) or f"{name} is no readable" in said
    inside = tmp_path / "modelnet/chair/test"
    inside.mkdir(parents=True)
    np.save(inside / "a.npy", cloud())
    assert main(["pack", str(tmp_path / "modelnet"), str(tmp_path / "m")]) == 0
    assert "the splits lie below 'chair/'" in capsys.readouterr().err
    assert main(["pack", str(inside), str(tmp_path / "s"), "--split-by", "family"]) == 2
    assert "--split-by is for tables, and no table is used here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="are at least 0"):
        PointAugmentation(jitter=-0.1)
    (tmp_path / "empty").mkdir()
    assert main(["pack", str(tmp_path / "empty"), str(tmp_path / "e")]) == 2
    assert "nothing to pack below it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="turn is none, up or any"):
        PointAugmentation(turn="left")
    with pytest.raises(ValueError, match="drop is a share below 1"):
        PointAugmentation(drop=1.0)


def test_a_batch_of_clouds(solids):
    data = module(solids, PointViews(64, [PointAugmentation(), None]))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert [view.shape for view in batch["points"]] == [(16, 64, 3)] * 2 and "image" not in batch
    assert batch["points"][0].dtype == torch.float32 and set(batch["label"].tolist()) <= set(range(8))
    plain = batch["points"][1]
    torch.testing.assert_close(plain.mean(1), torch.zeros(16, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.norm(dim=2).amax(1), torch.ones(16))
    drawn = data.as_pictures(batch["points"][0])
    assert drawn.shape == (16, 3, 96, 96) and drawn.min() < 0.7 and drawn.max() == 1
    with pytest.raises(ValueError, match="these shards hold no pictures"):
        data.of_picture(np.zeros((8, 8, 3), np.uint8))


def test_views_depend_on_seed_epoch_and_sample_only(solids):
    def clouds(workers, seed=0):
        data = ShardDataModule(str(solids), 16, PointViews(64), workers=workers, seed=seed)
        return {
            int(i): view for b in data.train_dataloader() for i, view in zip(b["index"], b["points"][0], strict=True)
        }

    one, two, other = clouds(0), clouds(2), clouds(0, seed=1)
    assert one.keys() == two.keys() and all(torch.equal(one[i], two[i]) for i in one)
    shared = one.keys() & other.keys()
    assert shared and not any(torch.equal(one[i], other[i]) for i in shared)


def test_evaluation_sees_each_cloud_once_unchanged(solids):
    data = module(solids)
    batches = list(data.evaluation_loader("val", batch_size=10))
    again = list(data.evaluation_loader("val", batch_size=10))
    assert all(torch.equal(a["points"][0], b["points"][0]) for a, b in zip(batches, again, strict=True))
    shards = ShardSet(str(solids), "val")
    first = decode("points.npy", shards.read(0)["points.npy"])
    np.testing.assert_allclose(batches[0]["points"][0][0], normalised(first[farthest(first, 64)]), atol=1e-6)
    padding = batches[-1]["weight"] == 0
    assert int(padding.sum()) == -len(shards) % 10 and (batches[-1]["points"][0][padding] == 0).all()


def test_small_clouds_are_filled_up_with_nothing():
    views, rows = PointViews(40, [None, PointAugmentation()])([cloud(25)], np.random.default_rng(0))
    assert not rows and all(view.shape == (40, 3) for view in views)
    assert all(np.isnan(view).all(1).sum() == 15 for view in views)
    plain, _ = PointViews(40).plain()([cloud(25)], np.random.default_rng(0))
    np.testing.assert_allclose(plain[0][:25], normalised(cloud(25)))


def test_augmentations():
    rng, points = generator(0), normalised(cloud(400))

    def of(**options):
        still = {"scale": (1.0, 1.0), "shift": 0.0}
        return PointAugmentation(**{**still, **options})(points, rng)

    np.testing.assert_allclose(of(), points, atol=1e-6)
    stretched = of(scale=(2 / 3, 1.5))
    factors = (stretched / points)[0]
    np.testing.assert_allclose(stretched, points * factors, atol=1e-5)
    assert (factors > 0.66).all() and (factors < 1.51).all() and len(set(factors.round(4).tolist())) == 3
    moved = of(shift=0.2) - points
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)
    about_z = of(turn="up")
    np.testing.assert_allclose(about_z[:, 2], points[:, 2], atol=1e-6)
    assert np.abs(about_z - points).max() > 0.05
    about_y = of(turn="up", up="y")
    np.testing.assert_allclose(about_y[:, 1], points[:, 1], atol=1e-6)
    for turned in (about_z, of(turn="any"), of(tilt=0.06)):
        np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1), atol=1e-5)
        assert np.linalg.det(np.linalg.lstsq(points, turned, rcond=None)[0]) == pytest.approx(1, abs=1e-4)
    assert np.abs(of(tilt=0.06) - points).max() < 0.4
    mirrored = of(flip=1.0)
    np.testing.assert_allclose(mirrored, points * [-1, -1, 1], atol=1e-6)
    shaken = of(jitter=0.01) - points
    assert 0.008 < shaken.std() < 0.012 and np.abs(shaken).max() <= 0.05 + 1e-6
    cut = of(crop=0.5)
    gone = np.isnan(cut[:, 0])
    assert 0 < gone.mean() <= 0.5
    normal = points[gone].mean(0) - points[~gone].mean(0)  # what is gone lies beyond a plane, roughly this way
    assert (points[gone] @ normal).mean() > (points[~gone] @ normal).mean()
    thinned = np.isnan(of(drop=0.8)[:, 0])
    assert 0 < thinned.mean() < 0.9


def test_map_coordinates_keep_their_digits(tmp_path):
    far = cloud(30).astype(np.float64) + np.array([4.5e6, 2e5, 0])
    np.save(tmp_path / "a.npy", far)
    stored = decode("npy", packable(tmp_path / "a.npy")[1])
    np.testing.assert_allclose(stored, far - far.mean(0), atol=1e-6)


def test_any_turn_is_as_likely():
    """The first axis of a uniform rotation is uniform on the sphere: its mean is 0, each square 1/3."""
    rng = generator(1)
    axis = np.array([[1.0, 0, 0]], np.float32)
    still = PointAugmentation(scale=(1.0, 1.0), shift=0.0, turn="any")
    ends = np.concatenate([still(axis, rng) for _ in range(4000)])
    assert np.abs(ends.mean(0)).max() < 0.04
    np.testing.assert_allclose((ends**2).mean(0), 1 / 3, atol=0.03)
