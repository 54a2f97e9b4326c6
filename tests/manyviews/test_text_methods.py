"""Every method for images with texts: it learns, resumes bit-equal, chunks and ranks change nothing, locks hold."""

import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from manyviews import methods as m
from manyviews import objectives as o
from manyviews.backbones import Cached, Encoding, OpenClipImage, OpenClipText
from manyviews.heads import LogitScale
from tests.manyviews.test_image_methods import Reseed, state
from tests.manyviews.test_methods import fit
from tests.support.training import changed, fast

FAST = fast()
WIDE = {"dim": 12, **FAST}
RECIPE = {**WIDE, "hidden": 16}
SCALE = LogitScale

METHODS = {
    "CLIP": lambda i, t: m.CLIP(i, t, **WIDE),
    "CLIP-positives": lambda i, t: m.CLIP(i, t, positives="group", **WIDE),
    "LiT": lambda i, t: m.CLIP(i, t, 12, **fast(locked=["backbone"])),
    "SigLIP": lambda i, t: m.SigLIP(i, t, **WIDE),
    "ALIGN": lambda i, t: m.ALIGN(i, t, **FAST),
    "SLIP": lambda i, t: m.SLIP(i, t, projector_hidden=16, projector_out=8, **WIDE),
    "ImprovedCLIP": lambda i, t: m.ImprovedCLIP(i, t, **RECIPE),
    "SiamLIP": lambda i, t: m.SiamLIP(i, t, companion_hidden=16, companion_out=8, **RECIPE),
    "BYOLIP": lambda i, t: m.BYOLIP(i, t, companion_hidden=16, companion_out=8, momentum=0.9, **RECIPE),
    "BarLIP": lambda i, t: m.BarLIP(i, t, companion_hidden=16, companion_out=8, **RECIPE),
    "SwALIP": lambda i, t: m.SwALIP(i, t, **RECIPE),
    "FILIP": lambda i, t: m.FILIP(i, t, **WIDE),
    "FILIP-reduced": lambda i, t: m.FILIP(i, t, keep=0.5, **WIDE),
    "Wukong": lambda i, t: m.Wukong(i, t, tokens=2, groups=4, **WIDE),
    "CGVLM": lambda i, t: m.CGVLM(i, t, **WIDE),
    "FDT": lambda i, t: m.FDT(i, t, codes=32, temperature=1.0, **WIDE),
    "MGCA": lambda i, t: m.MGCA(i, t, o.MGCA(12, 6, frozen_epochs=0), hidden=16, **WIDE),
    "ORMA": lambda i, t: m.ORMA(i, t, **WIDE),
    "COSMO": lambda i, t: m.COSMO(i, t, heads=2, **WIDE),
    "NegCLIP": lambda i, t: m.NegCLIP(i, t, **WIDE),
    "MCIP": lambda i, t: m.MCIP(i, t, 4, **WIDE),
    "MultiModal": lambda i, t: m.MultiModal(i, t, **WIDE),
    "MultiModal-DHEL": lambda i, t: m.MultiModal(i, t, o.MVDHEL(0.2), **WIDE),
    "MultiModal-pairs": lambda i, t: m.MultiModal(i, t, o.PairwiseCLIP(SCALE(10.0)), **WIDE),
    "Decoding": lambda i, t: m.Decoding(i, "signal", 10, **FAST),
    "MoCoOp": lambda i, t: m.MoCoOp(
        i, t, ["cat", "big dog", "red fish", "bird"], [["a {c}", "the {c}."], ["a photo of a {c} outside"], ["{c}"]], 12,
        20.0, **FAST,
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", METHODS)
NORMED = ("SLIP", "ImprovedCLIP", "SiamLIP", "BYOLIP", "BarLIP", "SwALIP", "MGCA")
STRONG = ("SLIP", "ImprovedCLIP", "SiamLIP", "BYOLIP", "BarLIP", "SwALIP")

READINGS = {
    "CLIP": {"logit_scale", "duplicate_captions", "loss_floor"},
    "SigLIP": {"logit_scale", "logit_bias"},
    "SLIP": {"clip", "ntxent"},
    "ImprovedCLIP": {"logit_scale", "strong_scale"},
    "SiamLIP": {"companion"},
    "BarLIP": {"companion"},
    "SwALIP": {"companion"},
    "FILIP": {"logit_scale", "patch_entropy"},
    "FDT": {"codes_used", "codes_a_sample", "logit_scale"},
    "MGCA": {"instance", "local", "prototype"},
    "ORMA": {"transport_cost"},
    "MultiModal-pairs": {"pair_01", "pair_02", "pair_12"},
    "Decoding": {"estimate_length"},
    "MoCoOp": {"router_usage", "accuracy"},
}


AT_BOUND = {"FDT": {"objective.scale.log_scale"}, "ALIGN": {"objective.scale.log_scale"}}
"""Scales that start at their lower bound may stay there for a while."""


class Patches(nn.Module):
    """Four patches of an 8 px image and a class token, without anything that couples the batch."""

    width, prefix_tokens = 16, 1

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(self.mix(torch.cat([patches.mean(1, keepdim=True), patches], 1)).relu())
        return Encoding(tokens.mean(1), tokens, prefix_tokens=1)


class Words(nn.Module):
    """An embedding of each word and a layer on it; 0 is padding."""

    width = 16

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, ids):
        mask = ids != 0
        tokens = self.mix(self.embedding(ids)).tanh()
        return Encoding((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), tokens, mask)


class Pairs(torch.utils.data.Dataset):
    """Batches of images with captions of the same meaning, from a seed."""

    def __init__(self, n=4, size=24, images=1, texts=1, clip=False, start=0):
        self.n, self.size, self.images, self.texts, self.clip, self.start = n, size, images, texts, clip, start

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i + self.start)
        base = torch.randn(self.size, 3, 8, 8, generator=g)
        label = torch.arange(self.size) % 4
        words = torch.randint(1, 40, (self.size, 6), generator=g)
        words[:, 4:] = (
            torch.where(torch.rand(self.size, 2, generator=g) < 0.5, 0, words[:, 4:]).sort(1, descending=True).values
        )
        base[:, 0, 0, :6] = words / 10 - 2
        base[:, 1] += label[:, None, None]
        return {
            "image": [base + 0.1 * torch.randn(base.shape, generator=g) for _ in range(self.images)],
            "text": [words.clone() for _ in range(self.texts)],
            "hard_text": words[:, [1, 0, 3, 2, 4, 5]][:, None],
            "hard_present": torch.rand(self.size, 1, generator=g) < 0.8,
            "signal": base[:, 2].flatten(1)[:, :10],
            "index": torch.arange(self.size) + (i + self.start) * self.size,
            "group": torch.full((self.size,), -1),
            "label": label,
            "replaced": [],
        }


