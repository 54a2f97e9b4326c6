"""Configuration errors in one short line, with the nearest key."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable

from manyviews.cli.early import INSTEAD
from manyviews.foreign import shortened
from manyviews.names import meant

CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
OPTION = re.compile(r"Option '([\w.-]+)' is not accepted")
KEY = re.compile(r'Parser key "([\w.]+)"')
EXPECTED = re.compile(r"Expected (?:a|an|one of) (.+?)\.? ?Got value: (.+)", re.DOTALL)
UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)", re.IGNORECASE)
GROUP_OPTION = re.compile(r"Group '(\w+)' does not accept option '([\w.]+)'")
NO_FILE = re.compile(r"File does not exist: '(.+)'")
NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
UNION = re.compile(r'Parser key "([\w.]+)":\s+Does not validate against any of the Union subtypes\s+Subtypes: (.+)')
LITERAL = re.compile(r"Literal\[([^\]]+)\]")
GIVEN = re.compile(r"Given value: (.+)")
REQUIRED = re.compile(r"following arguments are required: (.+)")


def explain(error: BaseException, options: Iterable[str] = ()) -> str:
    """What to tell the user.

    Args:
        error: of the parser. options: all option strings and keys it accepts (`--trainer.max_steps`).
    """
    text = str(error)
    known = [option.removeprefix("--") for option in options]
    classes = CLASS.findall(text)
    if found := NO_FILE.search(text):
        return f"{found[1]}: no such file"
    if found := NO_CLASS.search(text):
        return f"{found[1]} has no {found[2]!r}" + meant(found[2], dir(sys.modules.get(found[1])))
    if found := GROUP_OPTION.search(text):
        name = f"{found[1]}.{found[2]}"
        if found[1] in INSTEAD:
            return f"no key {found[1]!r}; give {INSTEAD[found[1]]}"
        return f"no key {name!r}" + meant(name, known)
    if found := OPTION.search(text):
        name = found[1].rpartition(".")[2] if classes else found[1]
        owner = f"{classes[-1]} has no argument" if classes else "no key"
        return f"{owner} {name!r}" + meant(name, _arguments(classes[-1]) if classes else known)
    if (found := UNION.search(text)) and (value := GIVEN.search(text)):
        words = [word for block in LITERAL.findall(found[2]) for word in re.findall(r"[\w.+-]+", block)]
        if words:
            what = value[1].strip()
            return f"{found[1]}: expected one of {', '.join(dict.fromkeys(words))}, got {what}" + meant(what, words)
    if found := EXPECTED.search(text):
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", found[1])
        return f"{'.'.join(KEY.findall(text))}: expected {kind}, got {found[2].splitlines()[0].strip()}"
    if found := UNRECOGNIZED.search(text):
        given = found[1].split()[0].removeprefix("--").partition("=")[0]
        if given in INSTEAD:
            return f"no argument --{given}; give {INSTEAD[given]}"
        return f"no argument --{given}" + meant(given, known, "--")
    if found := REQUIRED.search(text):
        return f"{found[1]} missing; give --config RECIPE.yaml (experiments/ has them)"
    if text.startswith("Does not validate") and error.__cause__ is not None:  # a constructor's own error
        return explain(error.__cause__, known)
    return text if "\n" not in text else shortened(error)


def _arguments(class_path: str) -> list[str]:
    """Of a class that is imported already: a message is no reason to import anything."""
    module, _, name = class_path.rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    if not inspect.isclass(made):
        return []
    signature = inspect.signature(made.__init__)
    return [parameter for parameter in signature.parameters if parameter not in ("self", "args", "kwargs")]
