"""Every recipe parses, builds, and names only what exists."""

from pathlib import Path

import pytest
import yaml

from manyviews import methods
from manyviews.cli.evaluate import instantiate
from manyviews.methods import Method
from viewshards.datamodule import ShardDataModule

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [
    *sorted(p for p in EXPERIMENTS.glob("*/*.yaml") if p.parent.name not in ("claims", "leaderboard")),
    EXPERIMENTS / "quickstart.yaml",
]


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


def test_every_method_has_a_recipe():
    named = {yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] for path in RECIPES}
    assert named == set(methods.__all__) - {"Method", "Asymmetric"}
