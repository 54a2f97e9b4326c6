"""Files of others: checkpoints, exported folders, open_clip folders, run folders and lists run no code.

The attacks succeed by leaving a file in a temporary folder. `intruder` is a module that does so when it is imported.
"""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from manyviews import foreign
from manyviews.backbones import ConvNet, Exported, OpenClipImage, OpenClipText, TimmBackbone
from manyviews.cli import main
from manyviews.cli.evaluate import foreign_config, instantiate
from manyviews.cli.export import export_backbone
from manyviews.cli.fit import check_files
from manyviews.evaluation import FewShotSVM, ZeroShot, composition
from manyviews.evaluation.features import Features
from manyviews.runs.folder import CONFIG_KEY
from manyviews.runs.storage import sidecar
from tests.process import run
from tests.recipe import recipe, write
from viewshards import Captions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A real run of two steps, with a class of ours in every section."""
    folder = tmp_path_factory.mktemp("foreign")
    config = recipe(
        digits, trainer__max_steps=2, trainer__callbacks=[{"class_path": "manyviews.evaluation.Evaluation"}]
    )
    net = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8]}}
    config["model"]["init_args"]["backbone"] = net
    config["model"]["init_args"]["schedule"]["warmup_steps"] = 0
    config["data"]["init_args"]["text"] = None
    done = run("fit", "--config", write(folder / "recipe.yaml", config), "--run", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that is there as soon as anybody's code has run; `intruder` makes it when it is imported."""
    path = tmp_path / "owned"
    (tmp_path / "intruder.py").write_text(
        f"import pathlib, torch\npathlib.Path({str(path)!r}).touch()\n"
        "class Net(torch.nn.Module):\n    width = 4\n    def forward(self, x): return x\n"
        "def make(*_, **__): return Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("intruder", None)


@pytest.fixture(scope="module")
def content(trained):
    return content_of(trained)


def content_of(run_folder):
    (newest,) = (run_folder / "checkpoints").glob("step-*.ckpt")
    return torch.load(newest, weights_only=True)


def attacks(marker):
    command = ["touch", str(marker)]
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": command}}
    return {
        "a program": popen,
        "a class of a module": {"class_path": "intruder.Net"},
        "a path alone": "intruder.Net",
        "a function": {"class_path": "intruder.make"},
        "a function's path": "os.system",
        "a program in a text": json.dumps(popen),
        "a program in escaped YAML": '{"class\\u005fpath": "intruder.Net"}',
        "a block of YAML": f"class_path: subprocess.Popen\ninit_args:\n  args: {command}",
        "a list of them": [popen, {"class_path": "intruder.Net"}],
        "more than arguments": {
            "class_path": "manyviews.backbones.ConvNet",
            "init_args": {},
            "dict_kwargs": {"x": popen},
        },
        "through one of our modules": {
            "class_path": "manyviews.cli.slurm.subprocess.Popen",
            "init_args": {"args": command},
        },
        "a private name": {"class_path": "manyviews.methods.gradcache._x"},
        "a class of torch that is no optimiser": {"class_path": "torch.optim.optimizer.defaultdict"},
    }


def places(config, path=()):
    """All places of a configuration of plain types."""
    yield path
    children = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def put(config, path, value):
    changed = copy.deepcopy(config)
    if not path:
        return value
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def built(content, checkpoint):
    instantiate(foreign_config(content, checkpoint), str(checkpoint))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_class_path_anywhere_in_a_configuration_imports_anything_else(trained, content, marker, data):
    """An attack in place of any value of a real checkpoint's configuration, or beside it: refused, nothing imported."""
    content = dict(content)
    before = set(sys.modules)
    place = data.draw(st.sampled_from([p for p in places(content[CONFIG_KEY]) if p and p[0] in ("model", "data")]))
    name = data.draw(st.sampled_from(sorted(attacks(marker))))
    value = attacks(marker)[name]
    if data.draw(st.booleans()) and isinstance(value, dict):  # inside something plain
        value = {"options": value}
    content[CONFIG_KEY] = put(content[CONFIG_KEY], place, value)
    text_is_right = isinstance(value, str)  # where a text is wanted, such as a label's name, it is one
    try:
        built(content, trained / "checkpoints/x.ckpt")
    except ValueError as error:
        assert "\n" not in str(error).strip() or text_is_right
    else:
        assert text_is_right
    assert not marker.exists() and "intruder" not in sys.modules
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in ("antigravity", "intruder")}


