"""The data module: same samples and pixels whatever the workers, exact position, replacement, padding, arithmetic."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import QUIET
from tests.process import FORKS, gone, members
from viewshards.datamodule import ShardDataModule
from viewshards.encoding import Encoding
from viewshards.index import BrokenShard
from viewshards.pack import pack
from viewshards.shards import Manifest, ShardSet
from viewshards.sources import open_source
from viewshards.views import Augmentation, MultiView, SimCLR


def module(root, **options):
    options = {"views": SimCLR(8, strength=0.5, blur=0.0), "global_batch_size": 64, "workers": 0, **options}
    return ShardDataModule(str(root), **options)


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return list(loader)


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "copy")


def test_a_batch(digits):
    data = module(digits)
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch["image"]] == [(64, 3, 8, 8)] * 2
    assert batch["image"][0].dtype == torch.uint8
    assert len(batch["key"]) == len(set(batch["index"].tolist())) == 64
    labels = {data.train_set.key(i): int(data.train_set.read(i)["cls"]) for i in batch["index"].tolist()}
    assert [labels[key] for key in batch["key"]] == batch["label"].tolist()
    ready = data.on_after_batch_transfer(batch, 0)
    assert ready["image"][0].dtype == torch.float32
    back = (data.as_pictures(ready["image"][0]) * 255).round()
    torch.testing.assert_close(back, batch["image"][0].float(), atol=0.01, rtol=0)


def test_workers_change_nothing(digits):
    runs = [epoch(module(digits, workers=workers), 3) for workers in (0, 1, 3)]
    for other in runs[1:]:
        assert len(other) == len(runs[0]) == 1437 // 64
        for a, b in zip(runs[0], other, strict=True):
            assert a["key"] == b["key"]
            assert all(torch.equal(x, y) for x, y in zip(a["image"], b["image"], strict=True))


def load_for_ever(root, start_method, ready):
    os.setsid()
    multiprocessing.set_start_method(start_method, force=True)
    batches = iter(module(root, workers=2).train_dataloader())
    next(batches)
    ready.touch()
    time.sleep(1000)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_loaders_end_when_the_training_process_is_killed(digits, tmp_path, start_method):
    """By SIGKILL, or the kernel when memory runs out. Torch's own watchdog sees it where they are forks."""
    process = FORKS.Process(target=load_for_ever, args=(digits, start_method, tmp_path / "ready"))
    process.start()
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        assert len(members(process.pid)) >= {"fork": 3, "forkserver": 4}[start_method]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert gone(process.pid, 30)
    finally:
        for pid in members(process.pid):
            os.kill(int(pid), signal.SIGKILL)


def test_views_differ_between_epochs_samples_and_each_other(digits):
    data = module(digits)
    by_epoch = [
        {int(i): x for b in epoch(data, e) for i, x in zip(b["index"], b["image"][0], strict=True)} for e in (0, 1)
    ]
    both = sorted(by_epoch[0].keys() & by_epoch[1].keys())
    assert sum(torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in both) < len(both) * 0.02
    batch = epoch(data)[0]
    assert sum(torch.equal(a, b) for a, b in zip(*batch["image"], strict=True)) < 3


def test_two_ranks_see_the_global_batches_of_one(digits):
    class Trainer:
        world_size, num_devices = 2, 2

        def __init__(self, rank):
            self.global_rank = rank

    one = epoch(module(digits), 1)
    halves = []
    for rank in range(2):
        data = module(digits)
        data.trainer = Trainer(rank)
        halves.append(epoch(data, 1))
    for whole, a, b in zip(one, *halves, strict=True):
        pixels = {int(i): x for batch in (a, b) for i, x in zip(batch["index"], batch["image"][1], strict=True)}
        assert set(pixels) == set(whole["index"].tolist())
        assert all(torch.equal(pixels[int(i)], x) for i, x in zip(whole["index"], whole["image"][1], strict=True))


def test_position_resumes_in_the_middle_of_an_epoch(digits):
    full = epoch(module(digits), 4)
    data = module(digits, workers=1)
    state = {**module(digits).state_dict(), "epoch": 4, "consumed": 5 * 64}
    data.load_state_dict(json.loads(json.dumps(state)))  # plain types only
    loader = data.train_dataloader()
    assert len(loader) == len(full)
    assert [batch["key"] for batch in loader] == [batch["key"] for batch in full[5:]]


@pytest.mark.parametrize("change", [{"seed": 9}, {"lanes": 32}, {"window": 1}, {"global_batch_size": 128}])
def test_another_order_is_not_continued(digits, change):
    state = module(digits).state_dict()
    with pytest.raises(ValueError, match=f"{next(iter(change))}: checkpoint .*, now"):
        module(digits, **change).load_state_dict(state)


def test_other_shards_are_not_continued(digits, copy):
    state = module(digits).state_dict()
    manifest = Manifest.load(str(copy))
    manifest.splits["train"].pop()
    manifest.save(copy)
    with pytest.raises(ValueError, match="train: 1437 samples there, 1350 now"):
        module(copy).load_state_dict(state)


