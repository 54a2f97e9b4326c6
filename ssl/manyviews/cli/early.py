"""Mistakes in the names of files, sections, classes and options, told before anything heavy is imported.

What is refused here the parser would refuse too, seconds later. What only an import can tell is left to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from manyviews import foreign
from manyviews.cli import source
from manyviews.names import meant

SECTIONS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "monitor": "manyviews.monitoring.monitor.Monitor",
    "collapse": "manyviews.monitoring.collapse.CollapseAlarm",
    "checkpoints": "manyviews.runs.checkpoints.Checkpoints",
    "stop": "manyviews.runs.faults.StopOnSignal",
    "finite": "manyviews.runs.faults.FiniteGuard",
}
CLASSES = {"model": "manyviews.methods", "data": "viewshards"}
"""Sections that hold a class, and the package whose classes need no path there."""
SINGLE = (
    "config", "run", "from", "timeout", "startup_timeout", "trust", "seed_everything", "help", "print_config",
)  # fmt: skip
NAMES = (*SECTIONS, *CLASSES, *SINGLE)
INSTEAD = {"optimizer": "model.training.optimizer", "lr_scheduler": "model.training.schedule"}
"""Sections of Lightning's command that are options of the method here: a rate without its warm-up is another run."""
WORDS = {"true", "false", "yes", "no", "on", "off", "null", "none", "~", ""}


def check_fit(argv: list[str]) -> None:
    """Checks the arguments of `fit`, and makes modules of the user's own findable, beside a configuration or here.

    Raises:
        ValueError: naming what is not known, and the nearest names. FileNotFoundError: for a configuration.
    """
    tree: dict[str, Any] = {}
    words = [part for word in argv for part in word.split("=", 1)]
    source.search_beside(filter(foreign.PATH.fullmatch, words), Path())
    for name, value in _pairs(argv):
        if name == "config":
            tree = _merged(tree, _file(value))
            continue
        top, *rest = name.split(".")
        if top not in NAMES:
            if top in INSTEAD:
                raise ValueError(f"no argument --{name}; give {INSTEAD[top]}")
            raise ValueError(f"no argument --{name}" + meant(top, NAMES, "--"))
        if top in SECTIONS and rest and rest[0] != "help":
            _check_section(top, rest[0], value, "--")
        if top in CLASSES and "help" not in rest:
            _put(tree, [top, *rest], value)
    for top in CLASSES:
        if isinstance(tree.get(top), dict | str):
            _check_class(tree[top], top, CLASSES[top])


def check_run(arguments: Any) -> None:
    """Checks the run or checkpoint that a command is about.

    Raises:
        FileNotFoundError: if it is not there.
    """
    run, checkpoint = getattr(arguments, "run", None), getattr(arguments, "checkpoint", None)
    if checkpoint and not Path(checkpoint).exists():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint")
    if run and not Path(run).is_dir():
        raise FileNotFoundError(f"{run}: no such run")
    if run and not any(Path(run, "checkpoints").glob("*.ckpt")):
        raise FileNotFoundError(f"{run}: no whole checkpoint in {run}/checkpoints")


def help_of(argv: list[str]) -> str | None:
    """What `--model.help CLASS` shows: the class's own options. None if nothing is asked for, or it is not ours."""
    for name, value in _pairs(argv):
        top, _, rest = name.partition(".")
        if rest == "help" and (top in CLASSES or top in SECTIONS):
            path = SECTIONS.get(top) or _path(value, CLASSES.get(top, ""))
            found = source.known(path) if path else None
            if found is None or found.arguments is None:
                return None
            return "\n".join([found.path, "", found.doc, "", "options:", *_shown(f"  --{top}", found)])
    return None


def _shown(prefix: str, found: source.Known) -> Iterator[str]:
    """A line for each argument of a class, and for those of a dataclass of ours among them."""
    for option, (kind, default) in (found.arguments or {}).items():
        yield f"{prefix}.{option}: {kind}" + (f" = {default}" if default is not None else "  (required)")
        if (inner := _dataclass(kind)) is not None:
            yield from (
                line.partition(" = ")[0].removesuffix("  (required)") for line in _shown(f"{prefix}.{option}", inner)
            )


def _dataclass(kind: str) -> source.Known | None:
    """A class of ours that an annotation names, such as `Training`."""
    plain = kind.removesuffix(" | None")
    path = source.full_path(plain) if plain.isidentifier() else None
    return source.known(path) if path is not None else None


def _pairs(argv: list[str]) -> Iterator[tuple[str, str]]:
    """Option names and their values, as far as they are options with a value."""
    for number, word in enumerate(argv):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.removeprefix("--").partition("=")
            following = argv[number + 1] if number + 1 < len(argv) else ""
            yield name.removesuffix("+"), value if equals else following


