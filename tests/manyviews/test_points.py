"""Point clouds: worked numbers, geometry against slow references, masks from outside, training, resume, ranks."""

import json
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from manyviews import methods as m
from manyviews import objectives as o
from manyviews.backbones import PointTransformer, ShapeStatistics
from manyviews.backbones.points import (
    MiniPointNet,
    PointDecoder,
    blocks,
    farthest_points,
    group,
    nearest_points,
    position_mlp,
)
from manyviews.distributed import simulate
from manyviews.evaluation import Accuracy, Features, FewShotSVM, LinearSVM
from manyviews.evaluation.svm import Machine
from manyviews.methods.pointmae import kept
from manyviews.objectives.chamfer import chamfer
from tests.manyviews.test_image_methods import Reseed, state
from tests.manyviews.test_methods import fit
from tests.support.training import fast

FIVE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [5, 1, 0]])[None]


def count(module):
    return sum(p.numel() for p in module.parameters())


# Geometry.


def test_chamfer_of_the_worked_example():
    a, b = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]]), torch.tensor([[[0.0, 0, 0], [0, 2, 0], [3, 0, 0]]])
    assert chamfer(a, b).item() == pytest.approx(3.166667, abs=1e-6)
    assert chamfer(a, b, "l1").item() == pytest.approx(0.916667, abs=1e-5)
    assert chamfer(b, a).item() == pytest.approx(3.166667, abs=1e-6)
    assert chamfer(a, a.flip(1)).item() == 0
    assert chamfer(3 * a, 3 * b).item() == pytest.approx(9 * 3.166667, abs=1e-5)
    same = a.clone().requires_grad_()
    chamfer(same, a, "l1").sum().backward()
    assert torch.isfinite(same.grad).all()


def test_farthest_points_of_the_worked_example():
    assert farthest_points(FIVE, 3).tolist() == [[0, 4, 1]]
    assert farthest_points(FIVE, 5).tolist() == [[0, 4, 1, 2, 3]]


def test_farthest_points_spread():
    points = torch.randn(3, 200, 3)
    chosen = farthest_points(points, 200)
    assert all(sorted(row.tolist()) == list(range(200)) for row in chosen)
    for cloud, order in zip(points, chosen, strict=True):
        gaps = [torch.cdist(cloud[order[k]][None], cloud[order[:k]]).min().item() for k in range(1, 50)]
        assert all(a >= b - 1e-6 for a, b in pairwise(gaps))


def test_nearest_points_of_the_worked_example():
    found = nearest_points(FIVE[:, [0, 4]], FIVE, 2)
    assert found.tolist() == [[[0, 1], [4, 3]]]
    patches = group(FIVE, 2, 2)
    assert patches.centres.tolist() == [[[0, 0, 0], [5, 1, 0]]]
    assert patches.relative.tolist() == [[[[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, -1, 0]]]]


def test_chunks_of_centres_change_nothing(monkeypatch):
    points = torch.randn(2, 100, 3)
    centres = points[:, :17]
    whole = nearest_points(centres, points, 8)
    monkeypatch.setattr("manyviews.backbones.points.CELLS", 300)
    assert torch.equal(nearest_points(centres, points, 8), whole)


def test_what_is_no_point_is_never_chosen():
    cloud = torch.randn(60, 3)
    alone = group(cloud[None], 8, 6)
    padded = torch.full((1, 100, 3), torch.nan)
    padded[0, :60] = cloud
    for other in (padded, padded.roll(13, 1)):  # the first valid point is no longer in row 0
        patches = group(other, 8, 6)
        assert torch.equal(patches.centres, alone.centres) and torch.equal(patches.relative, alone.relative)
    few = group(padded[:, :3].contiguous(), 5, 6)  # fewer points than centres, and than neighbours
    assert torch.isfinite(few.relative).all()
    assert {tuple(c) for c in few.centres[0].tolist()} == {tuple(p) for p in cloud[:3].tolist()}


def test_a_shift_moves_centres_only():
    points = torch.rand(2, 128, 3, dtype=torch.float64).float()
    shift = torch.tensor([1.0, 2.0, -4.0])
    here, there = group(points, 8, 8), group(points + shift, 8, 8)
    torch.testing.assert_close(there.relative, here.relative, atol=1e-6, rtol=0)
    torch.testing.assert_close(there.centres, here.centres + shift)


