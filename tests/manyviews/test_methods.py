"""Methods as Lightning trains them: exact accumulation, ranks, what is refused."""

import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from timm.layers import DropPath
from torch import nn

from manyviews.backbones import ConvNet, Encoding, Exported, TimmBackbone, not_read
from manyviews.heads import MultiHead, projector
from manyviews.methods import MECO, MoCo, SimCLR, SimSiam
from manyviews.optim import Schedule, Training
from manyviews.runs import AtomicCheckpointIO, Checkpoints, FiniteGuard, newest_whole
from manyviews.runs.storage import alias, damage_of
from tests.process import environment
from tests.recipe import Backbone
from tests.support.training import fast

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
FAST = fast(SGD)


class Batches(torch.utils.data.Dataset):
    """Batches in the dict contract, from a seed."""

    def __init__(self, n=4, size=24, views=2):
        self.n, self.size, self.views = n, size, views

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        base = torch.randn(self.size, 3, 8, 8, generator=generator)
        noise = torch.randn(self.views, self.size, 3, 8, 8, generator=generator)
        return {
            "image": [base + 0.3 * x for x in noise],
            "index": torch.arange(self.size) + i * self.size,
            "group": torch.full((self.size,), -1),
            "label": torch.arange(self.size) % 4,
            "replaced": [],
        }