def towers(name):
    if name == "MoCoOp":
        options = {"width": 16, "heads": 2, "layers": 2, "context_length": 12}
        return Patches(), OpenClipText("ViT-B-32", options=options)
    return Patches(), Words()


def make(name):
    pl.seed_everything(0, verbose=False)
    return METHODS[name](*towers(name))


def pairs(name, n=4, **options):
    views = 3 if name in STRONG else 2 if name.startswith("MultiModal") else 1
    texts = 0 if name == "Decoding" else 3 if name in STRONG and name != "SLIP" else 2 if name == "MCIP" else 1
    return Pairs(n, images=views, texts=texts, **options)


TEXTS = {name for name in m.__all__ if issubclass(getattr(m, name), m.ImageText)} - {"ImageText"} | {"Decoding"}


def test_every_method_for_texts_is_here():
    assert {type(make(name)).__name__ for name in METHODS} == TEXTS


@every
def test_it_learns_and_shows_its_readings(name):
    method = make(name)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            seen.append(outputs["loss"].item())

    before = state(method)
    fit(method, 40, [Watch()], pairs(name, 1))
    assert all(torch.isfinite(torch.tensor(seen)))
    assert sum(seen[-5:]) / 5 < sum(seen[:2]) / 2 - 0.01
    assert READINGS.get(name, set()) <= method.readings.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in method.readings.values())
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    still = {key for key, p in method.named_parameters() if p.requires_grad} - moved - AT_BOUND.get(name, set())
    assert not still, f"parameters that do not learn: {still}"


