"""Files of others: checkpoints, exported folders, open_clip folders, run folders and lists run no code.

The attacks succeed by leaving a file in a temporary folder. `intruder` is a module that does so when it is imported.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict

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
from manyviews.cli.fit import check_file
from manyviews.evaluation import FewShotSVM, ZeroShot, composition
from manyviews.evaluation.features import Features
from manyviews.foreign import CONFIG_KEY
from manyviews.runs.storage import newest_whole, sidecar
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
    config["model"]["init_args"]["training"]["schedule"]["warmup_steps"] = 0
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


@pytest.mark.parametrize("section", ["model", "data", "trainer", "monitor", "checkpoints", "finite"])
def test_a_run_folders_own_config_file_is_checked_by_fit(trained, marker, tmp_path, section):
    """`fit --config THEIRS/config.yaml`, an attack in every section; the same file elsewhere is the user's own."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "run.json").write_text("{}")
    config = yaml.safe_load((trained / "config.yaml").read_text()) | {"run": str(theirs)}
    check_file(write(theirs / "config.yaml", config))
    below = [p for p in places(config) if p and p[0] == section]
    structured = [value for value in attacks(marker).values() if not isinstance(value, str)]
    for number, place in enumerate(below):
        for value in (structured[number % len(structured)], structured[(5 * number + 3) % len(structured)]):
            write(theirs / "config.yaml", put(config, place, value))
            with pytest.raises(ValueError, match=str(theirs)):
                check_file(theirs / "config.yaml")
                pytest.fail(f"{value} at {place}")
    mine = write(tmp_path / "own.yaml", put(config, ("model",), {"class_path": "intruder.Net"}))
    check_file(mine)  # the user's own word
    assert not marker.exists()