def fit(method, steps=3, callbacks=(), batches=None, ckpt=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches or Batches(), batch_size=None)
    pl.seed_everything(7, verbose=False)
    trainer.fit(method, loader, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def simclr(seed=0, **options):
    pl.seed_everything(seed, verbose=False)
    backbone = options.pop("backbone", None) or Backbone(dropout=options.pop("dropout", 0.0))
    return SimCLR(backbone, 0.2, projector_out=16, **{**FAST, **options})


@pytest.mark.parametrize("chunk", [5, 24, 64])
def test_grad_cache_gives_the_weights_of_the_whole_batch(chunk):
    """Momentum, weight decay, clipping and all: after 3 steps the weights agree to 1e-6."""
    whole, cached = simclr(), simclr(**fast(SGD, grad_cache=chunk))
    for method in (whole, cached):
        fit(method, 3, gradient_clip_val=1.0)
    for (name, a), b in zip(whole.state_dict().items(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


class Counted(nn.Module):
    """What BatchNorm would see: how many rows at a time."""

    def __init__(self):
        super().__init__()
        self.width, self.seen = 4, []
        self.body = nn.Linear(3 * 64, 4)

    def forward(self, images):
        self.seen.append(len(images))
        return Encoding(self.body(images.flatten(1)))


@pytest.mark.parametrize("make", [SimCLR, SimSiam])
@pytest.mark.parametrize(("together", "rows"), [(True, [48]), (False, [24, 24])])
def test_views_go_through_backbone_and_heads_together_or_one_after_another(make, together, rows):
    backbone, method = Counted(), make(Counted(), **fast(SGD, views_together=together))
    method.backbone, heads = backbone, [method.projector, *([method.predictor] if make is SimSiam else [])]
    seen = []
    for head in heads:
        head.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    fit(method, 1)
    assert backbone.seen == rows and seen == rows * len(heads)


def moved(method, steps=1, **options):
    """How far each parameter of a method goes, of what plain SGD at a rate of 1 would go, whatever the gradient."""
    before = {name: p.detach().clone() for name, p in method.named_parameters()}

    class Ones(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            for p in module.parameters():
                if p.grad is not None:
                    p.grad.fill_(1.0)

    fit(method, steps, [Ones()], **options)
    return {name: (before[name] - p).mean().item() for name, p in method.named_parameters()}


PLAIN = partial(torch.optim.SGD, lr=1.0)


def constant(**how):
    return {"training": Training(PLAIN, Schedule(warmup_steps=0, final=1.0, scaling="none"), **how)}


def test_parts_have_the_share_of_the_rate_that_they_were_given():
    """And of parts inside each other the product."""
    found = moved(simclr(**constant(rates={"backbone": 0.5, "backbone.body.0": 0.1})))
    for name, way in found.items():
        share = 0.05 if name.startswith("backbone.body.0.") else 0.5 if name.startswith("backbone.") else 1.0
        assert way == pytest.approx(share, rel=1e-4), name
    trainer = fit(simclr(**constant(rates={"backbone": 0.5})), 1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1.0  # what monitoring shows


def test_a_layer_has_a_share_of_the_rate_of_the_next():
    """Of a ViT of two blocks: the stem an eighth, the blocks a quarter and half, the norm after them all of it."""
    vit = TimmBackbone("vit_tiny_patch16_224", image_size=8, patch_size=4, options={"depth": 2})
    found = moved(SimCLR(vit, 0.2, 8, 8, **constant(layer_decay=0.5, rates={"backbone.model.patch_embed": 0.2})))
    expected = {"pos_embed": 0.125, "patch_embed": 0.025, "blocks.0": 0.25, "blocks.1": 0.5, "norm": 1.0}
    for part, share in expected.items():
        ways = [way for name, way in found.items() if name.startswith(f"backbone.model.{part}")]
        assert ways and all(way == pytest.approx(share, rel=1e-4) for way in ways), part
    assert all(way == pytest.approx(1.0, rel=1e-4) for name, way in found.items() if name.startswith("projector"))
    for layers in (None, nn.ModuleList()):  # the second by the name that many a network has for something else
        method = simclr(**constant(layer_decay=0.5))
        method.backbone.layers = layers
        with pytest.raises(ValueError, match="layer_decay: Backbone does not say which layers it has: give training"):
            fit(method)


def test_a_part_may_make_its_first_step_later():
    """Two epochs of four batches: frozen for the first one, decay and momentum included."""
    late = fast(partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=0.1), frozen={"projector": 1})
    method = simclr(**late)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            still = [name for name, value in module.named_parameters() if torch.equal(value, before[name])]
            seen[trainer.global_step] = {name.partition(".")[0] for name in still}

    fit(method, 8, [Look()], max_epochs=2)
    assert [seen[step] for step in (1, 4, 5)] == [{"projector"}, {"projector"}, set()]


def test_the_gradient_of_each_tensor_is_shortened_on_its_own():
    """(3, 4) to length 3 and (0, 1) as it is; and in a run, where a clip of all together would shorten the second."""
    long, short = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    long.grad, short.grad = (torch.tensor(g, dtype=torch.float64) for g in ([3.0, 4.0], [0.0, 1.0]))
    fast(clip=3.0)["training"].clipped([long, short])
    torch.testing.assert_close(long.grad, 0.59999988 * torch.tensor([3.0, 4.0]).double(), atol=1e-7, rtol=0)
    assert short.grad.tolist() == [0.0, 1.0]
    found = moved(simclr(**constant(clip=1.0)))
    sizes = {name: p.numel() for name, p in simclr().named_parameters()}
    for name, way in found.items():  # of ones, of length sqrt(n)
        assert way == pytest.approx(1 / math.sqrt(sizes[name]), rel=1e-3), name


def test_weight_decay_follows_the_run_and_spares_what_is_spared(tmp_path):
    """From 0.04 to 0.4 over a hundred steps, and the same in a run that is resumed after the fiftieth."""
    how = fast(partial(torch.optim.SGD, lr=0.0, weight_decay=0.04), final_weight_decay=0.4)
    seen = {}

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen[trainer.global_step] = sorted(group["weight_decay"] for group in optimizer.param_groups)
            if trainer.global_step == 50:
                trainer.save_checkpoint(tmp_path / "half")

    fit(simclr(**how), 100, [Look()], Batches(100))
    whole = dict(seen)
    for step, value in ((0, 0.04), (25, 0.09272078), (50, 0.22), (75, 0.34727922)):
        assert whole[step] == pytest.approx([0.0, value], abs=1e-8)
    seen.clear()
    fit(simclr(**how), 100, [Look()], Batches(50), ckpt=tmp_path / "half")
    assert seen and all(whole[step] == values for step, values in seen.items())


def test_what_training_names_must_be_there_and_make_sense():
    for how, message in (
        ({"frozen": {"projectr": 1}}, r"training.frozen: no part 'projectr'; parts are backbone, projector"),
        ({"rates": {"body": 0.1}}, r"training.rates: no part 'body'"),
        ({"locked": ["body"]}, r"training.locked: no part 'body'"),
        ({"locked": ["projector"], "rates": {"projector": 0.1}}, r"training.rates: nothing in 'projector' is trained"),
        ({"locked": ["backbone"], "layer_decay": 0.5}, r"training.layer_decay: nothing in 'backbone' is trained"),
        ({"final_weight_decay": 0.4}, "final_weight_decay: the optimiser has no weight_decay to begin from"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(simclr(**fast(SGD, **how)), 1)
    for how, message in (
        ({"frozen": {"projector": 0}}, "training.frozen.projector: expected 1 or more epochs, got 0"),
        ({"rates": {"projector": 0.0}}, "training.rates.projector: expected a share, more than 0, got 0.0"),
        ({"layer_decay": 1.5}, r"training.layer_decay: expected a share, in \(0, 1\], got 1.5"),
        ({"final_weight_decay": -1.0}, "training.final_weight_decay: expected 0 or more, got -1.0"),
        ({"grad_cache": -1}, "training.grad_cache: expected 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            fast(SGD, **how)
    with pytest.raises(ValueError, match="MECO is not encoded in chunks: set training.grad_cache to 0"):
        MECO(ConvNet((8,), norm="group"), 0.5, **fast(grad_cache=4))


def test_any_part_of_any_method_can_be_locked():
    """No step, no decay, and no statistics: as in evaluation."""
    method = SimCLR(ConvNet((4,), norm="batch"), 0.5, 8, 8, **fast(SGD, locked=["backbone"]))
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    trainer = fit(method, 2)
    assert all(torch.equal(value, before[name]) for name, value in method.backbone.state_dict().items())
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.projector.parameters()}


def test_batchnorm_of_one_view_at_a_time_is_the_authors():
    """A projector's output for two views, against BatchNorm of each view by hand."""
    torch.manual_seed(0)
    method = SimCLR(ConvNet((4,)), 0.1, 8, 6, **fast(SGD, views_together=False))
    views = [torch.randn(16, 4), torch.randn(16, 4) + 3]
    found = torch.cat(method.of_each(method.projector, views))
    apart = torch.cat([method.projector(view) for view in views])
    torch.testing.assert_close(found, apart)
    method.views_together = True
    assert (torch.cat(method.of_each(method.projector, views)) - apart).abs().max() > 0.1


class Dropping(nn.Module):
    """With dropout, drop path and BatchNorm; the first two are noise, the third a statistic."""

    def __init__(self):
        super().__init__()
        self.width = 16
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), DropPath(0.5)
        )

    def forward(self, images):
        return Encoding(self.body(images))


def test_a_teacher_drops_nothing_and_keeps_its_batch_statistics():
    method = MoCo(Dropping(), queue_size=32, projector_out=8)
    method.train()
    teacher = method.teacher
    assert not any(m.training for m in teacher.modules() if isinstance(m, nn.Dropout | DropPath))
    assert all(m.training for m in teacher.modules() if isinstance(m, nn.BatchNorm1d))
    x = torch.randn(8, 3, 8, 8)
    assert torch.equal(method.taught([x])[0], method.taught([x])[0])
    assert any(m.training for m in method.backbone.modules() if isinstance(m, DropPath))


def test_grad_cache_repeats_the_dropout_of_the_first_pass():
    """One chunk draws what the whole batch draws, view by view; so the gradient must be that of the same masks."""
    method = simclr(dropout=0.5, **fast(SGD, grad_cache=24))
    batch = Batches()[0]
    pl.seed_everything(1, verbose=False)
    features = [Encoding.of(method.backbone(view)).pooled for view in batch["image"]]
    loss = method.objective([method.projector(f) for f in features])
    expected = torch.autograd.grad(loss, list(method.backbone.parameters()))

    from manyviews.methods.gradcache import GradCache

    pl.seed_everything(1, verbose=False)
    cache = GradCache(lambda x: (method.backbone(x).pooled,), list(method.backbone.parameters()), 24, nullcontext)
    cached = cache.forward(batch["image"])
    method.objective([method.projector(f) for (f,) in cached]).backward()
    after = torch.get_rng_state()
    cache.backward()
    assert torch.equal(torch.get_rng_state(), after)
    for p, g in zip(method.backbone.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=0)


def test_grad_cache_holds_fewer_activations():
    def peak(method):
        live = most = 0

        def pack(tensor):
            nonlocal live, most
            live += tensor.numel()
            most = max(most, live)
            return tensor

        def unpack(tensor):
            nonlocal live
            live -= tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            fit(method, 1, batches=Batches(1, size=128))
        return most

    assert peak(simclr(**fast(SGD, grad_cache=16))) < 0.5 * peak(simclr())


def test_what_would_silently_train_something_else_is_refused():
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=4 would cut.*grad_cache"):
        fit(simclr(), accumulate_grad_batches=4)
    with pytest.raises(ValueError, match=r"2 BatchNorm layers \(body.1, ...\).*resnet50_gn"):
        simclr(backbone=ConvNet((8, 16)), **fast(SGD, grad_cache=8))
    with pytest.raises(ValueError, match="data module with global_batch_size"):
        fit(simclr(training=Training(SGD, Schedule(warmup_steps=1))))
    with pytest.raises(ValueError, match=r"set trainer.max_steps"):
        fit(simclr(), steps=-1)


def test_known_duplicates_are_not_negatives():
    method, batch = simclr(), Batches()[0]
    plain = method.training_step(batch, 0)["loss"].item()
    same = method.training_step({**batch, "group": torch.zeros(24, dtype=torch.int64)}, 0)["loss"].item()
    assert same == 0 < plain


def test_backbones_return_encodings():
    vit = TimmBackbone("vit_tiny_patch16_224", image_size=32, patch_size=8)
    encoding = vit(torch.randn(2, 3, 32, 32))
    assert (
        encoding.pooled.shape == (2, vit.width)
        and encoding.tokens.shape == (2, 17, 192)
        and encoding.prefix_tokens == 1
    )
    resnet = TimmBackbone("resnet18", small_stem=True)
    encoding = resnet(torch.randn(2, 3, 32, 32))
    assert encoding.pooled.shape == (2, 512) and encoding.tokens.shape == (2, 16, 512)
    torch.testing.assert_close(encoding.pooled, encoding.tokens.mean(1))
    plain = timm.create_model("resnet18", num_classes=0)
    ours = TimmBackbone("resnet18")
    ours.model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images).pooled, plain.eval()(images))
    with pytest.raises(ValueError, match="timm has no model 'resnet51'; did you mean"):
        TimmBackbone("resnet51")
    with pytest.raises(ValueError, match="small_stem is for timm ResNets"):
        TimmBackbone("vit_tiny_patch16_224", small_stem=True)


def test_convolutions_of_timm_compute_channels_last():
    backbone = TimmBackbone("resnet18")
    seen = []
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(
                lambda _m, _i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    backbone(torch.randn(2, 3, 64, 64))
    assert len(seen) == 20 and all(seen)


def test_a_timm_backbone_is_exported_for_timm(tmp_path):
    from manyviews.cli.export import export_backbone

    images = torch.randn(3, 3, 32, 32)
    how = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8}
    backbone = TimmBackbone(**how)
    config = {"init_args": {"backbone": {"class_path": "manyviews.backbones.TimmBackbone", "init_args": how}}}
    seen = {
        "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.4, 0.3],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
    }
    lines = list(export_backbone(backbone, config, images, tmp_path, seen | {"crop_mode": "center"}))
    assert "differ by 0.0e+00" in lines[1] and "timm.create_model('local-dir:" in lines[2]
    again = eval(lines[2].partition(", or ")[2], {"timm": timm})
    wanted = timm.data.resolve_model_data_config(again)  # what plain timm does to a picture
    assert {
        name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()
    }.items() >= seen.items()
    torch.testing.assert_close(again.eval()(images), backbone.eval()(images).pooled)
    ours = Exported(str(tmp_path)).eval()
    assert torch.equal(ours(images).tokens, backbone(images).tokens) and (ours.width, ours.prefix_tokens) == (192, 1)


def test_any_backbone_is_exported_and_comes_back(tmp_path):
    from manyviews.cli.export import export_backbone

    images, small = torch.randn(3, 3, 32, 32), TimmBackbone("resnet18", small_stem=True)
    how = {"class_path": "manyviews.backbones.TimmBackbone", "init_args": {"name": "resnet18", "small_stem": True}}
    lines = list(export_backbone(small, {"init_args": {"backbone": how}}, images, tmp_path))
    assert lines[2] == f"use: manyviews.backbones.Exported('{tmp_path}')"
    assert torch.equal(Exported(str(tmp_path)).eval()(images).pooled, small.eval()(images).pooled)
    with pytest.raises(FileNotFoundError, match=r"no config.json; `manyviews export"):
        Exported(str(tmp_path / "gone"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "init_args": {"name": "resnet34", "small_stem": True}}))
    with not_read():  # a checkpoint has them, or they are to be random ones
        assert not torch.equal(Exported(str(tmp_path)).eval()(images).pooled, small.eval()(images).pooled)
    with pytest.raises(ValueError, match="its weights are not those of"):
        Exported(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet10t"]
)
def test_the_declared_width_is_that_of_the_features(name):
    size = 224 if "swin" in name else 64
    backbone = TimmBackbone(name).eval()
    encoding = backbone(torch.randn(1, 3, size, size))
    assert encoding.pooled.shape == (1, backbone.width)
    assert encoding.tokens.shape[1] == (size // 32) ** 2


def test_any_module_with_a_width_is_a_backbone():
    class Mine(nn.Sequential):
        width = 10

    method = SimCLR(Mine(nn.Flatten(), nn.Linear(192, 10)), **FAST)
    assert method.embed(Batches()[0])[1].pooled.shape == (24, 10)
    with pytest.raises(TypeError, match=r"must return an Encoding or a \(B, D\) tensor, got a tensor \(48, 3, 8, 8\)"):
        SimCLR(type("Bad", (nn.Identity,), {"width": 3})(), **FAST).training_step(Batches()[0], 0)


def test_projector():
    head = projector(8, 16, 4, layers=3, last="batch")
    assert [type(m).__name__ for m in head] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert head[-2].bias is None
    assert isinstance(projector(8, 16, 4, last="layer")[-1], nn.LayerNorm)
    assert not projector(8, 16, 4, last="standard")[-1].affine
    assert [type(m).__name__ for m in projector(8, 16, 4, norm=False)] == ["Linear", "ReLU", "Linear"]
    with pytest.raises(ValueError, match="at least one layer"):
        projector(8, 16, 4, layers=0)
    with pytest.raises(ValueError, match="last must be one of linear, batch"):
        projector(8, 16, 4, last="none")


def test_multi_head():
    heads = [nn.Linear(4, 3) for _ in range(2)]
    x = torch.randn(5, 4)
    torch.testing.assert_close(MultiHead(heads)(x), torch.cat([head(x) for head in heads], 1))
    split = MultiHead([nn.Linear(2, 3) for _ in range(2)], split=True)
    torch.testing.assert_close(split(x)[:, 3:], split.heads[1](x[:, 2:]))


# Faults inside a run.


def test_a_non_finite_step_changes_nothing_and_is_counted():
    method = simclr(backbone=Backbone(poison=(2,)))
    states = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            states.append({k: v.clone() for k, v in module.backbone.state_dict().items()})

    guard = FiniteGuard()
    fit(method, 4, [Watch(), guard])
    assert guard.skipped == 1
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])  # momentum would have moved them
    assert any(not torch.equal(states[1][k], states[2][k]) for k in states[0])
    assert all(torch.isfinite(v).all() for v in method.state_dict().values())


def test_too_many_non_finite_steps_end_the_run():
    with pytest.raises(FloatingPointError, match="3 steps in a row had a non-finite gradient"):
        fit(simclr(backbone=Backbone(poison=tuple(range(2, 50)))), 20, [FiniteGuard(patience=3)])


def test_the_search_for_a_scale_of_half_precision_costs_no_patience():
    """From a scale at which any gradient overflows it takes many steps; a loss that is not a number still ends the run."""

    def half():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "max_epochs": -1}

    guard = FiniteGuard(patience=3)
    fit(simclr(), 40, [guard], **half())
    assert 3 < guard.skipped < 40 and guard.in_a_row == 0
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        fit(simclr(backbone=Backbone(poison=tuple(range(50)))), 20, [FiniteGuard(patience=3)], **half())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Ruin(pl.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 2:
                with torch.no_grad():
                    next(module.parameters()).view(-1)[0] = float("nan")

    with pytest.raises(OSError, match="step 4, the last one, could not be saved"):  # it is not called finished
        fit(simclr(), 4, [Ruin(), Checkpoints(str(tmp_path), every_n_steps=1)])
    newest = newest_whole(tmp_path)
    assert newest is not None and newest.name == "step-00000002.ckpt"
    state = torch.load(newest, weights_only=True)["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values())


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    """A real failure: the operating system refuses to let the file grow."""
    code = """
import resource, sys, torch
from pathlib import Path
from manyviews.runs import AtomicCheckpointIO
io, target = AtomicCheckpointIO(), Path(sys.argv[1]) / "step-00000001.ckpt"
io.save_checkpoint({"x": torch.zeros(10)}, target)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    io.save_checkpoint({"x": torch.zeros(1_000_000)}, target)
except (OSError, RuntimeError) as error:
    print("refused", type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment(), capture_output=True, text=True
    )
    assert "refused" in done.stdout, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001.ckpt", "step-00000001.ckpt.sha256"}
    assert len(AtomicCheckpointIO().load_checkpoint(tmp_path / "step-00000001.ckpt")["x"]) == 10


def test_training_goes_on_when_a_save_fails(tmp_path, caplog):
    (tmp_path / "file").write_text("")  # a folder cannot be made below a file
    with pytest.raises(OSError, match="3 saves in a row failed"):
        fit(simclr(), 10, [Checkpoints(str(tmp_path / "file/x"), every_n_steps=1, max_failures=3)])
    assert caplog.text.count("not saved") == 3


@pytest.mark.parametrize(
    ("damage", "sealed"),
    [*((damage, sealed) for damage in ("cut", "flip", "empty") for sealed in (True, False)), ("another", True)],
)
def test_damaged_checkpoints_are_recognised(tmp_path, damage, sealed):
    """With their sidecar, and without; a whole file of another step is only told of by the sidecar."""
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint({"x": torch.randn(1000), "step": step}, tmp_path / f"step-{step:08d}.ckpt")
    newest = tmp_path / "step-00000002.ckpt"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[1500] ^= 1
    other = (tmp_path / "step-00000001.ckpt").read_bytes()
    newest.write_bytes({"cut": data[:-100], "flip": data, "empty": b"", "another": other}[damage])
    if not sealed:
        newest.with_suffix(".ckpt.sha256").unlink()
    assert damage_of(newest)
    assert newest_whole(tmp_path).name == "step-00000001.ckpt"
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        io.load_checkpoint(newest)


def test_what_lies_beside_a_checkpoint(tmp_path):
    """Size and checksum as the command line's own tool reads them; kept, renamed and removed with the checkpoint."""
    fit(simclr(), 4, [Checkpoints(str(tmp_path), every_n_steps=1, keep_last=2)], plugins=[AtomicCheckpointIO()])
    names = [f"step-0000000{n}.ckpt" for n in (3, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names + [f"{name}.sha256" for name in names])
    alias(tmp_path / names[1], tmp_path / "best.ckpt")
    for name in (*names, "best.ckpt"):
        first, second = (tmp_path / f"{name}.sha256").read_text().splitlines()
        assert first == f"# {(tmp_path / name).stat().st_size} bytes" and second.endswith(f"  {name}")
        subprocess.run(["sha256sum", "--check", "--strict", f"{name}.sha256"], cwd=tmp_path, check=True)
    (tmp_path / f"{names[1]}.sha256").write_text("scribble")
    with pytest.raises(ValueError, match="step-00000004.ckpt.sha256 is damaged"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / names[1])
    assert newest_whole(tmp_path).name == names[0]


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"x": Attack()}, tmp_path / "step-00000001.ckpt")
    with pytest.raises(Exception, match="[Ww]eights"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step-00000001.ckpt")
    assert not (tmp_path / "owned").exists()
