"""The order: a pure function, equal on all ranks, the same sets for every world size, resumable anywhere."""

import numpy as np
import pytest

from viewshards.order import ClusterBatches, EpochOrder, EvalBatches, TrainBatches, default_lanes

UNEVEN = [313, 7, 1000, 64, 1, 422, 193]


def batches(counts, epoch=0, consumed=0, world=1, rank=0, batch=64, lanes=8, window=2, seed=3):
    sampler = TrainBatches(counts, batch, lanes, window, seed, world, rank)
    sampler.epoch, sampler.consumed = epoch, consumed
    return [[i for _, i in step] for step in sampler], sampler


def test_an_epoch_visits_each_sample_at_most_once_and_leaves_less_than_a_step():
    for epoch in range(4):
        steps, sampler = batches(UNEVEN, epoch)
        seen = [i for step in steps for i in step]
        assert len(steps) == len(sampler) == sum(UNEVEN) // 64
        assert len(set(seen)) == len(seen)
        assert sum(UNEVEN) - len(seen) < 64
        assert min(seen) >= 0 and max(seen) < sum(UNEVEN)


def test_pure_function_of_seed_and_epoch():
    assert batches(UNEVEN, 1)[0] == batches(UNEVEN, 1)[0]
    assert batches(UNEVEN, 1)[0] != batches(UNEVEN, 2)[0]
    assert batches(UNEVEN, 1, seed=4)[0] != batches(UNEVEN, 1)[0]


def test_what_an_epoch_leaves_out_changes():
    everything = set(range(sum(UNEVEN)))
    left = [everything - {i for step in batches(UNEVEN, e)[0] for i in step} for e in range(6)]
    assert set.union(*left) != set.intersection(*left)
    assert not set.intersection(*left)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_world_size_has_equal_counts_and_the_same_global_batches(world):
    whole = [set(step) for step in batches(UNEVEN)[0]]
    ranks = [batches(UNEVEN, world=world, rank=r)[0] for r in range(world)]
    assert {len(rank) for rank in ranks} == {len(whole)}
    assert all(len(step) == 64 // world for rank in ranks for step in rank)
    for number, expected in enumerate(whole):
        assert set().union(*(set(rank[number]) for rank in ranks)) == expected


@pytest.mark.parametrize("window", [1, 2, 5])
def test_resuming_gives_the_rest_of_the_epoch(window):
    full, _ = batches(UNEVEN, epoch=5, window=window)
    for done in (1, 7, len(full) - 1, len(full)):
        rest, sampler = batches(UNEVEN, epoch=5, consumed=done * 64, window=window)
        assert rest == full[done:]
        assert len(sampler) == len(full)  # Lightning counts from the epoch's start


def test_a_new_epoch_starts_at_its_beginning():
    _, sampler = batches(UNEVEN, epoch=2, consumed=128)
    sampler.set_epoch(2)
    assert sampler.consumed == 128
    sampler.set_epoch(3)
    assert sampler.consumed == 0


def test_one_small_shard_is_shuffled_as_a_whole():
    """Samples that are neighbours in the tar meet in a batch no more often than chance would have it."""
    together = 0
    for epoch in range(50):
        for step in batches([512], epoch, window=4)[0]:
            ids = np.sort(step)
            together += int((np.diff(ids) == 1).sum())
    expected = 50 * 511 * (63 / 511)
    assert 0.8 * expected < together < 1.2 * expected


def test_a_batch_of_many_shards_mixes_them():
    counts = [500] * 64
    steps, _ = batches(counts, batch=256, lanes=16, window=4)
    shards = np.mean([len({i // 500 for i in step}) for step in steps])
    assert shards > 55  # 62.8 would be perfect


def test_the_middle_of_a_billion_samples_is_found_at_once():
    order = EpochOrder([100_000] * 10_000, 0, 7, 64, 4)
    ids = [next(order.lane(lane, order.lane_length // 2)) for lane in range(64)]
    assert len(set(ids)) == 64


def test_evaluation_pads_and_never_repeats():
    for world in (1, 2, 3):
        steps = [list(EvalBatches(50, 8, world, rank)) for rank in range(world)]
        assert len({len(s) for s in steps}) == 1
        ids = [i for rank in steps for step in rank for _, i in step]
        assert sorted(i for i in ids if i >= 0) == list(range(50))
        assert len(ids) % (8 * world) == 0


def test_lanes_depend_on_the_batch_alone():
    assert [default_lanes(b) for b in (256, 96, 4096, 100, 7, 130)] == [64, 48, 64, 50, 7, 26]


# Batches of one cluster.

CLUSTERS = np.random.default_rng(0).integers(-1, 5, sum(UNEVEN))
CLUSTERS[:40] = 7  # too small for a batch


def cluster_batches(epoch=0, consumed=0, world=1, rank=0, clusters=CLUSTERS, batch=64):
    sampler = ClusterBatches(clusters, UNEVEN, batch, 8, 2, 3, world, rank)
    sampler.epoch, sampler.consumed = epoch, consumed
    return [[i for _, i in step] for step in sampler], sampler


def test_every_global_batch_is_of_one_cluster():
    steps, sampler = cluster_batches(1)
    seen = [i for step in steps for i in step]
    assert len(steps) == len(sampler) and len(set(seen)) == len(seen)
    assert all(len(step) == 64 and len(set(CLUSTERS[step])) == 1 for step in steps)
    sizes = np.unique(CLUSTERS[CLUSTERS >= 0], return_counts=True)[1]
    assert sizes.sum() - len(seen) == (sizes % 64).sum()
    assert not {-1, 7} & set(CLUSTERS[seen])
    turns = [CLUSTERS[step[0]] for step in steps]
    assert len(set(turns[:5])) == 5  # in turn


def test_cluster_batches_are_a_function_of_seed_and_epoch_and_resume():
    steps, _ = cluster_batches(1)
    assert cluster_batches(1)[0] == steps != cluster_batches(2)[0]
    assert cluster_batches(1, consumed=3 * 64)[0] == steps[3:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_cluster_batch(world):
    whole, _ = cluster_batches()
    parts = [cluster_batches(world=world, rank=rank)[0] for rank in range(world)]
    assert [[i for rank in parts for i in rank[step]] for step in range(len(whole))] == whole


def test_one_cluster_is_an_ordinary_shuffle():
    steps, _ = cluster_batches(clusters=np.zeros(sum(UNEVEN), np.int64))
    seen = [i for step in steps for i in step]
    assert len(seen) == sum(UNEVEN) // 64 * 64 == len(set(seen)) and seen != sorted(seen)


def test_clusters_must_fit():
    with pytest.raises(ValueError, match="clusters of 3 samples, but the split has 2000"):
        cluster_batches(clusters=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="no cluster has the 64 samples"):
        cluster_batches(clusters=np.arange(sum(UNEVEN)))
