"""The house: folders, import contracts, the wheel, and that `ssl` is still the standard library's."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.process import environment

ROOT = Path(__file__).parents[1]


def python(code, cwd=ROOT, env=None):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=env)


def tracked():
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return out.stdout.splitlines()


def test_the_standard_ssl_is_not_shadowed():
    assert not (ROOT / "ssl/__init__.py").exists()
    assert not (ROOT / "datamodules/__init__.py").exists()
    done = python("import ssl, urllib.request; ssl.create_default_context(); print(ssl.__file__)")
    assert done.returncode == 0 and "site-packages" not in done.stdout and str(ROOT) not in done.stdout, done.stderr


def test_top_level_folders_are_the_agreed_ones():
    folders = {name.split("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}
    assert folders <= {"ssl", "datamodules", "experiments", "tests", "slurm"}
    forbidden = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [name for name in tracked() if Path(name).name in forbidden]


def test_every_source_file_is_in_git():
    """An ignore pattern once hid a whole package from every clone."""
    present = {str(p.relative_to(ROOT)) for top in ("ssl", "datamodules") for p in (ROOT / top).rglob("*.py")}
    assert present <= set(tracked())


def test_packages_do_not_import_each_other():
    for package, other in (("ssl/manyviews", "viewshards"), ("datamodules/viewshards", "manyviews")):
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not line.strip().startswith((f"import {other}", f"from {other}")), f"{path}: {line}"


def test_help_and_list_need_no_torch():
    env = environment()
    for package, arguments in (("manyviews", ["list"]), ("manyviews", ["knn", "--help"]), ("viewshards", ["--help"])):
        code = f"import sys\nfrom {package}.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        done = python(code, env=env)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_list_names_everything_with_a_line():
    from manyviews import evaluation, methods, objectives
    from manyviews.cli.catalogue import catalogue

    lines = {line.split()[0]: line for line in catalogue().splitlines() if line.startswith("  ")}
    for name in [*objectives.__all__, *methods.__all__, *evaluation.__all__]:
        if name[0].isupper():
            assert len(lines[name].split()) > 3, name
    assert "builtin:emoji" in lines


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if "dist-info" not in n} == {"manyviews", "viewshards"}
    assert {"manyviews/recipes/quickstart.yaml", "manyviews/recipes/simclr/photos.yaml"} <= set(names)
    assert "viewshards/builtin/emoji.zip" in names and any("licenses/" in n for n in names)
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import manyviews.cli.fit, manyviews.cli.evaluate, manyviews.cli.recipes, viewshards.sources.bundled\n"
        "assert 'simclr/photos' in manyviews.cli.recipes.recipe(None)\n"
        f"assert manyviews.__file__.startswith({str(target)!r}), manyviews.__file__\n"
        "assert len(viewshards.sources.bundled.Emoji().samples) == 1905"
    )
    done = python(code, cwd=tmp_path, env={"PATH": environment()["PATH"]})
    assert done.returncode == 0, done.stderr
    entry = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "manyviews = manyviews.cli:main" in entry and "viewshards = viewshards.cli:main" in entry
