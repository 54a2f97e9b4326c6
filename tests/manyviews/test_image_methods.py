"""Every method: it learns, resumes bit-equal, a skipped step leaves no trace; and what is particular to each."""

import copy

import lightning.pytorch as pl
import pytest
import torch

from manyviews import methods as m
from manyviews import objectives as o
from manyviews.backbones import ConvNet, ScatteringBackbone
from manyviews.backbones.scattering import Scattering
from manyviews.methods.beclr import blanked
from manyviews.methods.scatsimclr import rotated
from manyviews.runs import FiniteGuard
from tests.manyviews.test_methods import Batches, fit
from tests.support.training import fast

FAST = fast()
SMALL = {"projector_hidden": 32, "projector_out": 16}
HEADS = {"heads": 2, "dim": 8}

METHODS = {
    "SimCLR": lambda b: m.SimCLR(b, 0.5, **SMALL, **FAST),
    "DCL": lambda b: m.DCL(b, 0.5, **SMALL, **FAST),
    "DCLW": lambda b: m.DCL(b, 0.5, 0.5, **SMALL, **FAST),
    "MultiView": lambda b: m.MultiView(b, **SMALL, **FAST),
    "MultiView-MVInfoNCE": lambda b: m.MultiView(b, o.MVInfoNCE(0.5), **SMALL, **FAST),
    "MoCo": lambda b: m.MoCo(b, 0.2, 60, momentum=0.9, **SMALL, **FAST),
    "MoCo-v1": lambda b: m.MoCo(b, 0.2, 60, momentum=0.9, projector_layers=1, projector_out=16, **FAST),
    "MoCo-symmetric": lambda b: m.MoCo(b, 0.2, 60, 0.9, 1.0, symmetric=True, projector_norm=True, **SMALL, **FAST),
    "MoCoV3": lambda b: m.MoCoV3(b, 0.5, momentum=0.9, projector_layers=3, predictor_norm=True, **SMALL, **FAST),
    "MoCHi": lambda b: m.MoCHi(b, 0.2, 60, 8, 5, 3, 0, 0.9, **SMALL, **FAST),
    "BYOL": lambda b: m.BYOL(b, 0.9, **SMALL, **FAST),
    "DINO": lambda b: m.DINO(b, o.DINO(24, 0.5, 0.3), hidden=32, bottleneck=16, gain=True, momentum=0.9, **FAST),
    "DINO-still": lambda b: m.DINO(
        b, o.DINO(24, 0.1, 0.04, centre_momentum=1.0), hidden=32, bottleneck=16, momentum=1.0, **FAST
    ),
    "SimSiam": lambda b: m.SimSiam(b, 2, 32, 16, **FAST),
    "BarlowTwins": lambda b: m.BarlowTwins(b, projector_width=16, **FAST),
    "VICReg": lambda b: m.VICReg(b, projector_width=16, **FAST),
    "SwAV": lambda b: m.SwAV(b, 8, queue_size=24, queue_from=0, frozen_epochs=0, **SMALL, **FAST),
    "DeepCluster": lambda b: m.DeepCluster(b, 192, (6, 5), **SMALL, **FAST),
    "NNCLR": lambda b: m.NNCLR(b, 0.2, 60, False, 32, 32, 16, **FAST),
    "NNCLR-DCL": lambda b: m.NNCLR(b, 0.2, 60, True, 32, 32, 16, **FAST),
    "SogCLR": lambda b: m.SogCLR(b, 192, 0.5, **SMALL, **FAST),
    "ISogCLR": lambda b: m.ISogCLR(b, 192, 0.3, **SMALL, **FAST),
    "SupCon": lambda b: m.SupCon(b, 0.5, **SMALL, **FAST),
    "AMCL": lambda b: m.AMCL(b, o.AMCL(**HEADS), projector_hidden=32, **FAST),
    "AMCL-MoCo": lambda b: m.AMCL(b, o.AMCL(**HEADS, queue_size=60), 0.9, 32, **FAST),
    "AMCL-SimSiam": lambda b: m.AMCL(b, o.AMCLSimSiam(**HEADS), projector_hidden=32, **FAST),
    "AMCL-Barlow": lambda b: m.AMCL(b, o.AMCLBarlow(**HEADS), projector_hidden=32, **FAST),
    "Hydra": lambda b: m.Hydra(b, o.Hydra(4, 16), 32, **FAST),
    "HydraMoCo": lambda b: m.HydraMoCo(b, o.HydraMoCo(o.Hydra(4, 16), 0.5), 0.9, 32, **FAST),
    "Hallucinator": lambda b: m.Hallucinator(b, o.Hallucinator(o.NTXent(0.5), 16), projector_hidden=32, **FAST),
    "Hallucinator-MoCo": lambda b: m.Hallucinator(
        b, o.Hallucinator(o.InfoNCE(0.2, 60, 16), 16), 0.9, 32, **FAST
    ),
    "Hallucinator-SimSiam": lambda b: m.Hallucinator(b, o.Hallucinator(o.SimSiam(), 16), projector_hidden=32, **FAST),
    "CMIM": lambda b: m.CMIM(b, 8, 16, **FAST),
    "CMIM-Repulsor": lambda b: m.CMIM(b, 8, 16, regulariser=o.Repulsor(16, 8, 60), **FAST),
    "ImageVolume": lambda b: m.ImageVolume(b, o.ImageVolume(2, 16, 8, (3, 4), queue_size=48, queue_from=0), 0.3, 32, **FAST),
    "WMSE": lambda b: m.WMSE(b, 24, 2, 32, 6, **FAST),
    "BECLR": lambda b: m.BECLR(b, 60, 4, 3, from_epoch=1, patch=2, momentum=0.9, **SMALL, **FAST),
    "SepCLR": lambda b: m.SepCLR(b, 8, salient=1.0, background=1.0, joint=1.0, **FAST),
    "BaCon": lambda b: m.BaCon(b, 4, 3, soft_from=0, **SMALL, **FAST),
    "CPL": lambda b: m.CPL(b, 4, 3, accept=0.2, **FAST),
    "ScatSimCLR": lambda b: m.ScatSimCLR(ScatteringBackbone(8, 1, 4, 16, 1, 16), **FAST),
    "ScatSimCLR-jigsaw": lambda b: m.ScatSimCLR(b, pretext="jigsaw", **FAST),
    "MECO": lambda b: m.MECO(ConvNet((8, 16), norm="group"), 0.5, **FAST),
    "HardContrastive": lambda b: m.MultiView(b, o.HardContrastive(0.5, 0.2), **SMALL, **FAST),
    "MEOW": lambda b: m.MultiView(b, o.MEOW(192, 16, (5, 4)), **SMALL, **FAST),
    "AdaMEOW": lambda b: m.MultiView(b, o.AdaMEOW(16), **SMALL, **FAST),
    "PALM": lambda b: m.MultiView(b, o.PALM(4, 16, 3), **SMALL, **FAST),
    "SupReMix": lambda b: m.MultiView(b, o.SupReMix(0.3), **SMALL, **FAST),
    "GroupWhitened": lambda b: m.MultiView(b, o.GroupWhitened(o.MVInfoNCE(0.5), 4, 2), **SMALL, **FAST),
}  # fmt: skip
every = pytest.mark.parametrize("name", METHODS)