def test_sizes_of_the_worked_example():
    assert count(MiniPointNet(384)) == 494_464 and count(position_mlp(384)) == 50_048
    assert count(blocks(384, 1, 6)) == 1_773_312
    encoder, decoder = PointTransformer(), PointDecoder(384, 6, 32)
    total = count(encoder) + count(decoder)
    assert total == pytest.approx(29.0e6, rel=0.01)
    assert count(encoder) == pytest.approx(21.8e6, rel=0.02)
    rates = [block.drop_path1.drop_prob for block in encoder.blocks if hasattr(block.drop_path1, "drop_prob")]
    assert rates[-1] == pytest.approx(0.1) and len(rates) == 11


def test_tokens_of_the_papers_layers():
    """First the maximum over the patch, then the point's own features, through one layer."""
    net, relative = MiniPointNet(24).eval(), torch.randn(2, 5, 7, 3)
    local = net.first(relative.flatten(0, 2)).view(2, 5, 7, 256)
    both = torch.cat([local.amax(2, keepdim=True).expand_as(local), local], 3)
    weight = torch.cat([net.patch.weight, net.own.weight], 1)  # the papers' single layer of 512
    mixed = torch.nn.functional.linear(both, weight, net.own.bias)
    expected = net.second(mixed.flatten(0, 2)).view(2, 5, 7, 24).amax(2)
    torch.testing.assert_close(net(relative), expected)
    torch.testing.assert_close(net(relative[:, :, torch.randperm(7)]), expected)
    torch.testing.assert_close(net(torch.cat([relative, relative[:, :, :3]], 2)), expected)


def test_scale_of_the_worked_example():
    """Unit sphere, 1,024 points, 64 patches of 32: radius about 0.353, all zeros 0.0626, another patch 0.0528."""
    g = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(4, 1024, 3, generator=g), dim=2)
    patches = group(points, 64, 32).relative
    assert patches.norm(dim=3).amax(2).mean().item() == pytest.approx(0.353, rel=0.08)
    flat = patches.flatten(0, 1)
    assert chamfer(torch.zeros_like(flat), flat).mean().item() == pytest.approx(0.0626, rel=0.1)
    assert chamfer(flat.roll(7, 0), flat).mean().item() == pytest.approx(0.0528, rel=0.25)


# Masked autoencoders.

TINY = {"dim": 24, "depth": 2, "heads": 2, "groups": 8, "group_size": 6, "drop_path": 0.0}
FAST = fast()
METHODS = {
    "PointMAE": lambda: m.PointMAE(PointTransformer(**TINY), decoder_depth=1, **FAST),
    "PointMAE-block": lambda: m.PointMAE(PointTransformer(**TINY), mask="block", decoder_depth=1, norm="l1", **FAST),
    "PointCMAE": lambda: m.PointCMAE(PointTransformer(**TINY), decoder_depth=1, contrast_weight=50.0, **FAST),
    "PointCMAE-columns": lambda: m.PointCMAE(PointTransformer(**TINY), decoder_depth=1, contrast="all_columns", **FAST),
    "SimCLR": lambda: m.SimCLR(PointTransformer(**TINY), projector_out=8, **FAST),
    "MultiView": lambda: m.MultiView(PointTransformer(**TINY), o.MVDHEL(0.5), projector_out=8, **FAST),
    "Classifier": lambda: m.Classifier(PointTransformer(**TINY), 4, [16], 0.0, **FAST),
}
every = pytest.mark.parametrize("name", METHODS)


class Clouds(torch.utils.data.Dataset):
    """Batches of clouds of four kinds of shape from a seed: of pairs two views each, else one."""

    def __init__(self, name, n=4, size=16, start=0, rows=slice(None)):
        self.views = 2 if name in ("SimCLR", "MultiView") else 1
        self.n, self.size, self.start, self.rows = n, size, start, rows

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i + self.start)
        label = torch.arange(self.size) % 4
        views = []
        for _ in range(self.views):
            points = torch.rand(self.size, 64, 3, generator=g) * 2 - 1
            points[label == 1, :, 2] = 0
            points[label == 2] = torch.nn.functional.normalize(points[label == 2], dim=2)
            points[label == 3, :, :2] *= 0.1
            views.append(points)
        if self.views > 1:
            views[1][0, 50:] = torch.nan  # a small cloud
        index = torch.arange(self.size) + (i + self.start) * self.size
        batch = {"points": views, "index": index, "label": label, "group": torch.full((self.size,), -1)}
        cut = lambda v: [x[self.rows] for x in v] if isinstance(v, list) else v[self.rows]  # noqa: E731
        return {**{k: cut(v) for k, v in batch.items()}, "replaced": []}


def make(name):
    pl.seed_everything(0, verbose=False)
    return METHODS[name]()


