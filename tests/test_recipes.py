"""Every recipe parses, builds, and names only what exists."""

import json
from pathlib import Path

import pytest
import yaml

from manyviews import methods
from manyviews.cli import study
from manyviews.cli.evaluate import instantiate
from manyviews.methods import Method
from tests.conftest import QUIET
from viewshards.datamodule import ShardDataModule
from viewshards.pack import Encoding, pack
from viewshards.sources import open_source

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [
    *sorted(p for p in EXPERIMENTS.glob("*/*.yaml") if p.parent.name not in ("claims", "leaderboard")),
    EXPERIMENTS / "quickstart.yaml",
]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe(path):
    config = yaml.safe_load(path.read_text())
    method, data = instantiate(config)
    assert isinstance(method, Method) and isinstance(data, ShardDataModule)
    assert data.global_batch_size % data.lanes == 0
    assert {"max_steps", "max_epochs"} & config["trainer"].keys()


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


SMALL = [p for p in RECIPES if p.stem not in ("cifar", "imagenet", "imagenet-vit", "photos", "quickstart")]


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The built-in sets that recipes name, packed."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("emoji", "digits", "salient", "hands", "volumes"):
        pack(open_source(f"builtin:{name}"), folder / name, Encoding(), workers=2, console=QUIET)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", SMALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_trains_and_is_probed(path, shards, tmp_path):
    """Through `manyviews fit`, kNN and the linear probe, with the recipe's own method, objective and views."""
    config = yaml.safe_load(path.read_text())
    settings = config["data"]["init_args"]
    settings |= {"root": str(shards / Path(settings["root"]).name), "workers": 0, "global_batch_size": 80}
    backbone = config["model"]["init_args"]["backbone"]
    if backbone["class_path"].endswith("ConvNet"):
        widths = [4, 8, 256 if "repulsor" in path.stem else 16]
        backbone["init_args"] = {**backbone.get("init_args", {}), "widths": widths}
    changes = {"trainer": {"max_steps": 2, "callbacks": [], "accelerator": "cpu"}, "checkpoints": {"monitor": None}}
    changes["model"] = {"init_args": {"schedule": {"warmup_steps": 1}}}
    problem = study._one(study.merged(config, changes), 0, tmp_path, path.parent, [None], 1)
    assert problem is None, (tmp_path / "log.txt").read_text()[-3000:]
    scores = json.loads((tmp_path / "result.json").read_text())["scores"]
    assert 0 <= scores["knn20"] <= 1 and 0 <= scores["linear"] <= 1 and scores["rankme"] >= 1


def test_every_method_has_a_recipe():
    named = {yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] for path in RECIPES}
    assert named == set(methods.__all__) - {"Method", "Asymmetric"}