READINGS = {
    "MoCo": {"queue_age", "queue_filled", "momentum"},
    "MoCHi": {"hardest_synthetic", "queue_age"},
    "BarlowTwins": {"on_diagonal", "off_diagonal"},
    "VICReg": {"invariance", "variance", "covariance"},
    "SwAV": {"prototypes_used", "assignment_entropy"},
    "DeepCluster": {"labelled"},
    "NNCLR": {"neighbour_similarity", "neighbour_purity", "support_filled"},
    "SogCLR": {"log_u", "objective_value"},
    "ISogCLR": {"tau_mean", "tau_min", "tau_max"},
    "AMCL": {"log_temperature_positive", "log_temperature_negative", "head_similarity"},
    "AMCL-Barlow": {"log_temperature", "log_temperature_positive"},
    "Hydra": {"gate_open", "gate_entropy", "scale"},
    "HydraMoCo": {"gate_open", "instance_loss", "pair_loss", "momentum"},
    "Hallucinator": {"hallucinated_to_query", "hallucinated_to_key"},
    "Hallucinator-MoCo": {"hallucinated_to_query", "hallucinated_to_key", "queue_filled", "momentum"},
    "CMIM": {"contrastive", "log_scale", "log_prior", "log_likelihood"},
    "ImageVolume": {"intra", "inter", "masked", "prototypes_used"},
    "BECLR": {"memory_filled", "clusters_used", "momentum"},
    "SepCLR": {"common", "salient", "background", "joint"},
    "BaCon": {"soft_contrast", "classification", "distillation", "imbalance"},
    "CPL": {"pair", "pseudo", "class_entropy"},
    "ScatSimCLR": {"pretext_loss", "pretext_accuracy"},
    "MECO": {"log_z", "nll", "bits_over_noise"},
    "PALM": {"mle", "prototype_contrast", "prototypes_used"},
    "DINO": {"teacher_entropy", "divergence", "prototypes_used", "centre_norm", "momentum"},
    "MEOW": {"mean_weight"},
    "AdaMEOW": {"own_weight"},
}
"""What of a method's own state must be seen in TensorBoard."""