def test_evaluation_covers_each_sample_once_with_weight_zero_padding(digits):
    data = module(digits)
    for world in (1, 3):
        index, weight = [], []
        for rank in range(world):
            for batch in data.evaluation_loader("val", batch_size=50, world=world, rank=rank):
                index += batch["index"].tolist()
                weight += batch["weight"].tolist()
                assert len(batch["image"][0]) == 50
        assert sorted(i for i, w in zip(index, weight, strict=True) if w) == list(range(360))
        assert all(i == -1 for i, w in zip(index, weight, strict=True) if not w)


def test_arithmetic_is_explained(digits):
    class Trainer:
        callbacks: list = []

        def __init__(self, world):
            self.world_size, self.num_devices, self.global_rank = world, world, 0
            self._accelerator_connector = None

    def setup(world, **options):
        data = module(digits, **options)
        data.trainer = Trainer(world)
        data.setup("fit")

    with pytest.raises(ValueError, match=r"3 ranks cannot share 64 lanes evenly \(64 / 3 = 21.33\).*multiple of 3"):
        setup(3)
    with pytest.raises(ValueError, match=r"3 ranks.*Set data.lanes to one of \[3, 6, 12, 24, 48, 96\]"):
        setup(3, global_batch_size=96, lanes=32)
    with pytest.raises(
        ValueError, match="1437 samples, fewer than one global batch of 2048: give --data.global_batch_size 1437"
    ):
        setup(1, global_batch_size=2048)
    with pytest.raises(ValueError, match=r"must be a multiple of lanes \(48\)"):
        module(digits, lanes=48)
    with pytest.raises(ValueError, match="no split 'dev'; it has train, val"):
        setup(1, train_split="dev")
    with pytest.raises(ValueError, match="no label field 'colour'"):
        next(iter(module(digits, label="colour").train_dataloader()))


def damage(root, samples):
    """Zeroes the picture of some samples inside the tars, sizes unchanged."""
    shards = ShardSet(str(root), "train")
    for sample in samples:
        shard, position = shards.locate(sample)
        offset, size = shards._reader(shard)[1].files(position)["png"]
        with open(shards.path(shard), "r+b") as f:
            f.seek(offset)
            f.write(bytes(size))


def test_a_broken_sample_is_replaced_counted_and_named(copy):
    damage(copy, [700])
    seen = epoch(module(copy))
    problems = [p for batch in seen for p in batch["replaced"]]
    assert len(problems) == 1 and "sample 700: .png does not decode" in problems[0]
    index = [i for batch in seen for i in batch["index"].tolist()]
    assert 700 not in index and index.count(701) == 2
    assert [b["key"] for b in epoch(module(copy, workers=2))] == [b["key"] for b in seen]
    data = module(copy)
    data.count_broken(problems)  # 1 of 1437 is within 0.1 %
    with pytest.raises(BrokenShard, match=r"2 of 1437 samples.*max_broken = 0.001(.|\n)*other"):
        data.count_broken(["other"])


def test_evaluation_does_not_count_what_stands_in_for_a_broken_sample(copy):
    damage(copy, [3])
    batch = next(iter(module(copy).evaluation_loader("train", batch_size=8)))
    assert batch["index"].tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
    assert batch["weight"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1] and "sample 3" in batch["replaced"][0]


def test_a_disk_that_fails_is_not_a_broken_sample(copy):
    data = module(copy)
    dataset = data.train_dataloader().dataset
    Path(data.train_set.path(0)).unlink()
    with pytest.raises(FileNotFoundError):
        dataset[0, 0]


def test_a_position_at_the_end_of_an_epoch_is_the_start_of_the_next(digits):
    data = module(digits)
    data.load_state_dict({**data.state_dict(), "epoch": 4, "consumed": 22 * 64})
    assert data.position == {"epoch": 5, "consumed": 0}
    assert [b["key"] for b in data.train_dataloader()] == [b["key"] for b in epoch(module(digits), 5)]


def test_too_many_broken_in_a_row_end_the_run(copy):
    damage(copy, range(100, 120))
    with pytest.raises(BrokenShard, match="16 samples in a row cannot be read"):
        epoch(module(copy))


def test_missing_and_cut_shards_are_errors_before_training(copy):
    shards = ShardSet(str(copy), "train")
    with open(shards.path(1), "r+b") as f:
        f.truncate(10_000)
    with pytest.raises(BrokenShard, match=r"has 10000 bytes, the manifest says"):
        ShardSet(str(copy), "train")
    (copy / shards.shards[2].file).unlink()
    with pytest.raises(BrokenShard, match="is missing"):
        ShardSet(str(copy), "train")
    with pytest.raises(FileNotFoundError, match="viewshards index"):
        ShardSet(str(copy.parent), "train")