@every
def test_resume_is_bit_equal(name, tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half")

    whole = make(name)
    fit(whole, 6, [Reseed(), Save()], pairs(name, 6))
    again = make(name)
    with torch.no_grad():
        for value in again.state_dict().values():
            value.zero_()
    fit(again, 6, [Reseed()], pairs(name, 3, start=3), ckpt=tmp_path / "half")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@every
def test_chunks_give_the_weights_of_the_whole_batch(name):
    """GradCache: images and texts five at a time, after two steps."""
    whole, cached = (changed(make(name), grad_cache=chunk) for chunk in (0, 5))
    for method in (whole, cached):
        changed(method, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
        fit(method, 2, batches=pairs(name, 2))
    for (key, a), b in zip(whole.state_dict().items(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["LiT", "Wukong", "MCIP", "MoCoOp"])
def test_what_is_locked_stays(name):
    method = make(name)
    frozen = [method.get_submodule(part) for part in method.locked]
    kept = [state(part) for part in frozen]
    trainer = fit(method, 5, batches=pairs(name, 1))
    for part, before in zip(frozen, kept, strict=True):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for part in frozen for p in part.parameters()}
    assert not any(id(p) in {id(q) for q in trainer.optimizers[0].state} for part in frozen for p in part.parameters())


class Counting(Patches):
    """Counts the images it sees."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


def test_a_locked_tower_can_remember():
    pl.seed_everything(0, verbose=False)
    tower = Counting().requires_grad_(False)
    cached = Cached(tower, entries=30).eval()
    images = torch.randn(20, 3, 8, 8)
    plain = tower(images)
    tower.seen = 0
    for order in (torch.arange(20), torch.randperm(20), torch.tensor([3, 3, 7])):
        found = cached(images[order])
        assert torch.equal(found.pooled, plain.pooled[order]) and torch.equal(found.tokens, plain.tokens[order])
    assert tower.seen == 20 and found.token_mask is None and found.prefix_tokens == 1
    assert not [key for key in cached.state_dict() if not key.startswith("backbone.")]
    cached(torch.randn(25, 3, 8, 8))  # 20 of the first, those that were used longest ago, have to go
    assert len(cached._known) == 30
    tower.seen = 0
    cached(images[[3, 7]])
    assert tower.seen == 0
    with pytest.raises(ValueError, match="for towers that stay as they are: name it in model.training.locked"):
        Cached(Patches()).eval()(images)
    with pytest.raises(ValueError, match="for towers that stay as they are"):
        Cached(tower).train()(images)


def test_training_beside_a_tower_that_remembers_is_the_same():
    def train(remember):
        pl.seed_everything(0, verbose=False)
        image, text = Counting(), Words()
        method = m.CLIP(Cached(image) if remember else image, text, 12, **fast(locked=["backbone"]))
        fit(method, 8, batches=pairs("CLIP", 2))
        return image.seen, {key.replace("backbone.backbone", "backbone"): v for key, v in method.state_dict().items()}

    (often, plain), (once, remembered) = train(False), train(True)
    assert (often, once) == (8 * 24, 2 * 24)
    for key, value in plain.items():
        assert torch.equal(value, remembered[key]), key


class Normed(Patches):
    """With BatchNorm and dropout, which locking has to hold still."""

    def __init__(self):
        super().__init__()
        self.batch, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, images):
        return super().forward(self.dropout(self.batch(images)))


def test_a_locked_tower_is_its_own_target():
    """BYOLIP's momentum encoder follows what is trained, and nothing of a locked tower moves or is drawn at random."""
    pl.seed_everything(0, verbose=False)
    tower = Normed()
    options = {"companion_hidden": 16, "companion_out": 8, "momentum": 0.9, **RECIPE, **fast(locked=["backbone"])}
    method = m.BYOLIP(tower, Words(), **options)
    before = state(tower)
    fit(method, 3, batches=pairs("BYOLIP", 1))
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())
    followed = {type(part) for part in method.teacher.modules()}
    assert Words in followed and Normed not in followed
    batch = pairs("BYOLIP")[0]
    for first, again in zip(method._targets(batch)[::2], method._targets(batch)[::2], strict=True):
        assert torch.equal(first, again)


def test_a_locked_tower_with_batchnorm_can_be_cut_in_chunks():
    def train(chunk):
        pl.seed_everything(0, verbose=False)
        method = m.CLIP(Normed(), Words(), 12, **fast(locked=["backbone"], grad_cache=chunk))
        fit(method, 2, batches=pairs("CLIP", 2))
        return method.state_dict()

    for (key, a), b in zip(train(0).items(), train(5).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5, msg=key)
    with pytest.raises(ValueError, match="grad_cache is exact only if"):
        m.CLIP(Normed(), Words(), 12, **fast(grad_cache=5))


def test_what_is_remembered_is_of_full_precision():
    tower = Patches().requires_grad_(False).eval()
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached = Cached(tower).eval()(images)
    assert torch.equal(cached.pooled, tower(images).pooled)


@pytest.mark.parametrize("inner", ["plain", "Cached", "Exported", "ShiftedWindows"])
def test_nested_backbones_are_exported(tmp_path, inner):
    from manyviews.backbones import ConvNet, Exported, ShiftedWindows
    from manyviews.cli.export import export_backbone

    plain = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8]}}
    net, images = ConvNet([4, 8]), torch.randn(2, 3, 16, 16)
    how, backbone = plain, net
    if inner == "Cached":
        how = {"class_path": "manyviews.backbones.Cached", "init_args": {"backbone": plain}}
        backbone = Cached(net.requires_grad_(False))
    elif inner == "ShiftedWindows":
        how = {"class_path": "manyviews.backbones.ShiftedWindows", "init_args": {"backbone": plain, "window": 4}}
        backbone = ShiftedWindows(net, 4)
    elif inner == "Exported":
        list(export_backbone(net, {"init_args": {"backbone": plain}}, images, tmp_path / "first"))
        how = {"class_path": "manyviews.backbones.Exported", "init_args": {"folder": str(tmp_path / "first")}}
        backbone = Exported(str(tmp_path / "first"))
    list(export_backbone(backbone, {"init_args": {"backbone": how}}, images, tmp_path / "out"))
    again = Exported(str(tmp_path / "out")).eval()
    expected = net if inner != "ShiftedWindows" else backbone
    torch.testing.assert_close(again(images).pooled, Encoding.of(expected.eval()(images)).pooled)
    assert "first" not in (tmp_path / "out/config.json").read_text()