def make(name, **options):
    pl.seed_everything(0, verbose=False)
    return METHODS[name](ConvNet((8, 16), **options))


def state(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_every_method_of_the_package_is_here():
    shared = {"Method", "Step", "Asymmetric", "Decoding", "Classifier", "PointMAE", "PointCMAE"}  # test_points.py
    texts = {name for name in m.__all__ if issubclass(getattr(m, name), m.ImageText)}  # test_text_methods.py
    assert {type(make(name)).__name__ for name in METHODS} == set(m.__all__) - shared - texts


def batches(name, n=4):
    """As many views as the method takes; of those that take any number four, of pairs two."""
    views = 1 if name == "MECO" else 4 if name.startswith(("MultiView", "ImageVolume", "DINO")) else 2
    return Batches(n, views=views)


@every
def test_it_learns_and_shows_its_readings(name):
    method = make(name)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            seen.append(outputs["loss"].item())

    before = state(method)
    fit(method, 60, [Watch()], batches(name, 1))
    assert all(torch.isfinite(torch.tensor(seen)))
    if name == "DeepCluster":
        assert seen[0] == 0  # no labels in the first epoch
        seen = seen[1:]
    if "SogCLR" in name:  # whose loss is no objective
        assert method.readings["objective_value"] < -0.2
    elif name.startswith("MoC") or name == "Hallucinator-MoCo" or name == "AMCL-MoCo":
        assert min(seen[-5:]) < max(seen[2:20])  # the queue starts random, so the loss rises before it falls
    elif name != "DINO":  # whose targets move, and their entropy with them; those of DINO-still do not
        assert sum(seen[-5:]) / 5 < sum(seen[:2]) / 2 - 0.01
    assert READINGS.get(name, set()) <= method.readings.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in method.readings.values())
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    still = {key for key, p in method.named_parameters() if p.requires_grad} - moved
    assert not still, f"parameters that do not learn: {still}"


@every
def test_resume_is_bit_equal(name, tmp_path):
    """Queues, momentum encoders, per-sample state, prototypes: all of it is in the checkpoint."""
    given = batches(name, 8)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "half")

    whole = make(name)
    fit(whole, 8, [Reseed(), Save()], given)
    again = make(name)
    with torch.no_grad():
        for value in again.state_dict().values():
            value.zero_()
    fit(again, 8, [Reseed()], Rest(given, 4), ckpt=tmp_path / "half")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


class Rest(Batches):
    """The batches from one on, as the data module's position gives them."""

    def __init__(self, batches, start):
        super().__init__(batches.n - start, batches.size, batches.views)
        self.start = start

    def __getitem__(self, i):
        return super().__getitem__(i + self.start)


class Reseed(pl.Callback):
    """The random numbers of a step depend on the step only, as RandomState restores them in a real run."""

    def on_train_batch_start(self, trainer, *_):
        torch.manual_seed(trainer.global_step)


class Torn(Batches):
    """The third batch is not a number."""

    def __getitem__(self, i):
        batch = super().__getitem__(i)
        return {**batch, "image": [view * torch.nan if i == 2 else view for view in batch["image"]]}


@pytest.mark.parametrize("name", ["MoCo", "BYOL", "SwAV", "NNCLR", "SogCLR", "ISogCLR", "AMCL-MoCo", "DeepCluster"])
def test_a_skipped_step_leaves_no_trace(name):
    """Neither in queues and per-sample state nor in the momentum encoder."""
    method, states = make(name), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            states.append(state(module))

    fit(method, 3, [Watch(), FiniteGuard()], Torn(3))
    for key, value in states[1].items():
        assert torch.equal(value, states[2][key]), key
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["SogCLR", "MEOW", "DeepCluster"])
def test_a_memory_smaller_than_the_set_is_refused_at_the_start(name):
    class Data(pl.LightningDataModule):
        train_set = range(193)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(Batches(), batch_size=None)

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(
        ValueError, match="the training set has 193 samples, but the objective was made for samples=192"
    ):
        trainer.fit(make(name), datamodule=Data())


# Momentum encoders.


def test_the_momentum_encoder_follows_the_step():
    method = make("BYOL")
    before = copy.deepcopy(method.teacher)
    fit(method, 1, batches=Batches(1))
    moved = list(torch.nn.ModuleList([method.backbone, method.projector]).parameters())
    for old, new, theirs in zip(before.parameters(), method.teacher.parameters(), moved, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * theirs)
        assert not new.requires_grad


