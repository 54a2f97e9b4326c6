"""Configuration from a file that somebody else may have written: checked before anything of it is imported or built.

Checkpoints, run folders, exported folders and lists hold plain types only, but a configuration of plain types can name
any class, and building that class runs code. So a value is checked field by field against the type that its field
declares. A class path is admitted if it names a public class of this project, of `torch.optim`, or of Lightning's
callbacks, loggers, strategies and plugins, which is a subclass of the field's type; never a function. Everything else
needs a name that the user gave by `--trust`. Nothing else is imported on the way to that decision.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import os
import re
import reprlib
import types
import typing
from collections import OrderedDict, abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

OURS = ("manyviews", "viewshards")
THEIRS = (
    "torch.optim.lr_scheduler",
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
)
"""Packages of others whose public classes (those in `__all__`) are admitted."""
WORD = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
PATH = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
LARGEST = 2**28
"""Bytes of a JSON file."""
MOST, DEEPEST = 1_000_000, 100
"""Values of a configuration, and levels."""
LONGEST = 10_000
"""Characters of a text in a field of any type."""

CONFIG_KEY = "manyviews_config"
"""Where a checkpoint of ours holds the resolved configuration of its run."""

trusted: set[str] = set()
"""Modules and classes that the user named by `--trust`, or in a configuration of their own."""

# A value of a field of any type that looks like a class with arguments stays what it is: plain data.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


class Unchecked:
    """In the place of an annotation: a value that its reader checks."""


class Unknown:
    """In the place of an annotation that cannot be read, where the parser may see more: no text that names a class."""


class Refused(ValueError):
    """A value of a foreign configuration that is not used.

    Args:
        where: file and key. reason: what it holds and what was expected.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where


class Untrusted(Refused):
    """A class path that is not on the list."""


@contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Trusts these modules or classes too, as long as the context lasts."""
    new = set(names) - trusted
    trusted.update(new)
    try:
        yield
    finally:
        trusted.difference_update(new)


def class_paths(config: Any) -> set[str]:
    """All class paths in a configuration of the user's own."""
    if isinstance(config, Mapping):
        own = {str(config["class_path"])} if "class_path" in config else set()
        return own.union(*map(class_paths, config.values()))
    return set().union(*map(class_paths, config)) if isinstance(config, list | tuple) else set()