def given(method, masks=2):
    """Patches of a batch and masks from outside."""
    patches, tokens = method.patches(Clouds("PointMAE")[0])
    g = torch.Generator().manual_seed(1)
    order = [torch.rand(16, 8, generator=g).argsort(1) for _ in range(masks)]
    return patches, tokens, [o < method.masked for o in order]


@every
def test_it_learns(name):
    method = make(name)
    losses = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(outputs["loss"].item())

    before = state(method)
    fit(method, 60, [Watch()], Clouds(name, 1))
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    still = {key for key, p in method.named_parameters() if torch.equal(p, before[key])}
    assert not still, f"parameters that do not learn: {still}"
    assert all(value.ndim == 0 and not value.requires_grad for value in method.readings.values())


@every
def test_resume_is_bit_equal(name, tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half")

    whole = make(name)
    fit(whole, 6, [Reseed(), Save()], Clouds(name, 6))
    again = make(name)
    fit(again, 6, [Reseed()], Clouds(name, 3, start=3), ckpt=tmp_path / "half")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_masks():
    method = make("PointMAE")
    centres = torch.randn(500, 8, 3)
    mask = method.draw(centres)
    assert (mask.sum(1) == int(0.6 * 8)).all() and mask.float().mean(0).std() < 0.05
    block = make("PointMAE-block").draw(centres)
    assert (block.sum(1) == 4).all()
    for row, places in zip(block, centres, strict=True):  # the nearest ones of some patch
        orders = torch.cdist(places, places).argsort(1)[:, :4]
        assert any(set(order.tolist()) == set(row.nonzero()[:, 0].tolist()) for order in orders)
    assert m.PointMAE(PointTransformer(depth=1), decoder_depth=1).masked == 38
    for ratio in (0.0, 0.9, 1.0):
        with pytest.raises(ValueError, match="hides"):
            m.PointMAE(PointTransformer(**TINY), mask_ratio=ratio)


def test_reconstruction_and_agreement_are_learnt():
    """Below the level of predicting all zeros; and with a weight of 50 the branches agree."""
    method, seen = make("PointCMAE"), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            seen.append({name: value.item() for name, value in module.readings.items()})

    fit(method, 200, [Watch()], Clouds("PointCMAE", 1))
    patches, _, (mask, _) = given(method)
    zeros = chamfer(torch.zeros_like(patches.relative[mask]), patches.relative[mask]).mean().item()
    assert seen[-1]["chamfer_1000"] < 1000 * zeros and seen[0]["chamfer_1000"] > 1000 * zeros
    assert seen[0]["disagreement"] > 0.5 and seen[-1]["disagreement"] < 0.1


@pytest.mark.parametrize("name", ["PointMAE", "PointCMAE", "SimCLR"])
def test_half_precision_and_missing_points(name):
    """Geometry is float32 under autocast, losses are, and a padded cloud gives no NaN to anything."""
    method, batch = make(name), Clouds(name)[0]
    batch["points"][0][0, 50:] = torch.nan  # a small cloud
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches = method.backbone.group(batch["points"][0])
        loss = method.training_step(batch, 0)["loss"]
    assert patches.relative.dtype == patches.centres.dtype == loss.dtype == torch.float32
    whole = method.backbone.group(batch["points"][0])
    assert torch.equal(whole.relative, patches.relative)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_hidden_patches_do_not_reach_the_encoder():
    method = make("PointMAE").eval()
    patches, tokens, (mask, _) = given(method)
    seen = method.encoder.encode(kept(tokens, ~mask), kept(patches.centres, ~mask))
    other = tokens + mask[..., None] * torch.randn(tokens.shape)
    centres = patches.centres + mask[..., None] * torch.randn(patches.centres.shape)
    assert torch.equal(method.encoder.encode(kept(other, ~mask), kept(centres, ~mask)), seen)


def test_a_prediction_depends_on_its_place_and_comes_back_to_it():
    method = make("PointMAE").eval()
    patches, tokens, (mask, _) = given(method)
    visible = method.encoder.encode(kept(tokens, ~mask), kept(patches.centres, ~mask))
    predicted, features = method.decoder(visible, patches.centres, mask)
    assert predicted.shape == (16, 4, 6, 3) and features.shape == (16, 8, 24)
    for i in range(16):  # by a loop
        places = mask[i].nonzero()[:, 0]
        again = method.decoder.head(method.decoder.norm(features[i, places])).view(-1, 6, 3)
        torch.testing.assert_close(predicted[i], again)
    swapped = patches.centres.clone()
    a, b = mask[0].nonzero()[:2, 0]
    swapped[0, [a, b]] = swapped[0, [b, a]]
    again, _ = method.decoder(visible, swapped, mask)  # mask tokens are told apart by their places only
    torch.testing.assert_close(again[0, [1, 0]], predicted[0, [0, 1]], atol=1e-5, rtol=1e-4)


def test_the_worked_example_of_cmae():
    f1 = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])[None]
    f2 = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 1]])[None]
    masks = [torch.tensor([[1, 1, 0, 1]]).bool(), torch.tensor([[1, 0, 1, 1]]).bool()]
    patch = torch.zeros(1, 6)
    for contrast, expected in (("diagonal", 0.5), ("all_columns", 0.573223)):
        objective = o.PointCMAE(2, reconstruction_weight=0.0, contrast=contrast)
        loss = objective([patch] * 4, tokens=[f1, f2], masks=masks)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert objective.diagnostics["masked_twice"].item() == 0.5
    nothing = o.PointCMAE(2, reconstruction_weight=0.0)([patch] * 4, tokens=[f1, f2], masks=[masks[0], ~masks[0]])
    assert nothing.item() == 0


