"""Every recipe parses, builds, and names only what exists."""

from pathlib import Path

import pytest
import yaml

from manyviews.cli.evaluate import instantiate
from manyviews.methods import Method
from viewshards.datamodule import ShardDataModule

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [*sorted(EXPERIMENTS.glob("*/*.yaml")), EXPERIMENTS / "quickstart.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe(path):
    config = yaml.safe_load(path.read_text())
    method, data = instantiate(config)
    assert isinstance(method, Method) and isinstance(data, ShardDataModule)
    assert data.global_batch_size % data.lanes == 0
    assert {"max_steps", "max_epochs"} & config["trainer"].keys()


def test_each_method_has_its_three_recipes():
    for method in ("simclr", "dcl", "multiview"):
        assert {p.stem for p in (EXPERIMENTS / method).glob("*.yaml")} >= {"emoji", "cifar", "imagenet"}