def plain(value: Any, where: str) -> Any:
    """A copy of plain types: dicts, lists, texts, numbers, nothing; of bounded size and depth, nothing shared.

    A pickle can hold a dict whose methods are replaced, and a few lists that hold each other stand for any number.

    Raises:
        Refused: for anything else.
    """
    left = MOST

    def copied(given: Any, depth: int) -> Any:
        nonlocal left
        left -= 1 + (len(given) // 100 if type(given) is str else 0)
        if left < 0 or depth > DEEPEST:
            raise Refused(where, f"more than {MOST:,} values, or deeper than {DEEPEST} levels")
        kind = type(given)
        if isinstance(given, dict) and kind in (dict, OrderedDict):
            return {copied(key, depth + 1): copied(child, depth + 1) for key, child in dict.items(given)}
        if kind in (list, tuple):
            return [copied(child, depth + 1) for child in given]
        if given is None or kind in (str, int, float, bool):
            return given
        raise Refused(where, f"expected plain data, got a {kind.__name__}")

    return copied(value, 0)


class _Loader(yaml.SafeLoader):
    """Plain types only: a date is a text, as it is to the parser of the command line."""

    yaml_implicit_resolvers = {  # a library's own way
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(file: Path) -> Any:
    """A YAML file of the user's own, or of anybody.

    Raises:
        OSError: without the file. ValueError: naming the file, if it is no YAML of plain types.
    """
    if file.exists() and (not file.is_file() or file.stat().st_size > LARGEST):
        raise ValueError(f"{file}: not a file of up to {LARGEST:,} bytes")
    try:
        content = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable as YAML ({shortened(error)})") from error
    return plain(content, str(file))


def shortened(error: BaseException) -> str:
    """What went wrong, in one line: the innermost reason."""
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return " ".join(str(error).split())[:500] or type(error).__name__


def check(value: Any, wanted: Any, where: str) -> None:
    """Checks a value of plain types against the type of its field.

    Args:
        value: as read from a file.
        wanted: the field's annotation.
        where: file and key, for the error.

    Raises:
        Refused: naming the key, what it holds and what was expected. Untrusted: for a class that is not admitted,
            with the `--trust` that would admit it.
    """
    if isinstance(wanted, typing.TypeVar):
        wanted = wanted.__bound__ or Any
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Unchecked:
        return
    if wanted is Unknown:
        return _check_plain(value, where, names=False)
    if origin is typing.Annotated:
        check(value, arguments[0], where)
    elif wanted in (Any, object, inspect.Parameter.empty):
        _check_plain(value, where)
    elif origin in (typing.Union, types.UnionType):
        _check_union(value, arguments, where)
    elif wanted in (None, type(None)):
        _expect(value is None, value, "nothing", where)
    elif origin is typing.Literal:
        _expect(value in arguments, value, " or ".join(map(repr, arguments)), where)
    elif origin is abc.Callable or wanted in (Callable, abc.Callable):
        made = arguments[-1] if arguments else None
        _expect(inspect.isclass(made), value, "nothing: a function cannot come from a file", where)
        _check_class(value, made, where)
    elif origin is type or wanted is type:
        _expect(isinstance(value, str), value, "a class path", where)
        _admitted(value, arguments[0] if arguments and inspect.isclass(arguments[0]) else object, where)
    elif origin in (dict, abc.Mapping, abc.MutableMapping) or wanted in (dict, abc.Mapping, abc.MutableMapping):
        _expect(isinstance(value, dict) and "class_path" not in value, value, "keys and values", where)
        for key, child in value.items():
            check(key, arguments[0] if arguments else str, f"{where}, a key")
            check(child, arguments[1] if arguments else Any, f"{where}.{key}")
    elif _holds_many(origin or wanted):
        _check_many(value, origin or wanted, arguments, where)
    elif inspect.isclass(wanted):
        _check_leaf(value, wanted, where)
    else:
        _check_plain(value, where)


def check_arguments(given: Any, made: Any, where: str) -> None:
    """Checks keyword arguments of plain types against the signature of a class.

    Raises:
        Refused: see `check`; also for an argument that the class does not have, with the nearest that it has.
    """
    _expect(isinstance(given, dict), given, f"arguments of {made.__name__}", where)
    known, is_open = _parameters(made)
    for name, value in given.items():
        if name not in known and not (is_open and isinstance(name, str) and name.isidentifier()):
            near = get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known) or 'none'}"
            raise Refused(where, f"{made.__name__} has no argument {name!r}{hint}")
        check(value, known.get(name, Unknown), f"{where}.{name}")


def owner_of(file: Path) -> Path | None:
    """The run folder or exported folder that a file lies in; None outside of any.

    What anything of a run lies beside, or one level above, counts as of that run; further up only what a run is sure
    to hold, since a home folder may well have a folder of checkpoints.
    """
    for path in (file.absolute(), file.resolve()):
        for level, folder in enumerate(path.parents):
            marks = SURE if level > 1 else (*SURE, *LIKELY)
            if any(next(iter(folder.glob(mark)), None) is not None for mark in marks):
                return folder
    return None


