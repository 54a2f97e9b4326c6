"""Published weights, in the containers and by the names of those who publish them: features as theirs, or a word."""

import argparse
import copy
import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from manyviews.backbones import ConvNet, PointTransformer, TimmBackbone, load_weights, not_read
from manyviews.backbones.published import of_transformers
from manyviews.foreign import CONFIG_KEY
from manyviews.runs.parent import start_from
from tests.manyviews.test_image_methods import make


@pytest.fixture(scope="module", autouse=True)
def seeded():
    torch.manual_seed(0)


def spread(model):
    """Other numbers than those any model starts with, also where it starts with zeros and ones."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.randn_like(value)).abs_() if value.ndim < 2 else value.normal_(std=0.05)
    return model.eval()


RESNET = spread(timm.create_model("resnet10t"))
VIT = spread(timm.create_model("vit_tiny_patch16_224", img_size=64))
IMAGES = torch.randn(2, 3, 64, 64)


def others(state, factor=3.0):
    return {name: value * factor if value.is_floating_point() else value for name, value in state.items()}


def named(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def headless(model):
    return {name: value for name, value in model.state_dict().items() if not name.startswith(("head", "fc"))}


def of_resnet(kind):
    full, body = RESNET.state_dict(), headless(RESNET)
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": np.float64(0.1)}]}
    return {
        "timm with its head": full,
        "timm's training": {"state_dict": others(full), "state_dict_ema": full, "epoch": 3, "args": argparse.Namespace(a=1)},
        "DataParallel": {"state_dict": named("module.", full)},
        "compiled": {"model": named("_orig_mod.", full)},
        "MoCo v2": {"state_dict": named("module.encoder_q.", full) | named("module.encoder_k.", others(full)) | {"module.queue": torch.zeros(2, 2)}, "optimizer": optimizer},
        "MoCo v3": {"state_dict": named("module.base_encoder.", full) | named("module.momentum_encoder.", others(full)) | {"module.predictor.0.weight": torch.zeros(2, 2)}},
        "SimSiam": {"state_dict": named("module.encoder.", body | {"fc.0.weight": torch.zeros(2, 2), "fc.1.weight": torch.zeros(2)}) | {"module.predictor.0.weight": torch.zeros(2, 2)}},
        "SwAV": named("module.", body | {"projection_head.0.weight": torch.zeros(2, 2), "prototypes.weight": torch.zeros(2, 2)}),
        "Barlow Twins": {"model": named("module.backbone.", body) | {"module.projector.0.weight": torch.zeros(2, 2), "module.bn.running_mean": torch.zeros(2)}, "optimizer": optimizer},
        "solo-learn": {"state_dict": named("backbone.", body) | named("momentum_backbone.", others(body)) | {"projector.0.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(2, 2)}},
        "BYOL": {"online_encoder": named("net.", body), "target_encoder": named("net.", others(body)), "online_predictor": {"0.weight": torch.zeros(2, 2)}},
        "lightly's BYOL": {"state_dict": named("backbone.", body) | named("teacher_backbone.", others(body)) | {"prediction_head.0.weight": torch.zeros(2, 2)}, "hyper_parameters": {"lr": 0.1}, "loops": {"fit_loop": {}}},
        "lightly's DINO": {"state_dict": named("teacher_backbone.", body) | named("student_backbone.", others(body))},
        "stable-pretraining": {"state_dict": named("backbone.teacher.", body) | named("backbone.student.", others(body)) | {"callbacks_metrics.x": torch.zeros(2)}},
        "a run of ours": {"state_dict": named("backbone.model.", body) | named("teacher.backbone.model.", others(body)) | {"projector.0.weight": torch.zeros(2, 2)}, "global_step": 3, CONFIG_KEY: {}},
    }[kind]  # fmt: skip


def of_vit(kind):
    full, body = VIT.state_dict(), headless(VIT)
    decoder = {
        "mask_token": torch.zeros(1, 1, 192),
        "decoder_embed.weight": torch.zeros(2, 2),
        "decoder_blocks.0.norm1.weight": torch.zeros(2),
    }
    heads = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2)}
    return {
        "timm with its head": full,
        "DINO": body,
        "DINO's training": {"student": named("module.backbone.", others(body)), "teacher": named("backbone.", body) | heads, "epoch": 5, "dino_loss": {"center": torch.zeros(1, 2)}},
        "iBOT's training": {"student": named("module.backbone.", others(body) | {"masked_embed": torch.zeros(1, 192)}), "teacher": named("backbone.", body | {"masked_embed": torch.zeros(1, 192)}) | heads},
        "DINOv2's training": {"teacher": named("backbone.", body) | {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.mlp.0.weight": torch.zeros(2, 2)}},
        "MAE": {"model": body},
        "MAE with its decoder": {"model": body | decoder},
        "I-JEPA": {"encoder": named("module.", others(body)), "target_encoder": named("module.", body), "predictor": {"module.predictor_embed.weight": torch.zeros(2, 2)}, "opt": {}, "epoch": 9},
        "an open_clip of timm's tower": named("visual.trunk.", body) | {"visual.head.proj.weight": torch.zeros(2, 2), "text.positional_embedding": torch.zeros(2, 2), "logit_scale": torch.zeros(())},
    }[kind]  # fmt: skip


CONTAINERS = [
    *(("resnet10t", kind, of_resnet) for kind in (
        "timm with its head", "timm's training", "DataParallel", "compiled", "MoCo v2", "MoCo v3", "SimSiam", "SwAV", "Barlow Twins",
        "solo-learn", "BYOL", "lightly's BYOL", "lightly's DINO", "stable-pretraining", "a run of ours",
    )),
    *(("vit_tiny_patch16_224", kind, of_vit) for kind in (
        "timm with its head", "DINO", "DINO's training", "iBOT's training", "DINOv2's training", "MAE", "MAE with its decoder", "I-JEPA",
        "an open_clip of timm's tower",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "make"), CONTAINERS, ids=[f"{name}-{kind}" for name, kind, _ in CONTAINERS])
def test_features_equal_those_of_timm_with_the_same_weights(name, kind, make, tmp_path):
    """And every tensor of the file is accounted for."""
    content, reference = make(kind), RESNET if name == "resnet10t" else VIT
    torch.save(content, tmp_path / "weights.pth")
    size = {} if name == "resnet10t" else {"image_size": 64}
    backbone = TimmBackbone(name, checkpoint=str(tmp_path / "weights.pth"), **size).eval()
    with torch.no_grad():
        features = reference.forward_features(IMAGES)
        torch.testing.assert_close(
            backbone(IMAGES).pooled, reference.forward_head(features, pre_logits=True), atol=1e-5, rtol=1e-5
        )
    account = load_weights(backbone, str(tmp_path / "weights.pth"))

    def count(value):
        return sum(map(count, value.values())) if isinstance(value, dict) else isinstance(value, torch.Tensor)

    optimizer = 1 if isinstance(content.get("optimizer"), dict) else 0  # by number, so not by name
    assert account.used + sum(account.dropped.values()) == count(content) - optimizer
    assert account.used == len(headless(reference))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "norm.weight"}, "it lacks norm.weight"),
        (lambda s: s | {"extra.weight": torch.zeros(2)}, "it has extra.weight besides"),
        (lambda s: s | {"norm.weight": torch.zeros(7)}, "size mismatch for norm.weight"),
        (lambda s: {"a": s, "b": others(s)}, "'a' and 'b' fit equally well"),
        (lambda s: {"w": torch.zeros(3)}, "none of its 1 names, such as w, is one of the backbone"),
        (lambda s: {"epoch": 3}, "holds no tensors by name"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    torch.save(change(dict(headless(VIT))), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"num_attention_heads": 6}, "it has 6 heads of attention, vit_tiny_patch16_224 has 3"),
        ({"hidden_act": "quick_gelu"}, "its activation is 'quick_gelu'"),
    ],
)
def test_what_the_tensors_do_not_show_is_compared(about, message, tmp_path):
    save_file(headless(VIT), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **about}))
    with pytest.raises(ValueError, match=message):
        TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3, "hidden_act": "gelu"}))
    TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * float("nan"), "holds values that are not finite"),
        (lambda x: (100 * x).to(torch.int8), "is of torch.int8: quantised and complex"),
        (lambda x: x.to(torch.complex64), "is of torch.complex64"),
    ],
    ids=["nan", "int8", "complex"],
)
def test_values_that_are_no_weights_are_refused(change, message, tmp_path):
    state = {k: change(v) if k == "norm.weight" else v for k, v in headless(VIT).items()}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "model.safetensors"])
def test_first_bytes_tell_the_kind_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for write in (save_file, torch.save):
        write(headless(VIT), tmp_path / name)
        backbone = TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=f"~/{name}")
        assert torch.equal(backbone.model.norm.weight, VIT.norm.weight)
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="no file of weights") as caught:
        TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint="~/noise.pth")
    assert "weights_only" not in str(caught.value)


def test_an_average_without_counters_is_taken_all_the_same(tmp_path):
    """Raw weights beside it have more names."""
    average = {k: v for k, v in headless(RESNET).items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": others(headless(RESNET)), "state_dict_ema": average}, tmp_path / "w.pth")
    backbone = TimmBackbone("resnet10t", checkpoint=str(tmp_path / "w.pth"))
    for name, value in average.items():
        assert torch.equal(backbone.model.state_dict()[name], value), name


def test_a_folder_of_open_clip(tmp_path):
    save_file(named("visual.trunk.", headless(VIT)), tmp_path / "open_clip_model.safetensors")
    backbone = TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path))
    assert torch.equal(backbone.model.norm.weight, VIT.norm.weight)


def test_only_weights_are_read(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"holds more than weights \(torch.nn.modules.linear.Linear\).*could run code"):
        TimmBackbone("resnet10t", checkpoint=str(tmp_path / "module.pth"))
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="not readable as safetensors"):
        TimmBackbone("resnet10t", checkpoint=str(tmp_path / "torn.safetensors"))
    with pytest.raises(FileNotFoundError, match="no such weights; nothing is ever downloaded"):
        TimmBackbone("resnet10t", checkpoint=str(tmp_path / "none.pth"))
    with not_read():
        TimmBackbone("resnet10t", checkpoint=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    "size", [{"image_size": 96, "patch_size": 8}, {"image_size": 48}, {"image_size": 64, "in_chans": 1}]
)
def test_other_sizes_and_bands_are_resampled_as_by_timm(size, tmp_path):
    save_file(headless(VIT), tmp_path / "weights.safetensors")
    backbone = TimmBackbone("vit_tiny_patch16_224", checkpoint=str(tmp_path / "weights.safetensors"), **size).eval()
    options = {"img_size": size["image_size"], **{k: v for k, v in size.items() if k != "image_size"}}
    overlay = {"state_dict": dict(headless(VIT)), "num_classes": 0}
    reference = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **options
    )
    images = torch.randn(2, size.get("in_chans", 3), size["image_size"], size["image_size"])
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).pooled, reference.eval()(images), atol=1e-5, rtol=1e-5)


def test_a_small_stem_takes_its_own_convolution_and_no_other(tmp_path):
    state = headless(timm.create_model("resnet18"))
    small = state | {"conv1.weight": torch.randn(64, 3, 3, 3)}
    for name, content in (("seven", state), ("three", small)):
        torch.save(content, tmp_path / f"{name}.pth")
    three = TimmBackbone("resnet18", small_stem=True, checkpoint=str(tmp_path / "three.pth"))
    assert torch.equal(three.model.conv1.weight, small["conv1.weight"])
    assert torch.equal(three.model.layer4[1].conv2.weight, small["layer4.1.conv2.weight"])
    account = load_weights(three, str(tmp_path / "seven.pth"))
    assert torch.equal(three.model.conv1.weight, small["conv1.weight"])
    assert account.dropped == {"conv1.weight": 1} and account.used == len(state) - 1


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_by_its_own_names(registers, tmp_path):
    """The position of the class token lies in a table with the others where there are registers; SwiGLU is not tried."""
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    reference = spread(timm.create_model(name, img_size=56, num_classes=0, depth=2))
    state = dict(reference.state_dict())
    if registers:
        first = torch.randn(1, 1, 384)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"], state["pos_embed"] = state["cls_token"] - first, torch.cat([first, state["pos_embed"]], 1)
    for masked in (True, False):
        torch.save(state | ({"mask_token": torch.zeros(1, 384)} if masked else {}), tmp_path / "w.pth")
        backbone = TimmBackbone(name, image_size=56, checkpoint=str(tmp_path / "w.pth"), options={"depth": 2}).eval()
        images = torch.randn(2, 3, 56, 56)
        with torch.no_grad():
            torch.testing.assert_close(backbone(images).pooled, reference(images), atol=1e-4, rtol=1e-4)


def test_open_clip_by_its_own_names(tmp_path):
    """open_clip's ViT in timm's: class token before the joint space, as open_clip computes it."""
    options = {"vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}}
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 1, "layers": 1}
    clip = spread(open_clip.CLIP(32, **options, text_cfg=text))
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    shape = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    backbone = TimmBackbone(
        "vit_base_patch16_clip_224", image_size=64, options=shape, checkpoint=str(tmp_path / "clip.pt")
    ).eval()
    clip.visual.proj = None
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES).pooled, clip.visual(IMAGES), atol=1e-5, rtol=1e-5)
    openai = clip.state_dict() | {
        name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save(openai, tmp_path / "openai.pt")
    with pytest.raises(ValueError, match="name its quickgelu model"):
        TimmBackbone("vit_base_patch16_clip_224", image_size=64, options=shape, checkpoint=str(tmp_path / "openai.pt"))


def transformers_names(state, kind):
    """The other way round from what is tested: a timm ViT by the names of `transformers`, q, k and v apart."""
    found = {}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            begin = f"encoder.layer.{block}."
            if rest.startswith("attn.qkv."):
                for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"{begin}attention.attention.{which}.{rest.removeprefix('attn.qkv.')}"] = part
                continue
            for a, b in (
                ("attn.proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
                ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
            ):  # fmt: skip
                rest = rest.replace(a, b)
            found[begin + rest] = value
        else:
            for a, b in (
                ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
                ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm"),
            ):  # fmt: skip
                name = f"{b}{name.removeprefix(a)}" if name.startswith(a) else name
            found[name] = value
    return named("vit.", found) if kind == "with a head" else found


@pytest.mark.parametrize("kind", ["with a head", "alone"])
def test_a_folder_of_hugging_face(kind, tmp_path):
    state = transformers_names(headless(VIT), kind)
    if kind == "with a head":
        state |= {"classifier.weight": torch.zeros(2, 2)}
    half = len(state) // 2
    parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
    for number, part in enumerate(parts):
        save_file({k: v.contiguous() for k, v in part.items()}, tmp_path / f"model-{number}.safetensors")
    where = {name: f"model-{number}.safetensors" for number, part in enumerate(parts) for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": 1e-12}))
    with pytest.raises(ValueError, match="its LayerNorms have eps 1e-12, those here 1e-06: give norm_eps 1e-12"):
        TimmBackbone("vit_tiny_patch16_224", image_size=64, checkpoint=str(tmp_path))
    how = {"name": "vit_tiny_patch16_224", "image_size": 64, "norm_eps": 1e-12, "checkpoint": str(tmp_path)}
    backbone = TimmBackbone(**how).eval()
    with not_read():  # as a run is resumed: the same function of the same state
        again = TimmBackbone(**how).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(IMAGES).pooled, backbone(IMAGES).pooled)
    reference = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    reference.load_state_dict(headless(VIT))
    for part in reference.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-12
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES).pooled, reference(IMAGES), atol=1e-5, rtol=1e-5)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(ValueError, match="names a file outside of its folder"):
        TimmBackbone("vit_tiny_patch16_224", checkpoint=str(tmp_path))


def test_dinov3_of_transformers_has_no_bias_of_keys():
    state = {"embeddings.cls_token": torch.zeros(1, 1, 4), "embeddings.register_tokens": torch.ones(1, 4, 4)}
    state["embeddings.patch_embeddings.weight"] = torch.zeros(4, 3, 2, 2)
    for number, which in enumerate("qkv"):
        state[f"layer.0.attention.{which}_proj.weight"] = torch.full((4, 4), float(number))
    state |= {f"layer.0.attention.{which}_proj.bias": torch.full((4,), 5.0) for which in "qv"}
    state |= {"layer.0.layer_scale1.lambda1": torch.zeros(4), "layer.0.mlp.up_proj.weight": torch.zeros(8, 4)}
    found = of_transformers(state)
    assert found["blocks.0.attn.qkv.weight"][::4, 0].tolist() == [0, 1, 2]
    assert found.keys() - {"blocks.0.attn.qkv.weight"} == {
        "cls_token", "storage_tokens", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias",
        "blocks.0.ls1.gamma", "blocks.0.mlp.fc1.weight",
    }  # fmt: skip


class OfficialPatches(nn.Module):
    """The patch network as Point-MAE has it: convolutions, the patch's maximum beside each point's features."""

    def __init__(self, dim):
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, dim, 1))

    def forward(self, patches):
        batch, groups, points, _ = patches.shape
        x = self.first_conv(patches.flatten(0, 1).mT)
        x = torch.cat([x.amax(2, keepdim=True).expand(-1, -1, points), x], 1)
        return self.second_conv(x).amax(2).view(batch, groups, -1)


def test_point_mae_by_its_own_names(tmp_path):
    official, ours = spread(OfficialPatches(24)), spread(PointTransformer(24, 2, 2, 8, 8))
    state = named("encoder.", official.state_dict())
    for name, value in ours.state_dict().items():
        top = name.split(".")[0]
        renamed = {"position": name.replace("position.", "pos_embed."), "blocks": f"blocks.{name}", "norm": name}
        if top in renamed:
            state[renamed[top]] = value
    content = named("module.MAE_encoder.", state) | {
        "module.MAE_decoder.x": torch.zeros(2),
        "module.mask_token": torch.zeros(2),
    }
    torch.save({"base_model": content, "epoch": 300, "best_metrics": {"acc": 0.0}}, tmp_path / "point.pth")
    loaded = PointTransformer(24, 2, 2, 8, 8, checkpoint=str(tmp_path / "point.pth")).eval()
    cloud = torch.rand(2, 64, 3)
    patches = loaded.group(cloud)
    with torch.no_grad():
        torch.testing.assert_close(loaded.tokens(patches.relative), official(patches.relative), atol=1e-5, rtol=1e-5)
        ours.tokens.load_state_dict(loaded.tokens.state_dict())
        torch.testing.assert_close(loaded(cloud).pooled, ours(cloud).pooled)


def test_any_backbone_takes_those_of_a_run(tmp_path):
    source = spread(ConvNet((4, 8)))
    torch.save({"state_dict": named("backbone.", source.state_dict()), "global_step": 1}, tmp_path / "step.ckpt")
    again = ConvNet((4, 8), checkpoint=str(tmp_path / "step.ckpt"))
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), source.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["MoCo", "MoCo-symmetric", "BYOL", "BECLR", "AMCL-MoCo", "HydraMoCo"])
def test_of_a_run_with_a_teacher_the_trained_network_is_taken(name, tmp_path):
    """As `--from`, evaluation and export take it; the teacher is told to be left."""
    method = make(name)
    spread(method.teacher)
    torch.save({"state_dict": method.state_dict(), CONFIG_KEY: {"model": {}}, "global_step": 1}, tmp_path / "a.ckpt")
    backbone = spread(copy.deepcopy(method.backbone))
    account = load_weights(backbone, str(tmp_path / "a.ckpt"))
    assert account.source == "state_dict.backbone" and "state_dict.teacher.*" in account.dropped
    for key, value in method.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value)


def test_of_dino_the_teacher_is_taken(tmp_path, caplog):
    """By a backbone, by another run, and by evaluation."""
    method, images = spread(make("DINO")).eval(), torch.rand(4, 3, 8, 8)
    content = {"state_dict": method.state_dict(), CONFIG_KEY: {"model": {}}, "global_step": 1}
    method.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    teacher = method.teacher.get_submodule("backbone")
    backbone = copy.deepcopy(make("DINO").backbone).eval()
    assert load_weights(backbone, str(tmp_path / "a.ckpt")).source == "state_dict.teacher.backbone"
    other = make("SimCLR").eval()
    start_from(other, tmp_path / "a.ckpt")
    assert "as its backbone teacher.backbone, and not the one that was trained" in caplog.text
    expected = teacher(images).pooled
    assert not torch.allclose(expected, method.backbone(images).pooled)
    for found in (backbone(images), other.backbone(images), method.embed({"image": [images]})[0]):
        torch.testing.assert_close(found.pooled, expected)
    again = make("DINO").eval()
    start_from(again, tmp_path / "a.ckpt")  # which has a teacher of its own
    for key in ("backbone", "teacher.backbone"):
        found, wanted = again.get_submodule(key), method.get_submodule(key)
        torch.testing.assert_close(found(images).pooled, wanted(images).pooled)


def test_vits_take_pictures_of_any_size_that_the_patch_divides():
    backbone = TimmBackbone("vit_tiny_patch16_224", image_size=64).eval()
    for height, width in ((64, 64), (96, 96), (32, 48)):
        found = backbone(torch.randn(1, 3, height, width))
        assert found.tokens.shape[1] == 1 + height * width // 256
    with torch.no_grad():
        fixed = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
        fixed.load_state_dict(backbone.model.state_dict())
        torch.testing.assert_close(backbone(IMAGES).pooled, fixed(IMAGES), atol=1e-5, rtol=1e-5)
    for name in ("coat_tiny", "crossvit_9_240"):
        with pytest.raises(ValueError, match="gives several feature maps at once"):
            TimmBackbone(name)(torch.randn(1, 3, 224, 224))
    with pytest.raises(ValueError, match="timm has no model 'resnet05'; did you mean resnet50"):
        TimmBackbone("resnet05")
    with pytest.raises(ValueError, match="timm's resnet18 does not take all of depth"):
        TimmBackbone("resnet18", options={"depth": 3})
