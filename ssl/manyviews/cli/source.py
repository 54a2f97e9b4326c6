"""Classes as their source says, without importing them: names of their arguments, plain types, docstring."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import util
from pathlib import Path

OURS = ("manyviews", "viewshards")
PACKAGES = (
    "manyviews.methods", "manyviews.objectives", "manyviews.backbones", "manyviews.evaluation", "manyviews.optim",
    "viewshards", "viewshards.views",
)  # fmt: skip
"""Whose classes may be named without their package."""


@dataclass
class Known:
    """A class.

    Attributes:
        path: its import path, as it was given. doc: docstring. arguments: of its constructor, in order, with annotation
            and default as they stand in the source; None if they cannot be told without importing it.
    """

    path: str
    doc: str = ""
    arguments: dict[str, tuple[str, str | None]] | None = field(default_factory=dict)


def exported(package: str) -> dict[str, str]:
    """The names that a package imports from its modules: what is exported, and from where."""
    return {name: path for name, path in _imported(_parsed(_file(package))).items() if path.startswith(OURS)}


def full_path(name: str, packages: tuple[str, ...] = PACKAGES) -> str | None:
    """The import path of a class of ours that is named without it; None if there is none, or more than one."""
    found = [f"{package}.{name}" for package in packages if name in exported(package) or _defines(package, name)]
    return found[0] if len(found) == 1 else None


def _defines(package: str, name: str) -> bool:
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in _parsed(_file(package)).body)


@cache
def known(path: str) -> Known | None:
    """A class by its import path; None if it is not there, or lies where only an import can tell."""
    module, _, name = path.rpartition(".")
    try:
        tree = _parsed(_file(module))
    except (ImportError, OSError, SyntaxError, ValueError):  # anybody's module: told when it is imported
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Known(path, ast.get_docstring(node) or "", _arguments(node, tree, module))
    where = _imported(tree).get(name)
    found = known(where) if where is not None and where != path else None
    return None if found is None else Known(path, found.doc, found.arguments)


def _arguments(node: ast.ClassDef, tree: ast.Module, module: str) -> dict[str, tuple[str, str | None]] | None:
    made = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
    if made:
        given = made[-1].args  # those before it are overloads
        if given.kwarg is not None or given.vararg is not None:
            return None
        plain = [*given.posonlyargs, *given.args]
        defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
        pairs = list(zip(plain, defaults, strict=True))[1:]
        pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
        return {a.arg: (_text(a.annotation) or "", _text(default)) for a, default in pairs}
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        if any(ast.unparse(base) not in ("Protocol", "JointProtocol") for base in node.bases):
            return None  # whose fields come first
        return {
            child.target.id: (ast.unparse(child.annotation), _text(child.value))
            for child in node.body
            if isinstance(child, ast.AnnAssign)
            and isinstance(child.target, ast.Name)
            and "ClassVar" not in ast.unparse(child.annotation)
        }
    if len(node.bases) != 1:
        return None
    base = ast.unparse(node.bases[0])
    if any(isinstance(other, ast.ClassDef) and other.name == base for other in tree.body):
        found = known(f"{module}.{base}")
    else:
        where = _imported(tree).get(base)
        found = known(where) if where is not None and where.startswith(OURS) else None
    return None if found is None else found.arguments


def _imported(tree: ast.Module) -> dict[str, str]:
    """What a module imports by name, also where only a type checker would."""
    nodes = [*tree.body, *(child for node in tree.body if isinstance(node, ast.If) for child in node.body)]
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())  # in the encoding that its first lines say


def _file(module: str) -> Path:
    """The source of a module, found through its top package, which is not imported.

    Raises:
        ModuleNotFoundError: if its top package is not there. FileNotFoundError: if the module is not.
    """
    top, *rest = module.split(".")
    spec = util.find_spec(top) if top else None
    if spec is None:
        raise ModuleNotFoundError(top)
    if not rest and spec.origin and spec.origin.endswith(".py") and not spec.submodule_search_locations:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    raise FileNotFoundError(module)


def search_beside(paths: Iterable[str], *folders: Path) -> None:
    """Makes modules and packages findable that the user named and that lie in one of these folders.

    Such a folder is searched last, so that nothing in it takes the place of anything else.

    Args:
        paths: import paths, of classes or modules. folders: that of a configuration file, the working directory.
    """
    for top in {path.partition(".")[0] for path in paths}:
        if not top.isidentifier() or _is_there(top):
            continue
        for folder in map(Path.absolute, folders):
            if (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file():
                sys.path.append(str(folder))
                importlib.invalidate_caches()
                break


def _is_there(top: str) -> bool:
    try:
        return util.find_spec(top) is not None
    except ValueError:  # `__main__`
        return True
