"""Every recipe parses, builds, and names only what exists."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from manyviews import methods
from manyviews.backbones import ConvNet, PointTransformer
from manyviews.cli import main, study
from manyviews.cli.evaluate import instantiate
from manyviews.cli.export import export_backbone, export_open_clip
from manyviews.cli.fit import FitCLI, fit
from manyviews.methods import Method
from tests.conftest import QUIET
from viewshards.datamodule import ShardDataModule
from viewshards.encoding import Encoding
from viewshards.pack import pack
from viewshards.sources import Source, open_source

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [
    *sorted(p for p in EXPERIMENTS.glob("*/*.yaml") if p.parent.name not in ("claims", "leaderboard", "sweeps")),
    EXPERIMENTS / "quickstart.yaml",
]


SMALL = [
    p
    for p in RECIPES
    if p.stem not in ("cifar", "imagenet", "imagenet-vit", "shapenet", "photos", "captions", "quickstart")
]
"""These are trained below; of the others it is known that they build."""


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


class Resolved(BaseException):
    """Raised where `fit` would build what it has read."""


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe(path, runs, tmp_path, monkeypatch):
    """What a run would write down of itself builds the same again: evaluation, export and resuming have no other."""

    def stop(cli):
        raise Resolved(cli.resolved)

    recipe = tmp_path / path.name
    recipe.write_text(yaml.safe_dump(placed(path, runs)))
    monkeypatch.setattr(FitCLI, "instantiate_classes", stop)
    with pytest.raises(Resolved) as caught:
        fit(["--config", str(recipe), "--run", str(tmp_path / "run")])
    (config,) = caught.value.args
    method, data = instantiate(json.loads(json.dumps(config)))
    assert isinstance(method, Method) and isinstance(data, ShardDataModule)
    assert data.global_batch_size % data.lanes == 0
    assert {"max_steps", "max_epochs"} & yaml.safe_load(path.read_text())["trainer"].keys()
    optimizer = config["model"]["init_args"]["training"]["optimizer"]
    assert optimizer["class_path"] and "lr" in optimizer["init_args"]


NO_OPTIMIZER = [p for p in RECIPES if "optimizer" not in p.read_text()]
"""The method's default is a part of these runs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p if p in NO_OPTIMIZER else pytest.param(p, marks=pytest.mark.long) for p in RECIPES], ids=name_of
)
def test_recipe_goes_all_the_way(path, runs, tmp_path, capsys):
    """Two steps, a resume, an evaluation, an export: by the commands, from what the run wrote down."""
    config = small(placed(path, runs), path, runs)
    config["trainer"] |= {
        "max_steps": 2,
        "callbacks": [
            {"class_path": "tests.recipe.StopInside", "init_args": {"step": 1, "once": str(tmp_path / "once")}}
        ],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config))
    run = ["--run", str(tmp_path / "run")]
    for step in (1, 2):
        assert fit(["--config", str(recipe), *run]) == 0, capsys.readouterr().err
        assert (tmp_path / f"run/checkpoints/step-{step:08d}.ckpt").exists()
    text = issubclass(getattr(methods, config["model"]["class_path"].rpartition(".")[2]), methods.ImageText)
    assert main(["retrieve" if text else "knn", *run]) == 0, capsys.readouterr().err
    assert main(["export", *run, "--out", str(tmp_path / "exported")]) == 0, capsys.readouterr().err