SURE = ("run.json", "open_clip_config.json")
LIKELY = (
    "checkpoints/*.ckpt", "*.ckpt", "attempts", "finished.json", "evaluations", "hparams.yaml", "events.out.tfevents.*",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
"""Files that a folder of a run or an export holds."""


def read_json(file: Path, wanted: Any) -> Any:
    """A JSON file that somebody else may have written, checked against a type.

    Args:
        file: to read. wanted: an annotation, or the fields of an object with their annotations, of which any may be
            missing and beside which there may be no others.

    Raises:
        FileNotFoundError: without the file. ValueError: naming the file, and the key that is not as expected.
    """
    if file.exists() and (not file.is_file() or file.stat().st_size > LARGEST):
        raise ValueError(f"{file}: not a file of up to {LARGEST:,} bytes")
    try:
        content = plain(json.loads(file.read_bytes()), str(file))
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(wanted, dict):
        check(content, wanted, str(file))
        return content
    _expect(isinstance(content, dict), content, f"an object with {', '.join(wanted)}", str(file))
    for key, value in content.items():
        if key not in wanted:
            near = get_close_matches(key, wanted, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(wanted)}"
            raise Refused(str(file), f"unknown key {key!r}{hint}")
        check(value, wanted[key], f"{file}: {key}")
    return content


def _check_union(value: Any, members: tuple[Any, ...], where: str) -> None:
    builds = [member for member in members if _builds(member)]
    # Where a class is wanted as well as a text, the parser reads a text for the class that it names or describes.
    is_path = isinstance(value, str) and not WORD.fullmatch(value)
    errors: list[Refused] = []
    for member in builds if is_path and builds else members:
        try:
            return check(value, member, where)
        except Refused as error:
            errors.append(error)
    raise max(errors, key=lambda error: (isinstance(error, Untrusted), len(error.where)))  # what came furthest


def _builds(wanted: Any) -> bool:
    """Whether the parser would import what a text names."""
    origin = typing.get_origin(wanted)
    if origin is abc.Callable or origin is type or wanted in (type, Callable):
        return True
    return inspect.isclass(wanted) and origin is None and not _is_leaf(wanted) and not _holds_many(wanted)


def _is_leaf(wanted: type) -> bool:
    """Types whose values are single words or numbers."""
    return wanted in (bool, int, float, str, type(None)) or issubclass(wanted, enum.Enum | timedelta | os.PathLike)


def _holds_many(wanted: Any) -> bool:
    return inspect.isclass(wanted) and wanted in (
        list, tuple, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection, abc.Set, abc.MutableSequence,
    )  # fmt: skip


def _check_many(value: Any, kind: Any, arguments: tuple[Any, ...], where: str) -> None:
    _expect(isinstance(value, list | tuple), value, "a list", where)
    if kind is tuple and arguments and arguments[-1] is not ...:
        _expect(len(value) == len(arguments), value, f"{len(arguments)} values", where)
        wanted = arguments
    else:
        wanted = (arguments[0] if arguments else Any,) * len(value)
    for number, (child, each) in enumerate(zip(value, wanted, strict=True)):
        check(child, each, f"{where}[{number}]")


def _check_leaf(value: Any, wanted: type, where: str) -> None:
    if wanted is bool:
        _expect(isinstance(value, bool), value, "true or false", where)
    elif wanted is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), value, "a whole number", where)
    elif wanted is float:
        # YAML takes 1e-3, without a point, for a text.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(is_number or (isinstance(value, str) and _is_number(value)), value, "a number", where)
    elif wanted is str:
        _expect(isinstance(value, str), value, "a text", where)
    elif _is_leaf(wanted):
        _expect(isinstance(value, str | int | float), value, wanted.__name__, where)
    elif dataclasses.is_dataclass(wanted) and isinstance(value, dict) and "class_path" not in value:
        check_arguments(value, wanted, where)
    else:
        _check_class(value, wanted, where)


def _check_class(value: Any, wanted: Any, where: str) -> None:
    """A class path, alone or with arguments."""
    spec = {"class_path": value} if isinstance(value, str) else value
    is_spec = isinstance(spec, dict) and "class_path" in spec and spec.keys() <= {"class_path", "init_args"}
    _expect(is_spec, value, f"class_path and init_args of a {wanted.__name__}", where)
    made = _admitted(spec["class_path"], wanted, where)
    given = spec.get("init_args")
    check_arguments({} if given is None else given, made, f"{where}.init_args")