def callback(name, **arguments):
    return {"trainer.callbacks": [{"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}]}


def scheduler(name, **arguments):
    return {"lr_scheduler": {"class_path": f"torch.optim.lr_scheduler.{name}", "init_args": arguments}}


IN_A_CONFIG = {
    "a function for a callback": callback("LambdaCallback", on_fit_start="os.system"),
    "a function of averages": callback("EMAWeightAveraging", multi_avg_fn="intruder.make"),
    "a function for pruning": callback("ModelPruning", pruning_fn="_intruder.make"),
    "a function of rates": scheduler("LambdaLR", lr_lambda="intruder.make"),
    "a class as a strategy": {"trainer.strategy": "intruder.Net"},
    "a private class as a profiler": {"trainer.profiler": "_intruder.Net"},
    "a class in YAML as a strategy": {"trainer.strategy": "{class_path: intruder.Net}"},
    "a class in a block of YAML": {"trainer.accelerator": "class_path: intruder.Net\n"},
    "a file as a profiler": {"trainer.profiler": "./s.yaml"},
    "an address as a profiler": {"trainer.profiler": "file:///tmp/s.yaml"},
    "a class for a strategy": {
        "trainer.strategy": {
            "class_path": "lightning.pytorch.strategies.FSDPStrategy",
            "init_args": {"cluster_environment": "intruder.Net", "auto_wrap_policy": "intruder.make"},
        }
    },
    "a dotted key": {"model.init_args.backbone": "intruder.Net"},
    "a key that adds": {"trainer": {"callbacks+": "intruder.Net"}},
    "another file": {"config": "s.yaml"},
    "a text that an error reads": {"trainer.max_steps": "module 'intruder' has no attribute 'x'"},
    "a class that an error reads": {"trainer.max_steps": "Problem with given class_path 'intruder.Net' Option 'x' is not accepted"},
    "another run's folder": {"run": "/tmp/user"},
    "a logger that writes elsewhere": {
        "trainer.logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "/tmp/user"}}
    },
    "checkpoints elsewhere": callback("ModelCheckpoint", dirpath="/tmp/user"),
    "a cache elsewhere": {"data.init_args.cache_dir": "/tmp/user"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(IN_A_CONFIG))
def test_what_else_a_run_folders_config_could_say(trained, marker, tmp_path, name, capsys):
    """Through `manyviews fit` itself, by every spelling of the file's name."""
    theirs = tmp_path / "theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    (theirs / "checkpoints/best.ckpt").write_bytes(b"")
    config = yaml.safe_load((trained / "config.yaml").read_text()) | {"run": str(theirs)}
    (theirs / "s.yaml").write_text("class_path: intruder.Net\n")
    for key, value in IN_A_CONFIG[name].items():
        path = key.split(".")
        config = config | {key: value} if path[0] == "model" else put(config, path, value)
    spellings = ["config.yaml", "config", "config.YAML", "config.txt"]
    file = write(theirs / spellings[len(name) % 4], config)
    (tmp_path / "link.yaml").symlink_to(file)
    given = (["--config", str(file)], [f"--config={file}"], [f"-c{file}"], ["-c", str(tmp_path / "link.yaml")])
    assert main(["fit", *given[len(name) // 4 % 4]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert not marker.exists() and "intruder" not in sys.modules


def test_no_value_is_the_name_of_a_file(trained, marker, tmp_path, capsys, monkeypatch):
    """Only `--config` reads files: not values, nor addresses, nor a file that a file names."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "run.json").write_text("{}")
    (theirs / "m.txt").write_text("class_path: intruder.Net\n")
    (theirs / "config.yaml").write_text("model: {class_path: intruder.Net}\n")
    (theirs / "t.yaml").write_text("callbacks: intruder.Net\n")
    base = ["fit", "--config", str(write(tmp_path / "own.yaml", recipe("x"))), "--run", str(tmp_path / "run")]
    nested = write(tmp_path / "nested.yaml", {"model": {"init_args": {"backbone": "theirs/m.txt"}}})
    home = tmp_path / "home"
    home.mkdir()
    (home / "x").symlink_to(theirs)
    monkeypatch.setenv("HOME", str(home))
    for more in (
        ["--model.init_args.backbone", str(theirs / "m.txt")],
        ["--model", str(theirs / "m.txt")],
        ["--trainer", str(theirs / "t.yaml")],
        [f"--monitor={theirs / 't.yaml'}"],
        ["--config", str(write(tmp_path / "three.yaml", {"trainer": str(theirs / "t.yaml")}))],
        ["--config", str(nested)],
        ["--config", f"file://{theirs}/config.yaml"],
        ["--config", "~/x/config.yaml"],
        ["--config", str(write(tmp_path / "two.yaml", {"config": str(theirs / "config.yaml")}))],
    ):
        assert main([*base, *more]) == 2, more
        assert capsys.readouterr().err.count("\n") == 1
    assert not marker.exists() and "intruder" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"label": "module 'intruder' has no attribute 'x'", "root": None},
        {"label": "Problem with given class_path 'intruder.Net' Option 'x' is not accepted", "root": 3},
        {
            "views": {
                "class_path": "viewshards.views.SimCLR",
                "init_args": {"size": "module 'nope.nope' has no attribute 'x'"},
            }
        },
    ],
)
def test_an_error_message_imports_nothing(trained, content, marker, tmp_path, change, capsys):
    changed = copy.deepcopy(content)
    changed[CONFIG_KEY]["data"]["init_args"] |= change
    if changed[CONFIG_KEY]["data"]["init_args"]["root"] is None:
        del changed[CONFIG_KEY]["data"]["init_args"]["root"]
    torch.save(changed, tmp_path / "x.ckpt")
    assert main(["knn", "--checkpoint", str(tmp_path / "x.ckpt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not marker.exists() and "intruder" not in sys.modules


def test_configurations_that_are_too_much(trained, content, tmp_path, capsys):
    """Lists that hold each other, dicts with methods of their own, sizes that no machine has, no tracebacks."""
    shared = [1]
    for _ in range(20):
        shared = [shared] * 10
    odd = OrderedDict(class_path="manyviews.backbones.ConvNet")
    odd.items = Counter
    changes = {
        ("model", "init_args", "temperature"): shared,
        ("model", "init_args", "backbone"): odd,
        ("data",): "viewshards.ShardDataModule",
        ("data", "init_args"): [],
        ("model", "init_args", "backbone", "init_args", "widths"): [4, 10**6, 10**6],
        ("data", "init_args", "text"): {"class_path": "viewshards.Captions", "init_args": {"views": 10**12}},
    }
    for place, value in changes.items():
        torch.save({**content, CONFIG_KEY: put(content[CONFIG_KEY], place, value)}, tmp_path / "x.ckpt")
        code = main(["knn", "--checkpoint", str(tmp_path / "x.ckpt"), "--json", str(tmp_path / "x.json")])
        assert (code, capsys.readouterr().err.count("\n")) in ((2, 1), (0, 0)), place
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(12)
    )
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(bomb)
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 2
    for text in (bomb, "a: [", "[" * 50_000, "recipe: 3\ngrid: {}", "recipe: x\ngrid: [1]"):
        (tmp_path / "grid.yaml").write_text(text)
        assert main(["grid", str(tmp_path / "grid.yaml")]) == 2


def test_every_model_of_open_clip_is_of_the_schema():
    import open_clip

    from manyviews.backbones.openclip import _check_tower

    for name in open_clip.list_models():
        for part in ("vision_cfg", "text_cfg"):
            config = dict(open_clip.get_model_config(name)[part])
            config.pop("hf_model_name", None)
            _check_tower(config, part, name)


def test_a_tower_is_not_looked_up_by_its_options(content, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: (_ for _ in ()).throw(AssertionError("a name was looked up")))
    for options in ({"timm_model_name": "hf-hub:evil/model"}, {"timm_model_name": "local-dir:/x"}, {"hook": "x"}):
        with pytest.raises(ValueError):
            OpenClipImage("ViT-B-32", options=options)
    with pytest.raises(ValueError, match="Hugging Face"):
        OpenClipText("ViT-B-32", options={"hf_model_name": "evil/model"})


def test_what_is_no_file_in_a_run_is_not_waited_for(content, tmp_path):
    torch.save(content, tmp_path / "step-00000001.ckpt")
    os.mkfifo(tmp_path / "step-00000002.ckpt")
    (tmp_path / "step-00000003.ckpt").symlink_to("/dev/zero")
    torch.save(content, tmp_path / "step-00000004.ckpt")
    sidecar(tmp_path / "step-00000004.ckpt").symlink_to("/dev/zero")
    assert newest_whole(tmp_path).name == "step-00000001.ckpt"


def test_multistage_trusts_the_users_own_file_alone(marker, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "run.json").write_text("{}")
    config = recipe("x")
    config["model"]["init_args"]["backbone"] = {"class_path": "intruder.Net"}
    file = write(theirs / "config.yaml", config)
    with pytest.raises(SystemExit):
        main(["multistage", "--config", str(file), "--run", str(tmp_path / "run")])
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
    """Continued by what it wrote of itself, though its optimiser is the method's own."""
    config = write(
        tmp_path / "recipe.yaml",
        recipe(digits, trainer__max_steps=2, model__training={"schedule": {"warmup_steps": 0}}),
    )
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
        ("model", "init_args", "training", "grad_cache"): ("x", "grad_cache: expected a whole number, got 'x'"),
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
    with pytest.raises(ValueError, match="deeper than 100 levels"):
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
    _, prompts = ZeroShot(str(tmp_path / "bank.json")).read(["cat"])
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

    ZeroShot._classifier(Module(), Data(), prompts)
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
    assert composition._crop(picture, {"bbox_x": -1, "bbox_y": 0, "bbox_w": 3, "bbox_h": 20}).shape == (20, 3, 3)
    for box in ((0, 0, 0, 2), (50, 0, 2, 2), (0, 0, 10**9, 1), (0, 0, 10**9, -1)):
        with pytest.raises(ValueError, match="does not fit the image"):
            composition._crop(picture, dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True)))
