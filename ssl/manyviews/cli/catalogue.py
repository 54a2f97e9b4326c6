"""`manyviews list`: what there is, read from the source without importing it."""

from __future__ import annotations

import ast
from importlib import util
from itertools import chain
from pathlib import Path

SECTIONS = {
    "methods": ("manyviews.methods", "class"),
    "objectives": ("manyviews.objectives", "class"),
    "backbones": ("manyviews.backbones", "class"),
    "evaluation protocols": ("manyviews.evaluation", "class"),
    "views": ("viewshards.views", "class"),
    "data sets to pack": ("viewshards.sources", "sources"),
}


def catalogue() -> str:
    """The whole list as text."""
    sections = []
    for title, (package, kind) in SECTIONS.items():
        rows = _exported(package) if kind == "class" else _sources(package)
        width = max(len(name) for name, _ in rows)
        sections.append(f"{title}\n" + "\n".join(f"  {name:<{width}}  {line}" for name, line in rows))
    return "\n\n".join(sections)


def _exported(package: str) -> list[tuple[str, str]]:
    """(name, first line of the docstring) of the classes a package exports."""
    folder = _path(package)
    tree = ast.parse((folder / "__init__.py").read_text())
    modules = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    rows = []
    for name, module in sorted(modules.items()):
        source = ast.parse(_path(module).with_suffix(".py").read_text())
        for node in source.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                rows.append((name, _first_line(node)))
    return rows


def _sources(package: str) -> list[tuple[str, str]]:
    modules = [ast.parse(path.read_text()).body for path in _path(package).glob("*.py")]
    classes = {node.name: node for node in chain(*modules) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    named = {
        "builtin:emoji": "Emoji",
        "builtin:digits": "Sklearn",
        "builtin:pasted": "PastedDigits",
        "builtin:salient": "SalientDigits",
        "builtin:longtail": "LongTailDigits",
        "builtin:hands": "Hands",
        "builtin:volumes": "Volumes",
        "builtin:shapes": "Shapes",
        "builtin:solids": "Solids",
        "builtin:moving": "Moving",
        "torchvision:NAME": "Torchvision",
        "sklearn:NAME": "Sklearn",
        "FOLDER": "of_folder",
        "FOLDER of .h5": "Hdf5",
        "FILE.csv, .jsonl, .parquet": "of_table",
    }
    return [(name, _first_line(classes[of])) for name, of in named.items()]


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _path(module: str) -> Path:
    """Where a module lies, found through its top package, which is not imported either."""
    top, *rest = module.split(".")
    spec = util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{top} is not installed")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