def small(config, path, runs):
    """The recipe on shards that are here, with a small batch and small towers."""
    init, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone = init["backbone"]
    points = backbone["class_path"].endswith("PointTransformer")
    if not Path(data["root"]).is_relative_to(runs / "data") or not Path(data["root"]).exists():
        data["root"] = str(runs / "data" / ("solids" if points else "shapes" if "text" in data else "emoji"))
    data |= {"workers": 0, "global_batch_size": 16 if "orma" in str(path) else 80}
    if points:
        backbone["init_args"] = {"dim": 24, "depth": 1, "heads": 2, "groups": 8, "group_size": 8}
        data["views"]["init_args"]["points"] = 64
    elif backbone["class_path"].endswith(("ConvNet", "TimmBackbone")):
        backbone["class_path"] = "manyviews.backbones.ConvNet"
        backbone["init_args"] = {"widths": [4, 8, 256 if "repulsor" in path.stem else 16]}
    if "text_backbone" in init and init["text_backbone"].get("init_args", {}).get("name"):
        tower = init["text_backbone"]["init_args"]
        tower["options"] = {**tower.get("options", {}), "width": 16, "heads": 1, "layers": 1}
    config["trainer"] |= {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
    config["trainer"].pop("max_epochs", None), config["trainer"].pop("num_nodes", None)
    return config | {"checkpoints": {"every_n_steps": 1}}


def test_each_method_has_its_three_recipes():
    """CIFAR and emoji always; ImageNet where the paper has a recipe for it."""
    first = {
        "simclr", "dcl", "multiview", "moco", "mocov3", "mochi", "byol", "simsiam", "barlow", "vicreg", "swav", "nnclr",
        "sogclr", "hydra", "deepcluster", "isogclr", "supcon", "amcl", "hallucinator", "cmim",
    }  # fmt: skip
    without = {"deepcluster", "isogclr", "supcon", "amcl", "hallucinator", "cmim"}
    for folder in first:
        wanted = {"emoji", "cifar"} | (set() if folder in without else {"imagenet"})
        assert {p.stem for p in (EXPERIMENTS / folder).glob("*.yaml")} >= wanted, folder


class Part(Source):
    """The first samples of each split of another source."""

    def __init__(self, whole: Source, train: int, others: int) -> None:
        self.whole, self.name, self.labels, left = whole, whole.name, whole.labels, Counter()
        self.numbers = []
        for number, (_, split) in enumerate(whole.samples):
            left[split] += 1
            if left[split] <= (train if split == "train" else others):
                self.numbers.append(number)
        self.samples = [whole.samples[number] for number in self.numbers]

    def files(self, sample):
        return self.whole.files(self.numbers[sample])


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """What recipes name below `runs/`: some of the built-in sets, packed, and two towers, exported untrained."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"
    with FileLock(f"{folder}.lock"):  # one for all test workers
        if not folder.exists():
            made = folder.with_name("runs.part")
            make_runs(made)
            made.rename(folder)
    return folder


def make_runs(folder):
    for name in ("emoji", "digits", "salient", "hands", "volumes", "shapes", "solids", "moving"):
        source = Part(open_source(f"builtin:{name}"), 320, 80)
        pack(source, folder / "data" / name, Encoding(), workers=2, console=QUIET)
    tower = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8, 16]}}
    how = {"init_args": {"backbone": tower}}
    list(export_backbone(ConvNet([4, 8, 16]), how, torch.zeros(1, 3, 32, 32), folder / "emoji-tower"))
    encoder = {"dim": 24, "depth": 1, "heads": 2, "groups": 8, "group_size": 8}
    how = {"init_args": {"backbone": {"class_path": "manyviews.backbones.PointTransformer", "init_args": encoder}}}
    list(export_backbone(PointTransformer(**encoder), how, torch.rand(1, 99, 3), folder / "solids-encoder"))
    clip, data = instantiate(placed(EXPERIMENTS / "clip" / "shapes.yaml", folder))
    list(export_open_clip(clip, data, torch.zeros(1, 3, 32, 32), folder / "clip-shapes-exported"))


def placed(path, folder):
    """A recipe whose shards and towers lie in `folder` instead of `runs`."""
    return yaml.safe_load(path.read_text().replace("runs/", f"{folder}/"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SMALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_trains_and_is_probed(path, runs, tmp_path):
    """Through `manyviews fit`, kNN, probe and retrieval, with the recipe's own method, objective and views."""
    config = placed(path, runs)
    config["data"]["init_args"] |= {"workers": 0, "global_batch_size": 80 if "orma" not in str(path) else 16}
    backbone = config["model"]["init_args"]["backbone"]
    if backbone["class_path"].endswith("ConvNet"):
        widths = [4, 8, 256 if "repulsor" in path.stem else 16]
        backbone["init_args"] = {**backbone.get("init_args", {}), "widths": widths}
    if "solids" in path.stem:
        config["data"]["init_args"]["views"]["init_args"]["points"] = 64
    if backbone["class_path"].endswith("PointTransformer"):
        backbone["init_args"] = {"dim": 24, "depth": 1, "heads": 2, "groups": 8, "group_size": 8}
    changes = {"trainer": {"max_steps": 2, "callbacks": [], "accelerator": "cpu"}, "checkpoints": {"monitor": None}}
    changes["model"] = {"init_args": {"training": {"schedule": {"warmup_steps": 1}}}}
    problem = study._one(study.merged(config, changes), 0, tmp_path, path.parent, [None], 1)
    assert problem is None, (tmp_path / "log.txt").read_text()[-3000:]
    scores = json.loads((tmp_path / "result.json").read_text())["scores"]
    assert 0 <= scores["knn20"] <= 1 and 0 <= scores["linear"] <= 1 and scores["rankme"] >= 1
    if "solids" in path.stem:
        assert 0 <= scores["svm"] <= 1 and 0 <= scores["fewshot_5way_10shot_svm"] <= 1
    if issubclass(getattr(methods, config["model"]["class_path"].rpartition(".")[2]), methods.ImageText):
        assert 0 <= scores["t2i_r1"] <= 1 and 0 <= scores["zeroshot_top1"] <= 1


def test_every_method_has_a_recipe():
    named = {yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] for path in RECIPES}
    assert named == set(methods.__all__) - {"Method", "Asymmetric", "ImageText", "Step"}