SHARING = ("CLIP", "ALIGN", "NegCLIP", "SLIP", "ImprovedCLIP", "SiamLIP", "BYOLIP", "BarLIP", "SwALIP", "FILIP", "Wukong",
           "CGVLM", "FDT", "COSMO")  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_multi_positives_reach_the_objective(name):
    options = {k: v for k, v in WIDE.items() if name != "ALIGN" or k != "dim"}
    options |= {"companion_out": 8} if name in ("SiamLIP", "BYOLIP", "BarLIP") else {}
    options |= {"tokens": 2, "groups": 4} if name == "Wukong" else {}
    method = getattr(m, name)(*towers(name), positives="group", **options)
    found = [module.positives for module in method.objective.modules() if hasattr(module, "positives")]
    assert found and set(found) == {"group"}
    with pytest.raises(ValueError, match="positives must be one of 'own', 'group', got 'some'"):
        getattr(m, name)(*towers(name), positives="some", **options)


def test_a_sample_that_stands_in_the_batch_twice_is_no_negative_of_itself():
    method, batch = make("CLIP"), pairs("CLIP")[0]
    batch["index"][5], batch["group"][7] = batch["index"][2], 3
    group = method.context(batch)["group"]
    assert group[5] == group[2] >= 0 and group[7] == 3 and len(group.unique()) == 23
    assert torch.equal(method.context(pairs("CLIP")[0])["group"], pairs("CLIP")[0]["group"])


