"""Video backbones: worked numbers and invariances, masks that hold, one frame and many, training and resume."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from manyviews import methods as m
from manyviews import objectives as o
from manyviews.backbones import ConvNet, FrameMean, TrajViT, ViT3D, ViViT, views_of
from manyviews.backbones.encoding import with_tracks
from manyviews.backbones.spacetime import Attention, Block, TokenLearner, merged
from manyviews.backbones.trajvit import sines, trajectories
from manyviews.evaluation import Cost
from tests.manyviews.test_image_methods import Reseed, state
from tests.manyviews.test_methods import fit
from tests.manyviews.test_text_methods import Words
from tests.support.training import fast

TINY = {"dim": 24, "depth": 2, "heads": 2}


class PointFeatures(nn.Module):
    """A feature map without a receptive field: one pixel, one feature."""

    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(3, dim)

    def forward(self, images):
        return self.linear(images[:, :, ::4, ::4].movedim(1, 3))


def trajvit(**options):
    torch.manual_seed(0)
    model = TrajViT(frames=4, widths=[16, 16], grid=4, **{**TINY, **options}).eval()
    model.features = PointFeatures(24)
    return model


def clips(n=2, frames=4, side=16, numbers=3, seed=0):
    """Frames, and ids at a quarter of their side, each number in some places of most frames."""
    g = torch.Generator().manual_seed(seed)
    video = torch.randn(n, frames, 3, side, side, generator=g)
    ids = torch.randint(0, numbers + 1, (n, frames, side // 4, side // 4), generator=g)
    return video, ids


# Trajectories.


def test_the_masked_mean_of_the_worked_example():
    maps = torch.arange(16.0).view(1, 1, 4, 4, 1)
    ids = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    ids[0, 0, 0, :2] = ids[0, 0, 1, 0] = 1
    looks, centres, present = trajectories(maps, ids)
    assert looks.item() == pytest.approx(1.666667, abs=1e-6) and present.tolist() == [[[True]]]
    torch.testing.assert_close(centres.flatten(), torch.tensor([0.083333, 0.083333]), atol=1e-6, rtol=0)


def test_means_of_a_loop():
    maps, (_, ids) = torch.randn(2, 4, 4, 4, 5), clips()
    looks, centres, present = trajectories(maps, ids)
    for b in range(2):
        for k in range(1, 4):
            for t in range(4):
                there = ids[b, t] == k
                assert present[b, k - 1, t] == there.any()
                if there.any():
                    torch.testing.assert_close(looks[b, k - 1, t], maps[b, t][there].mean(0))
                    torch.testing.assert_close(centres[b, k - 1, t], there.nonzero().float().mean(0) / 4)
    half = trajectories(maps.bfloat16(), ids)[0]
    assert half.dtype == torch.float32


def test_the_numbers_of_trajectories_do_not_matter():
    model, (video, ids) = trajvit(), clips()
    whole = model(with_tracks(video, ids))
    table = torch.tensor([0, 3, 1, 2])
    other = model(with_tracks(video, table[ids]))
    torch.testing.assert_close(other.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.tokens[:, 1 + table[1:] - 1], whole.tokens[:, 1:], atol=1e-5, rtol=1e-4)
    far = model(with_tracks(video, torch.tensor([0, 7, 2, 9])[ids]))  # empty rows between them
    torch.testing.assert_close(far.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    assert far.token_mask.sum(1).tolist() == whole.token_mask.sum(1).tolist()


def test_a_clip_does_not_depend_on_its_batch():
    """The other clip has many more trajectories: rows of padding must not be looked at."""
    model, (video, ids) = trajvit(), clips()
    busy, many = clips(1, numbers=12, seed=5)
    alone = model(with_tracks(video[:1], ids[:1]))
    both = model(with_tracks(torch.cat([video[:1], busy]), torch.cat([ids[:1], many])))
    torch.testing.assert_close(both.pooled[:1], alone.pooled, atol=1e-5, rtol=1e-4)


def test_what_lies_in_no_trajectory_is_not_seen():
    model, (video, ids) = trajvit(), clips()
    video.requires_grad_()
    model(with_tracks(video, ids)).pooled.sum().backward()
    outside = F.interpolate((ids == 0).float(), (16, 16), mode="nearest").bool()[:, :, None].expand_as(video)
    assert (video.grad[outside] == 0).all() and (video.grad[~outside] != 0).any()


def test_frames_twice_are_as_many_trajectories():
    model, (video, ids) = trajvit(), clips()
    twice = model(with_tracks(video.repeat_interleave(2, 1), ids.repeat_interleave(2, 1)))
    assert twice.tokens.shape == model(with_tracks(video, ids)).tokens.shape
    with torch.no_grad():
        for part in (model.appearance, model.position):
            part.time.zero_()
    again = model(with_tracks(video, ids))
    twice = model(with_tracks(video.repeat_interleave(2, 1), ids.repeat_interleave(2, 1)))
    # attention over each frame twice, and once over the latent: not the same, but a split in two is further away
    cut = ids.clone()
    cut[:, 2:][cut[:, 2:] == 1] = 4
    split = model(with_tracks(video, cut))
    assert split.tokens.shape[1] == again.tokens.shape[1] + 1
    assert (twice.pooled - again.pooled).norm() < (split.pooled - again.pooled).norm()


def test_a_trajectory_of_one_frame_is_an_image():
    model, (video, ids) = trajvit(), clips()
    one = ids.clone()
    one[:, 1:] = 0
    with torch.no_grad():
        for part in (model.appearance, model.position):
            part.time.zero_()
    torch.testing.assert_close(
        model(with_tracks(video, one)).pooled, model(with_tracks(video[:, :1], one[:, :1])).pooled, atol=1e-5, rtol=1e-4
    )


def test_no_trajectory_at_all_and_no_tracks():
    model, (video, ids) = trajvit(), clips()
    nothing = model(with_tracks(video, torch.zeros_like(ids)))
    assert nothing.tokens.shape[1] == 1 and torch.isfinite(nothing.pooled).all()
    regular = model(video)
    assert regular.tokens.shape == (2, 17, 24) and regular.token_mask.all()
    with pytest.raises(ValueError, match=r"takes clips \(B, T, 3, H, W\), got \(2, 3, 16, 16\)"):
        model(video[:, 0])


def test_both_coordinates_move_the_code_alike():
    start = sines(torch.tensor([0.25, 0.25]), 64)
    moved = [(sines(torch.tensor(p), 64) - start).norm().item() for p in ([0.75, 0.25], [0.25, 0.75])]
    assert moved[0] == pytest.approx(moved[1], rel=1e-5) and moved[0] > 1


def test_views_of_clips_carry_their_tracks():
    video, ids = clips()
    (view,) = views_of({"video": [video], "tracks": [ids]})
    assert view.shape == (2, 4, 4, 16, 16) and torch.equal(view[:, :, :3], video)
    assert torch.equal(view[:, :, 3, ::4, ::4].long(), ids)
    with pytest.raises(ValueError, match=r"needs views under one of image, points, video; it has label"):
        views_of({"label": ids})


# Space-time patches.


def test_tokens_of_the_worked_example():
    """16 frames of 224 px in tubes of 2 x 16 x 16: 1,568 tokens."""
    model = ViT3D(depth=0, dim=12, heads=2)
    assert model.tokens(torch.zeros(1, 16, 3, 224, 224)).flatten(1, 2).shape == (1, 1568, 12)
    longer = ViT3D(16, 4, 8, 2, **TINY)(torch.randn(2, 8, 3, 16, 16))
    assert longer.tokens.shape == (2, 1 + 4 * 4, 24)


def test_an_inflated_model_gives_a_still_clip_the_images_tokens():
    model = ViT3D(16, 4, 8, 2, **TINY)
    kernel, space = torch.randn(24, 3, 8, 8), torch.randn(4, 24)
    model.inflate(kernel, space)
    image = torch.randn(2, 3, 16, 16)
    tokens = model.tokens(image[:, None].expand(-1, 4, -1, -1, -1))
    flat = F.conv2d(image, kernel, model.embed.bias, 8).flatten(2).mT + space
    for step in range(2):
        torch.testing.assert_close(tokens[:, step], flat, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("start", "r", "layers", "left"), [(197, 8, 12, 101), (197, 13, 12, 41), (1569, 65, 12, 789), (1569, 65, 20, 269), (1569, 65, 23, 74), (1569, 65, 24, 38)])  # fmt: skip
def test_merged_tokens_of_the_worked_example(start, r, layers, left):
    x, sizes = torch.randn(1, start, 4), torch.ones(1, start)
    for _ in range(layers):
        x, sizes = merged(x, sizes, x, r)
    assert x.shape[1] == left and sizes.sum().item() == pytest.approx(start)


def test_merging():
    x, sizes = torch.randn(2, 9, 6), torch.ones(2, 9)
    same, still = merged(x, sizes, x, 0)
    assert torch.equal(same, x) and torch.equal(still, sizes)
    first, _ = merged(x, sizes, x, 4)
    assert torch.equal(first[:, 0], x[:, 0])  # the class token stays, and stays first
    x[:, 5] = x[:, 4]  # two that are alike
    fewer, grown = merged(x, sizes, x, 1)
    assert fewer.shape[1] == 8 and (grown == 2).sum(1).tolist() == [1, 1]
    attention = Attention(6, 2)
    with torch.no_grad():
        before, after = attention(x)[0], attention(fewer, None, grown)[0]
    torch.testing.assert_close(before.sum(1) - before[:, 4], after.sum(1), atol=1e-5, rtol=1e-4)


def test_a_mask_hides_keys():
    block, x = Block(24, 2).eval(), torch.randn(2, 7, 24)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    other = x.clone()
    other[:, 5:] = torch.randn(2, 2, 24)
    torch.testing.assert_close(block(x, mask)[0][:, :5], block(other, mask)[0][:, :5])
    torch.testing.assert_close(block(x, mask)[0][:, :5], block(x[:, :5])[0], atol=1e-5, rtol=1e-4)


def test_learnt_tokens():
    learner, x = TokenLearner(24, 5), torch.randn(2, 30, 24)
    found = learner(x)
    assert found.shape == (2, 5, 24) and learner(x[:, :11]).shape == (2, 5, 24)
    torch.testing.assert_close(learner(x[:, torch.randperm(30)]), found, atol=1e-5, rtol=1e-4)
    nn.init.zeros_(learner.maps[-1].weight)
    nn.init.zeros_(learner.maps[-1].bias)
    torch.testing.assert_close(learner(x), x.mean(1, keepdim=True).expand(-1, 5, -1))
    model = ViT3D(16, 4, 8, 2, learner=3, **TINY)
    assert model(torch.randn(2, 4, 3, 16, 16)).tokens.shape == (2, 4, 24)
    with pytest.raises(ValueError, match="merge or learner"):
        ViT3D(16, 4, 8, 2, merge=1, learner=3, **TINY)


def test_the_factorised_encoder():
    model, video = ViViT(16, 8, 4, 2, **TINY).eval(), torch.randn(2, 8, 3, 16, 16)
    found = model(video)
    assert found.tokens.shape == (2, 1 + 4, 24)
    order = torch.randperm(16)
    shuffled = video.unfold(3, 4, 4).unfold(4, 4, 4).flatten(3, 4)[:, :, :, order]
    shuffled = shuffled.unflatten(3, (4, 4)).permute(0, 1, 2, 3, 5, 4, 6).reshape(2, 8, 3, 16, 16)
    with torch.no_grad():
        model.space.copy_(model.space[:, :, order])
    torch.testing.assert_close(model(shuffled).pooled, found.pooled, atol=1e-5, rtol=1e-4)


def test_frames_one_by_one():
    net, video = ConvNet([8, 16], norm="group"), torch.randn(2, 5, 4, 16, 16)
    found = FrameMean(net)(video)
    each = torch.stack([net(video[:, t, :3]).pooled for t in range(5)], 1)
    torch.testing.assert_close(found.tokens, each, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.pooled, each.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(FrameMean(net, "middle")(video).pooled, each[:, 2], atol=1e-5, rtol=1e-4)


# What it costs.


class Fed:
    """A data module of a single batch."""

    def __init__(self, batch):
        self.batch = {**batch, "weight": torch.ones(len(batch["index"])), "replaced": []}

    def evaluation_loader(self, split, world=1, rank=0):
        return [self.batch]

    def transfer_batch_to_device(self, batch, device, _):
        return batch

    def on_after_batch_transfer(self, batch, _):
        return batch


def test_tokens_and_operations():
    """Attention of n tokens of width d: 2 n n d for the scores and as many for the mixture, in each block."""
    method = m.CLIP(BACKBONES["ViT3D"](), Words(), dim=12, **FAST)
    found = Cost().measure(method, Fed(Clips()[0])).scores
    n, d, depth = 2 * 4 + 1, 24, 2
    assert found["tokens"] == 8 and found["attention_gflops"] == pytest.approx(depth * 4 * n * n * d / 1e9)
    linear = depth * 2 * n * (3 * d * d + d * d + 8 * d * d) / 1e9
    assert found["gflops"] > found["attention_gflops"] + linear and found["milliseconds"] > 0
    method = m.CLIP(BACKBONES["TrajViT"](), Words(), dim=12, **FAST)
    batch = Clips()[0]
    expected = sum(len(set(ids.flatten().tolist()) - {0}) for ids in batch["tracks"][0]) / 12
    assert Cost().measure(method, Fed(batch)).scores["tokens"] == pytest.approx(expected)


# Methods: those for images and for images with texts, on other backbones.

FAST = fast()
SPACE = {"image_size": 16, "frames": 4, "patch": 8, "tubelet": 2, **TINY}
BACKBONES = {
    "TrajViT": lambda: TrajViT(frames=4, widths=[16, 16], grid=4, **TINY),
    "ViT3D": lambda: ViT3D(**SPACE),
    "ToMe": lambda: ViT3D(merge=2, **SPACE),
    "TokenLearner": lambda: ViT3D(learner=3, **SPACE),
    "ViViT": lambda: ViViT(**SPACE),
    "FrameMean": lambda: FrameMean(ConvNet([8, 16], norm="group")),
}
METHODS = {
    "CLIP": lambda backbone: m.CLIP(backbone, Words(), dim=12, **FAST),
    "SigLIP": lambda backbone: m.SigLIP(backbone, Words(), dim=12, **FAST),
    "SimCLR": lambda backbone: m.SimCLR(backbone, projector_out=8, **FAST),
    "MultiView": lambda backbone: m.MultiView(backbone, o.MVDHEL(0.5), projector_out=8, **FAST),
}


class Clips(torch.utils.data.Dataset):
    """Batches of clips with trajectories, from a seed: a view with its caption, or for `method` without texts two."""

    def __init__(self, method="CLIP", n=4, size=12, start=0):
        self.reads = method in ("CLIP", "SigLIP")
        self.n, self.size, self.start = n, size, start

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        pairs = [
            clips(self.size, numbers=2 + (i + self.start + v) % 4, seed=10 * (i + self.start) + v)
            for v in range(1 if self.reads else 2)
        ]
        text = torch.randint(1, 40, (self.size, 6), generator=torch.Generator().manual_seed(i + self.start))
        for video, _ in pairs:
            video[:, :, 0, 0, :6] = (text / 10 - 2)[:, None]
        index = torch.arange(self.size) + (i + self.start) * self.size
        unknown = torch.full((self.size,), -1)
        return {
            "video": [video for video, _ in pairs], "tracks": [ids for _, ids in pairs], **({"text": [text]} if self.reads else {}),
            "index": index, "group": unknown, "label": unknown, "replaced": [],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "method"),
    [*((b, "CLIP") for b in BACKBONES), *(("TrajViT", name) for name in METHODS if name != "CLIP")],
)
def test_it_learns_and_resumes_bit_equal(backbone, method, tmp_path):
    def make():
        pl.seed_everything(0, verbose=False)
        return METHODS[method](BACKBONES[backbone]())

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(outputs["loss"].item())
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half")

    losses, learner = [], make()
    before = state(learner)
    fit(learner, 40, [Watch()], Clips(method, 1))
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]
    idle = {"objective.scale.log_scale"}
    assert not {key for key, p in learner.named_parameters() if torch.equal(p, before[key])} - idle
    whole, again = make(), make()
    fit(whole, 6, [Reseed(), Watch()], Clips(method, 6))
    fit(again, 6, [Reseed()], Clips(method, 3, start=3), ckpt=tmp_path / "half")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_chunks_of_clips_give_the_weights_of_the_whole_batch():
    def train(chunk):
        pl.seed_everything(0, verbose=False)
        method = m.CLIP(
            BACKBONES["TrajViT"](), Words(), dim=12, **fast(partial(torch.optim.SGD, lr=0.05), grad_cache=chunk)
        )
        fit(method, 2, batches=Clips(n=2))
        return method.state_dict()

    for (key, a), b in zip(train(0).items(), train(5).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5, msg=key)