def test_equal_branches_agree():
    method = make("PointCMAE").eval()
    method.decoders[1].load_state_dict(method.decoders[0].state_dict())
    with torch.no_grad():
        method.branch[1], method.branch_position[1] = method.branch[0], method.branch_position[0]
    patches, tokens, (mask, _) = given(method)
    method.reconstruct_twice(patches, tokens, [mask, mask])
    assert method.objective.diagnostics["disagreement"].item() == pytest.approx(0, abs=1e-6)
    method.objective.contrast = "all_columns"
    method.reconstruct_twice(patches, tokens, [mask, mask])
    assert method.objective.diagnostics["disagreement"].item() > 1e-3


def test_agreement_does_not_pull_at_visible_places():
    f = [torch.randn(3, 6, 4, requires_grad=True) for _ in range(2)]
    masks = [torch.rand(3, 6) < 0.6 for _ in range(2)]
    objective = o.PointCMAE(2, reconstruction_weight=0.0)
    objective([torch.zeros(3, 6)] * 4, tokens=f, masks=masks).backward()
    twice = masks[0] & masks[1]
    assert (f[0].grad[~twice] == 0).all() and (f[0].grad[twice] != 0).any()


@pytest.mark.parametrize("sizes", [[5, 3], [1, 4, 3]])
def test_agreement_across_ranks(sizes):
    """The co-masked patches of all ranks count alike, however they fall; gradients of the features too."""
    g = torch.Generator().manual_seed(0)
    f = [torch.randn(8, 6, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    masks = [torch.rand(8, 6, generator=g) < 0.5 for _ in range(2)]
    views = [torch.randn(8, 6, generator=g, dtype=torch.float64) for _ in range(4)]
    whole = o.PointCMAE(2)(views, tokens=f, masks=masks)
    expected = torch.autograd.grad(whole, f)

    def rank(gather):
        start = sum(sizes[: gather.rank])
        cut = slice(start, start + sizes[gather.rank])
        mine = [x[cut].detach().requires_grad_() for x in f]
        loss = o.PointCMAE(2)([v[cut] for v in views], tokens=mine, masks=[x[cut] for x in masks], gather=gather)
        return loss.item(), torch.autograd.grad(loss, mine)

    results = simulate(len(sizes), rank)
    for value, _ in results:
        assert value == pytest.approx(whole.item(), abs=1e-10)
    for place in range(2):
        joined = torch.cat([grads[place] for _, grads in results]) / len(sizes)
        torch.testing.assert_close(joined, expected[place], atol=1e-10, rtol=0)


def test_a_picture_of_what_was_found():
    method = make("PointMAE")
    fit(method, 1, batches=Clouds("PointMAE", 1))
    whole, visible, found = method.pictures()["reconstruction"]
    assert whole.shape == visible.shape == found.shape == (16, 48, 3)
    assert visible[..., 0].isnan().float().mean().item() == pytest.approx(0.5)
    there = ~visible[..., 0].isnan()
    assert torch.equal(whole[there], found[there]) and torch.isfinite(found).all()


# Evaluation.


def test_the_support_vector_machine_of_the_worked_example():
    """Separable in one dimension: w = 4C / (1 + 4C) and no bias, by symmetry."""
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    for c, w in ((1.0, 0.8), (0.01, 0.0384615)):
        machine = Machine(x, y, c)
        assert machine.weight.item() == pytest.approx(w, abs=1e-4) and machine.bias.item() == pytest.approx(0, abs=1e-4)
    assert machine.converged and machine(torch.tensor([[0.3], [-2.0]])).tolist() == [1, 0]


def dataset(n, seed, classes=6):
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9)) * 2
    z = (centres[label] + torch.randn(n, 8, generator=g))[None] * 100 + 5
    return Features(z, label, torch.arange(n) * 3 + seed, torch.full((n,), -1))