def test_a_part_that_is_not_there_cannot_be_locked():
    with pytest.raises(ValueError, match=r"no part 'backbon'.*backbone, projector"):
        fit(m.CLIP(*towers("CLIP"), 12, **fast(locked=["backbon"])), 1, batches=pairs("CLIP", 1))


def test_the_scale_is_brought_back_after_a_step():
    method = make("CLIP")
    method.objective.scale.log_scale.data.fill_(6.0)
    fit(method, 1, batches=pairs("CLIP", 1))
    assert method.objective.scale().item() == pytest.approx(100, rel=1e-5)
    free = make("SigLIP")
    free.objective.scale.log_scale.data.fill_(6.0)
    fit(free, 1, batches=pairs("SigLIP", 1))
    assert free.objective.scale().item() > 300


@every
def test_views_that_would_be_compared_with_nothing_are_refused(name):
    """And too few. Those that take any number say so."""
    method, seen = make(name), 0
    for what in ("images", "texts"):
        given = pairs(name)
        least, most = method.takes_views if what == "images" else method.takes_texts
        for count in {least - 1, most + 1} - {0, -1, math.inf}:
            setattr(given, what, count)
            wanted = f"{least} or more" if most == math.inf else str(least)
            with pytest.raises(ValueError, match=f"takes {wanted} .*of a sample, got {count}: set data"):
                method.training_step(given[0], 0)
            seen += 1
    assert seen or name.startswith("MultiModal")


def test_what_a_method_needs_is_asked_for():
    batch = pairs("CLIP")[0]
    del batch["text"]
    with pytest.raises(ValueError, match=r"needs texts: set data.text"):
        make("CLIP").training_step(batch, 0)
    with pytest.raises(ValueError, match="takes a weak and strong views of image and text alike, got 3 .* and 2 of"):
        make("ImprovedCLIP").training_step(Pairs(images=3, texts=2)[0], 0)
    batch = pairs("NegCLIP")[0]
    del batch["hard_text"]
    with pytest.raises(ValueError, match="needs hard captions"):
        make("NegCLIP").training_step(batch, 0)
    with pytest.raises(ValueError, match="compares tokens, and Flat gives none"):
        m.FILIP(Flat(), Words(), dim=12).training_step(pairs("FILIP")[0], 0)
    with pytest.raises(ValueError, match=r"needs 'gone' of every sample"):
        m.Decoding(Patches(), "gone", 10).training_step(pairs("Decoding")[0], 0)
    with pytest.raises(ValueError, match=r"a template has \{c\} once"):
        m.MoCoOp(*towers("MoCoOp"), ["cat"], [["a photo"]], 12)


class Flat(nn.Module):
    width = 16

    def forward(self, images):
        return images.flatten(1)[:, :16]


def test_duplicate_captions_are_seen():
    method, batch = make("CLIP"), pairs("CLIP")[0]
    batch["text"][0][1] = batch["text"][0][0]
    method.training_step(batch, 0)
    assert method.readings["duplicate_captions"].item() == pytest.approx(2 / 24)
    assert method.readings["loss_floor"].item() == pytest.approx(2 / 24 * torch.log(torch.tensor(2.0)).item())


def test_soft_prompts_start_as_their_template():
    method = make("MoCoOp")
    ids = method.tokenize([f"a {name}" for name in method.classnames])
    torch.testing.assert_close(method.prompt_features()[0], method.embed_text(ids).pooled)
    method.prompts.data[0] += torch.randn(method.prompts[0].shape)
    assert not torch.allclose(method.prompt_features()[0], method.embed_text(ids).pooled, atol=1e-3)
    words = method.around[1, 1]  # "a photo of a big dog outside": four words before, two in it, one after
    assert words.tolist()[:9] == [-1, 0, 1, 2, 3, -1, -1, 4, -1]