def _file(value: str) -> dict[str, Any]:
    path = Path(value).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{value}: no such file")
    found = foreign.read_yaml(path)
    if foreign.owner_of(path) is None:  # the user's own word, and modules beside it their own code
        source.search_beside(foreign.class_paths(found), path.parent, Path())
    if not isinstance(found, dict):
        raise ValueError(f"{value}: expected sections with keys, got {type(found).__name__}")
    tree: dict[str, Any] = _nested(found)
    for top, section in tree.items():
        if top in INSTEAD:
            raise ValueError(f"{value}: no key {top!r}; give {INSTEAD[top]}")
        if top not in NAMES:
            first = f"{top}.{next(iter(section))}" if isinstance(section, dict) and section else str(top)
            known = [f"{name}.{each}" for name in SECTIONS for each in _options(name)] if "." in first else NAMES
            raise ValueError(f"{value}: no key {first!r}" + meant(first, [*known, *NAMES]))
        if top in SECTIONS and isinstance(section, dict):
            for option, given in section.items():
                _check_section(top, str(option), given, "")
    return tree


def _nested(node: Any) -> Any:
    """A configuration in which no key has dots: `trainer.max_steps: 3` is the same as `trainer: {max_steps: 3}`."""
    if isinstance(node, list):
        return [_nested(each) for each in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        first, *rest = str(key).split(".")
        inner = _nested(value)
        for part in reversed(rest):
            inner = {part: inner}
        found = _merged(found, {first: inner})
    return found


def _options(section: str) -> list[str]:
    found = source.known(SECTIONS[section])
    return list(found.arguments or ()) if found is not None else []


def _check_section(section: str, option: str, value: Any, prefix: str) -> None:
    found = source.known(SECTIONS[section])
    if found is None or not found.arguments:
        return
    name = f"{section}.{option}"
    if option not in found.arguments:
        what = f"no argument --{name}" if prefix else f"no key {name!r}"
        raise ValueError(what + meant(name, [f"{section}.{each}" for each in found.arguments], prefix))
    _check_type(name, value, found.arguments[option][0])


def _path(name: str, package: str) -> str | None:
    return name if "." in name else source.full_path(name, (package,) if package else source.PACKAGES)


def _check_class(node: Any, where: str, package: str = "") -> None:
    """Checks a class with its arguments, and what is in them."""
    if isinstance(node, list):
        for each in node:
            _check_class(each, where)
    if isinstance(node, str) and (package or node.rpartition(".")[0] in source.PACKAGES):
        node = {"class_path": node}
    if not isinstance(node, dict):
        return
    name, given = node.get("class_path"), node.get("init_args")
    if not isinstance(name, str):
        for key, child in node.items():
            _check_class(child, f"{where}.{key}")
        return
    path = _path(name, package)
    if path is None:
        if package:
            raise ValueError(f"{where}: no class {name!r} in {package}" + meant(name, source.exported(package)))
        return
    found = source.known(path)
    module, _, last = path.rpartition(".")
    if found is None and module in source.PACKAGES:
        raise ValueError(f"{module} has no {last!r}" + meant(last, source.exported(module)))
    if not isinstance(given, dict):
        return
    for option, value in given.items():
        if found is not None and found.arguments is not None:
            if option not in found.arguments:
                raise ValueError(f"{path} has no argument {option!r}" + meant(str(option), found.arguments))
            _check_type(f"{where}.{option}", value, found.arguments[option][0])
            _check_fields(f"{where}.{option}", value, found.arguments[option][0])
        _check_class(value, f"{where}.{option}")


def _check_fields(where: str, value: Any, kind: str) -> None:
    """Checks what is given for a dataclass of ours, and for those in it."""
    found = _dataclass(kind)
    if found is None or not found.arguments or not isinstance(value, dict) or "class_path" in value:
        return
    for option, given in value.items():
        if option not in found.arguments:
            raise ValueError(f"{where} has no option {option!r}" + meant(str(option), found.arguments))
        _check_type(f"{where}.{option}", given, found.arguments[option][0])
        _check_fields(f"{where}.{option}", given, found.arguments[option][0])


def _check_type(where: str, value: Any, kind: str) -> None:
    """Refuses words in the place of a number or of yes and no."""
    plain = kind.removesuffix(" | None")
    if not isinstance(value, str) or plain not in ("int", "float", "bool") or value.lower() in WORDS:
        return
    if isinstance(_parsed(value), str):  # YAML has numbers that Python has not, such as .inf, and the other way round
        try:
            float(value)
        except ValueError:
            raise ValueError(f"{where}: expected {plain}, got {value}") from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        if both and value.get("class_path", out[key].get("class_path")) == out[key].get("class_path"):
            value = _merged(out[key], value)
        out[key] = value
    return out


def _put(tree: dict[str, Any], parts: list[str], value: str) -> None:
    """Sets what `--model.backbone.norm group` sets: arguments of the class that is there."""
    node = tree
    for number, part in enumerate(parts):
        if "class_path" in node and part not in ("class_path", "init_args"):
            node["init_args"] = node = dict(node.get("init_args") or {})
        last = number == len(parts) - 1
        child = node.get(part)
        if last:
            parsed = _parsed(value)
            if part == "class_path" and child != value:
                node.pop("init_args", None)  # those of another class
            if part in CLASSES and isinstance(parsed, str):
                same = isinstance(child, dict) and child.get("class_path") == parsed
                parsed = child if same else {"class_path": parsed}
            node[part] = parsed
            return
        if isinstance(child, str):
            child = {"class_path": child}
        if child is not None and not isinstance(child, dict):
            return  # of a class that only an import can tell
        child = child or {}
        node[part] = dict(child)
        node = node[part]


def _parsed(value: str) -> Any:
    """A value of the command line, which is YAML."""
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