def test_device_backend_draws_what_cv2_does_on_the_cpu(digits):
    strong = [Augmentation(8, (0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, solarize=0.2)] * 2
    cpu, device = (module(digits, views=MultiView(strong, backend)) for backend in ("cv2", "device"))
    a, b = (data.on_after_batch_transfer(epoch(data)[0], 0) for data in (cpu, device))
    assert "draws" not in b and a["key"] == b["key"]
    difference = (cpu.as_pictures(a["image"][0]) - cpu.as_pictures(b["image"][0])).abs().mean() * 255
    assert difference < 2.0


def test_padding_and_labels_of_a_json_field(tmp_path):
    from tests.conftest import QUIET
    from viewshards.encoding import Encoding
    from viewshards.pack import pack
    from viewshards.sources import open_source

    pack(open_source("builtin:emoji"), tmp_path, Encoding(), console=QUIET)
    data = ShardDataModule(str(tmp_path), 64, SimCLR(32), label="subgroup", natural_views=["twitter"], workers=0)
    batch = next(iter(data.evaluation_loader("val")))
    assert len(batch["image"]) == 1 and batch["label"].max() < len(data.classes) == 98
    known = json.loads(data.val_set.read(0)["json"])
    assert data.classes[batch["label"][0]] == known["subgroup"] and batch["caption"][0] == known["name"]
    assert np.isin(batch["group"].numpy(), np.arange(-1, 20)).all()
    wrong = ShardDataModule(str(tmp_path), 64, SimCLR(32), natural_views=["apple"], workers=0)
    with pytest.raises(BrokenShard, match=r"no image apple; it has .*google.webp"):
        next(iter(wrong.train_dataloader()))


def test_clusters_from_a_file(digits, tmp_path):
    samples = len(module(digits).train_set)
    np.save(tmp_path / "clusters.npy", np.arange(samples) % 3)
    data = module(digits, clusters=str(tmp_path / "clusters.npy"))
    batches = epoch(data)
    assert len(batches) == data.steps_per_epoch
    assert all(len(set((batch["index"] % 3).tolist())) == 1 for batch in batches)
    state = data.state_dict()
    np.save(tmp_path / "clusters.npy", np.arange(samples) % 4)
    with pytest.raises(ValueError, match="cannot continue the checkpoint's order of samples; clusters"):
        module(digits, clusters=str(tmp_path / "clusters.npy")).load_state_dict(state)
    with pytest.raises(ValueError, match="clusters: checkpoint None"):
        data.load_state_dict(module(digits).state_dict())


def test_fields_go_along_with_the_batch(tmp_path):
    pack(open_source("builtin:hands"), tmp_path, Encoding(), console=QUIET)
    views = SimCLR(32, natural="ordered", min_scale=0.99, strength=0.0, blur=0.0, flip=0.0)
    batch = epoch(module(tmp_path, views=views, fields=["joints"]))[0]
    assert batch["joints"].shape == (64, 2, 11, 2) and batch["joints"].dtype == torch.float32
    assert batch["joints"].min() >= 0 and batch["joints"].max() <= 1
    distance = (batch["joints"][:, 0] - batch["joints"][:, 1]).norm(dim=2).mean(1)
    strangers = (batch["joints"][:, 0] - batch["joints"][:, 1].roll(1, 0)).norm(dim=2).mean(1)
    assert distance.mean() < 0.5 * strangers.mean()  # a partner has a similar pose
    with pytest.raises(BrokenShard, match="no field 'poses'"):
        epoch(module(tmp_path, views=views, fields=["poses"]))


def test_pasted_digits_are_independent_of_the_emoji_and_of_the_split(tmp_path):
    pack(open_source("builtin:salient"), tmp_path, Encoding(), console=QUIET)
    loaders = [module(tmp_path, label=label).evaluation_loader("val") for label in ("cls", "digit", "group")]
    target, digit, group = (torch.cat([batch["label"] for batch in loader]) for loader in loaders)
    padding = torch.cat([batch["weight"] for batch in loaders[0]]) == 0
    assert 0.4 < target[~padding].float().mean() < 0.6
    assert ((digit >= 0) == (target == 1)).all() and len(group[~padding].unique()) == 9
    source, plain = open_source("builtin:salient"), open_source("builtin:emoji")
    for sample in range(30):
        about = json.loads(source.files(sample)["json"])
        assert about["name"] == plain.concepts[sample]["name"] and source.files(sample) == source.files(sample)
        assert (about["digit"] is None) == (about["target"] == 0)


def test_the_long_tail_is_long_in_train_only():
    source = open_source("builtin:longtail")
    counts = {"train": [0] * 10, "val": [0] * 10}
    for sample, (_, split) in enumerate(source.samples):
        counts[split][int(source.files(sample)["cls"])] += 1
    assert counts["train"][0] > 20 * counts["train"][8] and min(counts["train"]) >= 1
    assert min(counts["val"]) > 0.5 * max(counts["val"])


def test_samples_with_different_numbers_of_views_are_named():
    from viewshards.dataset import collate

    one = {"image": [np.zeros((4, 4, 3), np.uint8)], "key": "a"}
    two = {"image": [np.zeros((4, 4, 3), np.uint8)] * 2, "key": "b"}
    with pytest.raises(
        ValueError, match=r"a has 1 natural views, b has 2: name those .*data.natural_views.*data.missing"
    ):
        collate([two, one])