@pytest.mark.parametrize("section", ["model", "data", "trainer", "monitor", "checkpoints", "optimizer"])
def test_a_run_folders_own_config_file_is_checked_by_fit(trained, marker, tmp_path, section):
    """`fit --config THEIRS/config.yaml`, an attack in every section; the same file elsewhere is the user's own."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "run.json").write_text("{}")
    config = yaml.safe_load((trained / "config.yaml").read_text())
    check_files(["--config", str(write(theirs / "config.yaml", config))])
    below = [p for p in places(config) if p and p[0] == section]
    structured = [value for value in attacks(marker).values() if not isinstance(value, str)]
    for number, place in enumerate(below):
        for value in (structured[number % len(structured)], structured[(5 * number + 3) % len(structured)]):
            write(theirs / "config.yaml", put(config, place, value))
            argv = ["--config", str(theirs / "config.yaml")]
            with pytest.raises(ValueError, match=str(theirs)):
                check_files(argv if number % 2 else ["=".join(argv)])
                pytest.fail(f"{value} at {place}")
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.system"}}
    write(theirs / "config.yaml", put(config, ("trainer", "callbacks"), [callback]))
    with pytest.raises(ValueError, match="a function cannot come from a file"):
        check_files(["--config", str(theirs / "config.yaml")])
    nested = write(tmp_path / "mine.yaml", {"model": str(write(theirs / "model.yaml", {"class_path": "intruder.Net"}))})
    with pytest.raises(ValueError, match="only --config takes a file of it"):
        check_files(["--config", str(nested)])
    with pytest.raises(ValueError, match="only --config takes a file of it"):
        check_files(["--model", str(theirs / "model.yaml")])
    mine = write(tmp_path / "own.yaml", put(config, ("model",), {"class_path": "intruder.Net"}))
    check_files(["--config", str(mine)])  # the user's own word
    assert not marker.exists()


def test_every_command_on_a_foreign_checkpoint_refuses_in_one_line(trained, marker, tmp_path, capsys):
    content = content_of(trained)
    folder = tmp_path / "theirs/checkpoints"
    folder.mkdir(parents=True)
    content[CONFIG_KEY]["model"]["init_args"]["backbone"] = attacks(marker)["a program"]
    torch.save(content, folder / "step-00000002.ckpt")
    commands = [
        ["knn"], ["probe"], ["report"], ["embed", "--out", str(tmp_path / "x.npz")], ["svm"], ["retrieve"], ["cost"],
        ["export", "--out", str(tmp_path / "out")], ["zeroshot"], ["search", "--text", "x"], ["accuracy"],
    ]  # fmt: skip
    for command in commands:
        for where in (["--run", str(folder.parent)], ["--checkpoint", str(folder / "step-00000002.ckpt")]):
            assert main([*command, *where]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and "model.init_args.backbone" in said, said
            assert "--trust subprocess.Popen" in said
    assert not marker.exists()


def test_a_name_that_the_user_trusts_is_built(trained, marker, tmp_path):
    content = content_of(trained)
    content[CONFIG_KEY]["model"]["init_args"]["backbone"] = {"class_path": "intruder.Net"}
    for name in ("intruder", "intruder.Net"):
        with foreign.trusting([name]):
            built(content, tmp_path / "x.ckpt")
    assert marker.exists()  # and so it ran
    with pytest.raises(foreign.Untrusted, match=r"add --trust intruder\.Net, or --trust intruder"):
        built(content, tmp_path / "x.ckpt")
    with foreign.trusting(["intrud", "intruder.Ne", "Net"]), pytest.raises(foreign.Untrusted):
        built(content, tmp_path / "x.ckpt")


def test_own_classes_in_a_run_are_evaluated_with_trust(digits, tmp_path):
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__max_steps=2, model__schedule={"warmup_steps": 0}))
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 0
    refused = run("knn", "--run", tmp_path / "run")
    assert refused.returncode == 2 and "--trust tests.recipe.Backbone" in refused.stderr, refused.stderr
    assert run("knn", "--run", tmp_path / "run", "--trust", "tests.recipe").returncode == 0
    again = run("fit", "--config", tmp_path / "run/config.yaml", "--run", tmp_path / "run")
    assert again.returncode == 2 and "--trust tests.recipe.Backbone" in again.stderr
    trusted = run("fit", "--config", tmp_path / "run/config.yaml", "--run", tmp_path / "run", "--trust", "tests.recipe")
    assert trusted.returncode == 0 and "finished already" in trusted.stderr, trusted.stderr


def test_unknown_keys_and_types_are_named(trained, tmp_path):
    content = content_of(trained)
    wrong = {
        ("model", "init_args", "temprature"): (1, "SimCLR has no argument 'temprature'; did you mean temperature"),
        ("model", "init_args", "temperature"): ([1], "temperature: expected a number, got [1]"),
        ("model", "init_args", "grad_cache"): ("x", "grad_cache: expected a whole number, got 'x'"),
        ("model", "more"): (1, "expected class_path and init_args of a Method"),
        ("model", "class_path"): ("manyviews.backbones.ConvNet", "expected a Method, got manyviews.backbones.ConvNet"),
        ("data", "init_args", "views"): (None, "views: expected"),
        ("data",): ([], "data: expected class_path and init_args"),
        ("seed_everything",): ("x", "seed_everything: expected"),
    }
    for place, (value, said) in wrong.items():
        changed = {**content, CONFIG_KEY: put(content[CONFIG_KEY], place, value)}
        with pytest.raises(ValueError) as caught:
            built(changed, tmp_path / "x.ckpt")
        assert said in str(caught.value) and "x.ckpt" in str(caught.value), str(caught.value)
    for broken in ({}, {CONFIG_KEY: 3}, {**content, "state_dict": []}, {**content, "global_step": "x"}):
        with pytest.raises(ValueError, match="not written by `manyviews fit`"):
            built(broken, tmp_path / "x.ckpt")
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply|expected"):
        built(
            {**content, CONFIG_KEY: put(content[CONFIG_KEY], ("data", "init_args", "fields"), deep)},
            tmp_path / "x.ckpt",
        )


def test_an_exported_folder_is_checked(marker, tmp_path):
    out = tmp_path / "out"
    net = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8]}}
    list(export_backbone(ConvNet([4, 8]), {"init_args": {"backbone": net}}, torch.zeros(1, 3, 8, 8), out))
    whole = json.loads((out / "config.json").read_text())
    for name, value in attacks(marker).items():
        wrongs = [
            value,
            {**whole, "init_args": {"widths": value}},
            {"class_path": "manyviews.backbones.Cached", "init_args": {"backbone": value}},
            {"class_path": "manyviews.backbones.OpenClipImage", "init_args": {"name": "x", "options": {"a": value}}},
        ]
        for wrong in wrongs:
            (out / "config.json").write_text(json.dumps(wrong))
            with pytest.raises((ValueError, FileNotFoundError)):
                Exported(str(out))
                pytest.fail(name)
    for text in ("", "[]", "null", '{"class_path": 3}', "[" * 100_000, '{"other": 1}'):
        (out / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            Exported(str(out))
    (out / "config.json").write_text(json.dumps(whole))
    (out / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=str(out)):
        Exported(str(out))
    assert not marker.exists()


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickled_weights_are_refused_in_one_line(trained, marker, tmp_path, capsys):
    evil = tmp_path / "weights.pth"
    for content in ({"state_dict": Attack(marker)}, Attack(marker)):
        torch.save(content, evil)
        with pytest.raises(ValueError, match="could run code"):
            TimmBackbone("resnet18", checkpoint=str(evil))
        with pytest.raises(ValueError, match="could run code"):
            OpenClipImage("ViT-B-32", checkpoint=str(evil), options={"width": 64, "layers": 1, "head_width": 32})
        folder = tmp_path / "theirs/checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / "step-00000001.ckpt")
        assert main(["knn", "--checkpoint", str(folder / "step-00000001.ckpt")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for raw in (pickle.dumps(Attack(marker)), b"", b"PK\x03\x04", b"\x80\x04."):
        (folder / "step-00000001.ckpt").write_bytes(raw)
        assert main(["knn", "--checkpoint", str(folder / "step-00000001.ckpt")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for content in ([1, 2], {"a": 1}, torch.zeros(3)):
        torch.save(content, folder / "step-00000001.ckpt")
        assert main(["knn", "--checkpoint", str(folder / "step-00000001.ckpt")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("manyviews fit" in said or "not the parts of a checkpoint" in said)
    assert not sidecar(folder / "step-00000001.ckpt").exists() and not marker.exists()


def test_an_open_clip_folder_is_checked(tmp_path, marker, monkeypatch):
    import socket

    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: (_ for _ in ()).throw(AssertionError("a socket was opened"))
    )
    tower = {"width": 32, "layers": 1, "patch_size": 8, "image_size": 16, "head_width": 32}
    model = {
        "embed_dim": 16,
        "vision_cfg": tower,
        "text_cfg": {"width": 32, "heads": 1, "layers": 1, "context_length": 8},
    }
    file = tmp_path / "open_clip_config.json"
    wrongs = {
        "timm has no model": {"vision_cfg": {**tower, "timm_model_name": "hf-hub:evil/model"}},
        "timm has no model ": {"vision_cfg": {**tower, "timm_model_name": f"local-dir:{tmp_path}"}},
        "Hugging Face": {"text_cfg": {"hf_model_name": "evil/model"}},
        "unknown key": {"more": 1},
        "has no argument": {"vision_cfg": {**tower, "hook": "os.system"}},
        "expected": {"vision_cfg": {**tower, "act_kwargs": {"x": attacks(marker)["a program"]}}},
        "expected ": {"vision_cfg": [1]},
        "no model_cfg": {"vision_cfg": None, "text_cfg": 3},
    }
    for said, change in wrongs.items():
        file.write_text(json.dumps({"model_cfg": {**model, **change}}))
        for made in (OpenClipImage, OpenClipText):
            with pytest.raises(ValueError) as caught:
                made(f"local-dir:{tmp_path}")
            assert said.strip() in str(caught.value) or "expected" in str(caught.value)
    for name in ("hf-hub:evil/model", "http://evil/x", "local-dir:/nowhere"):
        with pytest.raises((ValueError, FileNotFoundError)):
            OpenClipImage(name)
        with pytest.raises(ValueError):
            Captions(tokenizer=name).tokens(["x"])
    for text in (
        {"hf_tokenizer_name": "evil/model", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
    ):
        file.write_text(json.dumps({"model_cfg": {**model, "text_cfg": text}}))
        with pytest.raises(ValueError, match="not admitted"):
            Captions(tokenizer=f"local-dir:{tmp_path}").tokens(["x"])
    with pytest.raises(ValueError, match="nothing is downloaded"):
        Captions(tokenizer="ViT-B-16-SigLIP").tokens(["x"])
    save_file({"x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    file.write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(ValueError, match="tower is not that of"):
        OpenClipImage(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"templates": 3}', '{"templates": [1]}', '{"classnames": ["x"]}', '{"template": []}']
)
def test_a_bank_is_checked(tmp_path, text):
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(ValueError, match="bank.json"):
        ZeroShot(str(tmp_path / "bank.json")).read(["a"])


def test_a_banks_templates_are_texts_and_no_programs(tmp_path):
    secret = "{c.__class__.__mro__} {0} {x} a {c}: thing"
    (tmp_path / "bank.json").write_text(json.dumps({"templates": [secret]}))
    names, templates = ZeroShot(str(tmp_path / "bank.json")).read(["cat"])
    seen = []

    class Data:
        def tokens(self, texts):
            seen.extend(texts)
            return torch.zeros(len(texts), 2, dtype=torch.int64)

    class Module(torch.nn.Module):
        device = "cpu"

        def embed_text(self, ids):
            from manyviews.backbones import Encoding

            return Encoding(torch.ones(len(ids), 2))

    ZeroShot._classifier(Module(), Data(), names, templates)
    assert seen == ["{c.__class__.__mro__} {0} {x} a cat: thing"]


def test_every_public_class_declares_types_that_can_be_read():
    """Else its fields would take plain values only, and its own runs could not be evaluated."""
    import typing

    from manyviews import backbones, evaluation, heads, methods, objectives

    for package in (methods, objectives, backbones, evaluation, heads):
        for name in dir(package):
            made = getattr(package, name)
            if isinstance(made, type) and made.__module__.startswith("manyviews"):
                typing.get_type_hints(made.__init__)


def test_nothing_is_imported_for_a_plain_command_line():
    done = subprocess.run([sys.executable, "-c", "import manyviews.foreign, sys; assert 'torch' not in sys.modules"])
    assert done.returncode == 0


def test_folds_are_of_these_shards_and_of_numbers(tmp_path):
    shards = {"train": {"samples": 40}, "val": {"samples": 20}}
    make = torch.Generator().manual_seed(0)

    def features(split, count):
        label = torch.arange(count) % 2
        views = torch.randn(1, count, 4, generator=make) + label[None, :, None]
        return Features(views, label, torch.arange(count), torch.full((count,), -1), shards=shards[split])

    train, val = features("train", 40), features("val", 20)
    found = FewShotSVM(2, 3, repeats=2).evaluate(train, val)
    file = tmp_path / "folds.json"
    file.write_text(json.dumps({"details": found.details, "shards": shards}))
    again = FewShotSVM(2, 3, folds=str(file)).evaluate(train, val)
    assert again.scores == found.scores
    file.write_text(json.dumps({"details": found.details, "shards": {**shards, "val": {"samples": 21}}}))
    with pytest.raises(ValueError, match="drawn on other shards .*val of 21 samples there, .*val of 20 samples here"):
        FewShotSVM(2, 3, folds=str(file)).evaluate(train, val)
    for wrong in (
        "",
        "[]",
        "{}",
        '{"folds": 3}',
        '{"folds": [{"classes": ["x"]}]}',
        '{"folds": [{"train": [1]}]}',
        '{"details": 3}',
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="folds.json"):
            FewShotSVM(2, 3, folds=str(file)).evaluate(train, val)


def test_cases_of_a_benchmark_name_images_below_their_folder_and_texts():
    for name in ("../x.png", "/etc/passwd", "a/../../x.png"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            composition._below("images", name)
    for case in ({"captions": 3}, {"captions": [1]}, {"false_caption": "a", "true_caption": 3, "relation_name": "x"}):
        with pytest.raises(ValueError):
            composition._read(case)
    picture = np.zeros((10, 20, 3), np.uint8)
    assert composition._crop(picture, {"bbox_x": 5, "bbox_y": 2, "bbox_w": 3, "bbox_h": 4}).shape == (4, 3, 3)
    for box in ((-1, 0, 2, 2), (0, 0, 0, 2), (50, 0, 2, 2), (0, 0, 10**9, -1)):
        with pytest.raises(ValueError, match="is not in the image"):
            composition._crop(picture, dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True)))