def test_the_machines_protocol():
    train, val = dataset(240, 0), dataset(120, 1)
    found = LinearSVM().evaluate(train, val)
    assert found.scores["svm"] > 0.8 and int(found.confusion.sum()) == 120
    moved = Features(train.views * 7 - 3, train.label, train.index, train.group)
    again = LinearSVM().evaluate(moved, Features(val.views * 7 - 3, val.label, val.index, val.group))
    assert again.scores == found.scores  # standardised on train
    assert LinearSVM().describe() == {"protocol": "LinearSVM", "c": 0.01} and found.details["converged"]


def test_few_shots_over_folds(tmp_path):
    train, val = dataset(240, 0), dataset(120, 1)
    found = FewShotSVM(ways=4, shots=5, queries=7).evaluate(train, val)
    assert found.scores["fewshot_4way_5shot_svm"] > 0.7 and len(found.details["per_fold"]) == 10
    for fold in found.details["folds"]:
        assert len(set(fold["classes"])) == 4 and len(set(fold["train"])) == 20 and len(set(fold["val"])) == 28
        label = {int(i): int(c) for i, c in zip(train.index, train.label, strict=True)}
        assert [label[i] for i in fold["train"]] == [c for c in fold["classes"] for _ in range(5)]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"details": found.details}))
    again = FewShotSVM(ways=4, shots=5, queries=7, seed=8, folds=str(path)).evaluate(train, val)
    assert again.details["per_fold"] == found.details["per_fold"]
    other = FewShotSVM(ways=4, shots=5, queries=7, seed=8).evaluate(train, val)
    assert other.details["folds"] != found.details["folds"]
    with pytest.raises(ValueError, match="fold 0 has 4 classes and 20 shots, not 5 and 50"):
        FewShotSVM(folds=str(path)).evaluate(train, val)
    with pytest.raises(ValueError, match="names sample .*, which train does not have"):
        FewShotSVM(ways=4, shots=5, folds=str(path)).evaluate(dataset(30, 2), val)
    assert FewShotSVM(8, 20).title != FewShotSVM(5, 10).title and LinearSVM(1.0).title != LinearSVM().title
    with pytest.raises(ValueError, match=r"needs 7 classes .* there are 6"):
        FewShotSVM(ways=7).evaluate(train, val)


def test_a_head_on_a_frozen_backbone():
    pl.seed_everything(0, verbose=False)
    method = m.Classifier(PointTransformer(**TINY), 4, **fast(locked=["backbone"]))
    before = state(method.backbone)
    fit(method, 40, batches=Clouds("Classifier", 1))
    assert all(torch.equal(value, before[key]) for key, value in method.backbone.state_dict().items())
    assert not method.backbone.training and method.readings["accuracy"] > 0.5
    batch = Clouds("Classifier")[0]
    batch["label"] = torch.full((16,), -1)
    assert method.training_step(batch, 0)["loss"].item() == 0

    class Named:
        classes = list("abcde")

    method._trainer = method.trainer
    method.trainer.datamodule = Named()
    with pytest.raises(ValueError, match="model.classes is 4, but the label field has 5 classes"):
        method.on_fit_start()
    with pytest.raises(ValueError, match="SimCLR does not classify"):
        Accuracy().measure(make("SimCLR"), None)


def test_statistics_of_a_shape():
    points = torch.rand(2, 500, 3) * torch.tensor([0.2, 1.0, 0.5]) - torch.tensor([0.1, 0.5, 0.25])
    found = ShapeStatistics(bins=16)(points).pooled
    assert found.shape == (2, 35)
    torch.testing.assert_close(found[:, :3], torch.tensor([[0.2, 0.5, 1.0]] * 2), atol=0.02, rtol=0)
    torch.testing.assert_close(found[:, 3:19].sum(1), torch.ones(2))
    torch.testing.assert_close(ShapeStatistics(parts=["extents"])(points).pooled, found[:, :3])
    torch.testing.assert_close(
        ShapeStatistics(bins=16, parts=["heights", "extents"])(points).pooled, found[:, [*range(19, 35), 0, 1, 2]]
    )
    padded = torch.cat([points, torch.full((2, 100, 3), torch.nan)], 1)
    again = ShapeStatistics(bins=16)(padded).pooled
    assert torch.isfinite(again).all()
    torch.testing.assert_close(again[:, :3], found[:, :3])
    np.testing.assert_allclose(again[:, 3:], found[:, 3:], atol=0.06)