def _admitted(path: Any, wanted: type, where: str) -> Any:
    """The class of this path, if it may be built."""
    _expect(isinstance(path, str), path, "a class path", where)
    if any(path == name or path.startswith(f"{name}.") for name in trusted):
        module, _, name = path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise Refused(where, f"{path} is trusted, but cannot be imported ({error})") from error
    found = _listed(path)
    if found is None:
        shown = repr(path) if len(path) < 200 else f"{path[:200]!r}..."
        module = path.rpartition(".")[0]
        how = f"If you know it and trust it, add --trust {path}" + (
            f", or --trust {module} for all of it" if module else ""
        )
        raise Untrusted(
            where,
            f"{shown} is no public class of this project, of torch.optim, or of Lightning's callbacks, "
            "loggers, strategies and plugins, and building it would run its code. "
            + (how if PATH.fullmatch(path) else "It is not a class path"),
        )
    if not issubclass(found, wanted):
        raise Refused(where, f"expected a {wanted.__name__}, got {path}")
    return found


def _listed(path: str) -> type | None:
    """The class of this path if it is on the list. Nothing is imported but the packages of the list."""
    if not PATH.fullmatch(path):
        return None
    module, _, name = path.rpartition(".")
    root, *inside = module.split(".")
    found: Any = None
    if root in OURS and inside[:1] != ["cli"]:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            return None
        is_own = inspect.isclass(found) and found.__module__.split(".")[0] in OURS
        return found if is_own else None
    package = next((package for package in THEIRS if path.startswith(f"{package}.")), None)
    if package is None:
        return None
    public = importlib.import_module(package)
    found = getattr(public, name, None) if name in public.__all__ else None
    is_there = inspect.isclass(found) and (module == package or module == found.__module__)
    return found if is_there else None


def _parameters(made: Any) -> tuple[dict[str, Any], bool]:
    """Names and annotations of what a class is built with; and whether it takes names that no signature has."""
    if dataclasses.is_dataclass(made):
        hints = _hints(made)
        return {f.name: hints.get(f.name, Unknown) for f in dataclasses.fields(made) if f.init}, False
    found: dict[str, Any] = {}
    for owner in made.__mro__ if inspect.isclass(made) else (made,):
        init = owner.__dict__.get("__init__") if inspect.isclass(owner) else owner
        if init is None or owner is object:
            continue
        signature, hints = inspect.signature(init), _hints(init)
        parameters = list(signature.parameters.values())[1 if inspect.isclass(owner) else 0 :]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, hints.get(parameter.name, Unknown))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, True


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # of another's class: its fields then take plain values only
        return {}


def _check_plain(value: Any, where: str, names: bool = True) -> None:
    """Values of a field of any type: nothing in them may be taken for a class. `names`: whether texts may have dots."""
    if isinstance(value, dict):
        _expect("class_path" not in value, value, "no class here", where)
        for key, child in value.items():
            _check_plain(key, f"{where}, a key", names)
            _check_plain(child, f"{where}.{key}", names)
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            _check_plain(child, f"{where}[{number}]", names)
    elif isinstance(value, str):
        is_plain = len(value) <= LONGEST and not _is_structured(value)
        _expect(is_plain, value, f"a text of up to {LONGEST} characters that is no YAML", where)
        _expect(names or WORD.fullmatch(value), value, "a single word: it could name a class or a file", where)
    else:
        _expect(value is None or isinstance(value, int | float), value, "plain data", where)


def _is_structured(text: str) -> bool:
    """Whether a parser would read keys or lists in a text. Looks at YAML's events, which expand no alias."""
    try:
        if any(isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent) for event in yaml.parse(text)):
            return True
    except (yaml.YAMLError, RecursionError):
        pass
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _expect(is_right: object, value: Any, expected: str, where: str) -> None:
    if not is_right:
        raise Refused(where, f"expected {expected}, got {SHOWN.repr(value)}")


SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = 200