def test_momentum_reaches_one_at_the_end_and_may_be_constant():
    method = make("BYOL")
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.readings["momentum"].item())

    fit(method, 20, [Watch()], Batches(20))
    assert seen[0] == pytest.approx(0.9) and seen == sorted(seen) and seen[-1] == pytest.approx(1, abs=2e-3)
    assert make("MoCo").teacher.momentum.at(7, 9) == 0.9


def test_moco_encodes_each_view_once():
    method = make("MoCo")
    calls = []
    for part, module in (("query", method.backbone), ("key", method.teacher.backbone)):
        module.register_forward_hook(lambda _m, inputs, _o, part=part: calls.append((part, len(inputs[0]))))
    outputs = method.training_step(Batches()[0], 0)
    assert calls == [("query", 24), ("key", 24)]
    assert outputs["projections"].shape == (2, 24, 16)


def test_predictors_keep_their_rate():
    method = make("SimSiam")
    trainer = fit(method, 10, batches=Batches(10))
    rates = {group["scheduled"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    assert rates[False] == 0.003 and rates[True] < 0.0005


@pytest.mark.parametrize("name", ["MoCo", "BYOL", "AMCL-MoCo"])
def test_more_views_than_two_are_refused_where_two_are_meant(name):
    with pytest.raises(ValueError, match="takes 2 views of a sample, got 4: set data.views"):
        make(name).training_step(Batches(views=4)[0], 0)


def test_dino_shows_its_teacher_as_many_crops_as_it_says():
    with pytest.raises(ValueError, match="DINO takes 3 or more views of a sample, got 2"):
        m.DINO(ConvNet((8,)), o.DINO(8), large=3, hidden=8, bottleneck=4).training_step(Batches()[0], 0)
    with pytest.raises(ValueError, match="large: the teacher sees 1 crop or more, got 0"):
        m.DINO(ConvNet((8,)), o.DINO(8), large=0)


def test_hosts_must_fit():
    with pytest.raises(ValueError, match="needs both"):
        m.AMCL(ConvNet((8,)), o.AMCL(queue_size=8))
    with pytest.raises(ValueError, match="needs both"):
        m.Hallucinator(ConvNet((8,)), o.Hallucinator(o.NTXent()), momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        m.BYOL(ConvNet((8,)), momentum=1.5)


def test_without_negatives_batches_may_be_accumulated():
    fit(make("BYOL"), 1, batches=Batches(2), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="would cut the contrastive batch"):
        fit(make("MoCo"), 1, batches=Batches(2), accumulate_grad_batches=2)


# SwAV: crops of two sizes.


def test_swav_takes_many_crops():
    method = make("SwAV")
    batch = Batches()[0]
    batch["image"] += [torch.randn(24, 3, 4, 4) for _ in range(3)]
    outputs = method.training_step(batch, 0)
    assert outputs["projections"].shape == (5, 24, 16) and outputs["loss"].isfinite()


# cMIM.


def test_cmim_reconstructs_and_embeds_by_its_decoder():
    method = make("CMIM")
    batch = Batches(1)[0]
    before = method.log_likelihood(
        batch["image"][0], method.projector(method.backbone(batch["image"][0]).pooled)[:, :16]
    )
    fit(method, 60, batches=Batches(1))
    method.eval()
    code = method.projector(method.backbone(batch["image"][0]).pooled)[:, :16]
    assert method.log_likelihood(batch["image"][0], code).mean() > before.mean() + 50
    assert method.embed(batch)[0].pooled.shape == (24, 32)
    method.embedding = "encoder"
    assert method.embed(batch)[0].pooled.shape == (24, 16)
    single = {**batch, "image": batch["image"][:1]}
    assert method.train().training_step(single, 0)["projections"].shape == (2, 24, 16)
    with pytest.raises(ValueError, match="image_size must be 4, 8, 16"):
        m.CMIM(ConvNet((8,)), 12)


# Scattering.


def test_scattering_counts_its_maps_and_forgives_small_shifts():
    scattering = Scattering(32, 2, 16)
    assert scattering.maps == 289 and not list(scattering.parameters())
    images = torch.nn.functional.avg_pool2d(torch.randn(4, 3, 34, 34), 3, 1)
    maps = scattering(images)
    assert maps.shape == (4, 3 * 289, 8, 8)
    shifted = images.roll(1, dims=3)

    def moved(a, b):
        return ((a - b).norm() / a.norm()).item()

    assert moved(maps, scattering(shifted)) < 0.5 * moved(images, shifted)
    first = maps.view(4, 3, 289, 8, 8)
    torch.testing.assert_close(first[:, :, 0].mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)  # order 0 averages
    wave = torch.cos(3 * torch.pi / 4 * torch.arange(32.0)).expand(1, 3, 32, 32)  # along x, at the finest scale
    found = scattering(wave).view(3, 289, 64)[0, 1:33].mean(1)
    assert found.argmax() == 0  # angle 0 of scale 0
    with pytest.raises(ValueError, match="multiple of 2\\^scales = 4"):
        Scattering(30)


def test_scattering_without_weight_is_simclr():
    batch = Batches()[0]
    pl.seed_everything(0, verbose=False)
    with_task = m.ScatSimCLR(ConvNet((8, 16)), weight=0.0, **FAST)
    pl.seed_everything(0, verbose=False)
    without = m.ScatSimCLR(ConvNet((8, 16)), pretext="none", **FAST)
    assert with_task.training_step(batch, 0)["loss"].item() == without.training_step(batch, 0)["loss"].item()


def test_pretext_transforms():
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(24, 3, 4, 4)
    method = m.ScatSimCLR(ConvNet((8, 16)), pretext="jigsaw", **FAST)
    assert len(method.orders) == 24 and torch.equal(method.shuffled(images, torch.zeros(24, dtype=int)), images)
    everything = method.shuffled(images, torch.arange(24))
    assert len({tuple(image.flatten().tolist()) for image in everything}) == 24
    assert torch.equal(everything.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    turned = rotated(images, torch.arange(24) % 4)
    assert torch.equal(turned[1], torch.rot90(images[0], 1, (1, 2))) and torch.equal(turned[4], images[0])


# Labels in part.


def test_hidden_labels_are_never_shown():
    method = make("BaCon")
    batch = {"label": torch.arange(4000) % 4, "index": torch.arange(4000)}
    shown = method.shown(batch)
    assert (shown[batch["label"] == 3] == -1).all()
    visible = (shown >= 0)[batch["label"] < 3].float().mean()
    assert 0.45 < visible < 0.55 and torch.equal(shown, method.shown(batch))
    assert torch.equal(shown[shown >= 0], batch["label"][shown >= 0])


def test_blanked_images():
    images = torch.ones(50, 3, 12, 12)
    holes = blanked(images, 0.15, 4)
    assert 0.8 < holes.mean() < 0.9 and torch.equal(holes, holes[:, :1].expand_as(holes))
    assert torch.equal(blanked(images, 0.0, 4), images)
    squares = holes[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert (squares.std(3) == 0).all()


def test_sepclr_embeds_either_code():
    batch = Batches()[0]
    for embedding, width in (("common", 16), ("salient", 16), ("both", 32)):
        method = m.SepCLR(ConvNet((8, 16)), embedding=embedding, **FAST)
        assert method.embed(batch)[0].pooled.shape == (24, width)


def test_an_energy_does_not_depend_on_its_batch():
    with pytest.raises(ValueError, match=r"BatchNorm \(body.1\): use one with GroupNorm"):
        m.MECO(ConvNet((8, 16)))
    method = make("MECO")
    images = Batches()[0]["image"][0]
    whole = method.projector(method.backbone(images).pooled)
    torch.testing.assert_close(method.projector(method.backbone(images[:3]).pooled), whole[:3])


def test_nothing_unused_is_left_for_ddp():
    """Every parameter gets a gradient in a step, or DDP would wait for it."""
    for name in METHODS:
        method = make(name)
        batch = batches(name)[0]
        if name == "DeepCluster":  # in its first epoch, with a loss of 0
            assert method.training_step(batch, 0)["loss"].item() == 0
        method.training_step(batch, 0)["loss"].backward()
        lacking = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert not lacking, f"{name}: {lacking}"


def test_image_volume_embeds_a_volume_and_heeds_the_order_of_its_slices():
    method = make("ImageVolume").eval()
    images = Batches(views=2)[0]["image"]
    (volume,) = method.embed({"image": images})
    assert volume.pooled.shape == (24, 16) and volume.tokens.shape == (24, 2, 16)
    (turned,) = method.embed({"image": images[::-1]})
    assert not torch.allclose(volume.pooled, turned.pooled)
    with pytest.raises(ValueError, match="ImageVolume takes 4 views of a sample, got 2"):
        make("ImageVolume").training_step(Batches(views=2)[0], 0)
    whole = m.ImageVolume(ConvNet((8, 16)), o.ImageVolume(2, 16, 8), masked=0.0, projector_hidden=32, **FAST)
    whole.training_step(Batches(views=4)[0], 0)
    assert "masked" not in whole.readings