# open_clip's towers.

IMAGE = {"width": 32, "head_width": 16, "layers": 1, "patch_size": 8, "image_size": 16}
TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 16}


def open_clip_method(cls=m.CLIP, **options):
    pl.seed_everything(0, verbose=False)
    image, text = OpenClipImage("ViT-B-32", options=IMAGE), OpenClipText("ViT-B-32", options=TEXT)
    return cls(image, text, dim=512, **{**FAST, **options})


def test_a_checkpoint_of_open_clip_gives_its_features(tmp_path):
    import open_clip

    pl.seed_everything(0, verbose=False)
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"] |= IMAGE
    config["text_cfg"] |= TEXT
    theirs = open_clip.CLIP(**config).eval()  # the layout of released weights, its text tower in pieces
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    path = str(tmp_path / "weights.pt")
    ours = m.CLIP(OpenClipImage("ViT-B-32", path, IMAGE), OpenClipText("ViT-B-32", path, TEXT), dim=512).eval()
    images, ids = (
        torch.randn(3, 3, 16, 16),
        open_clip.get_tokenizer("ViT-B-32", context_length=16)(["a cat", "!", "dogs"]),
    )
    with torch.no_grad():
        pairs = (
            (ours.embed_image(images).pooled, theirs.encode_image(images, normalize=True)),
            (ours.embed_text(ids).pooled, theirs.encode_text(ids, normalize=True)),
        )
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
        tokens = OpenClipText("ViT-B-32", path, TEXT).eval()(ids)
    assert tokens.token_mask.sum(1).tolist() == [4, 3, 3]  # start, words, end; "!" has the number of the padding
    assert tokens.tokens.shape == (3, 16, 32)


def test_resnets_of_open_clip_end_in_their_joint_space():
    options = {"width": 8, "layers": [1, 1, 1, 1], "image_size": 32}
    image = OpenClipImage("RN50", options=options)
    method = m.CLIP(image, OpenClipText("RN50", options=TEXT), dim=1024)
    assert isinstance(method.projector, nn.Identity)
    assert method.embed_image(torch.randn(2, 3, 32, 32)).pooled.shape == (2, 1024)
    with pytest.raises(ValueError, match="ends in its own joint space of 1024"):
        m.CLIP(image, OpenClipText("RN50", options=TEXT), dim=64)


def test_unknown_models_and_weights_are_refused():
    with pytest.raises(ValueError, match=r"open_clip has no model 'ViT-B-33'; near it: ViT-B-"):
        OpenClipImage("ViT-B-33")
    with pytest.raises(FileNotFoundError, match=r"gone.pt: no such weights"):
        OpenClipText("ViT-B-32", "gone.pt", TEXT)
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        OpenClipText("local-dir:/nowhere")
    with pytest.raises(ValueError, match=r"texts of 5 tokens, but the text tower has 16: set data.text.context"):
        OpenClipText("ViT-B-32", options=TEXT)(torch.ones(2, 5, dtype=torch.int64))


def test_positions_do_not_decay():
    method = open_clip_method()
    trainer = fit(method, 1, batches=Pairs16())
    plain = next(group for group in trainer.optimizers[0].param_groups if group.get("adapt") is False)
    names = {id(p): name for name, p in method.named_parameters()}
    spared = {names[id(p)] for p in plain["params"]}
    assert "backbone.model.positional_embedding" in spared
    assert "text_backbone.model.positional_embedding" in spared
    assert "backbone.model.class_embedding" in spared and "objective.scale.log_scale" in spared


class Pairs16(Pairs):
    """Images of 16 px and texts of 16 tokens."""

    def __getitem__(self, i):
        batch = super().__getitem__(i)
        text = torch.nn.functional.pad(batch["text"][0], (1, 9))
        text[:, 0], text[:, 7] = 49406, 49407
        return {**batch, "image": [view.repeat(1, 1, 2, 2) for view in batch["image"]], "text": [text]}
