"""YAML files that people write: safe loading, and errors that say file, line and field."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lichen.errors import LichenError, did_you_mean
from lichen.files.bounded import DEEPEST, check_bounds, read_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PACKAGE = Path(__file__).parents[1]

M = TypeVar("M", bound=BaseModel)
Location = Sequence[str | int]

# libyaml's parser where PyYAML was built with it: ten times the speed of the one in Python.
BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(BaseLoader):
    """Refuses a key that is written twice, where plain YAML would silently keep the last, and says the line
    of a value that Python cannot build, such as the 13th month."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            problem = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is written twice", key.start_mark
                    )
                seen.add(key.value)
        return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`. Raises LichenError, with the line, for anything else."""
    try:
        text = read_text(path)
        if PACKAGE not in path.parents:
            _refuse_depth(text, path)
        content = yaml.load(text, _Loader)
        if PACKAGE not in path.parents:
            check_bounds(content, str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise LichenError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        found = (
            "nothing" if content is None else "a list" if isinstance(content, list) else repr(content)[:40]
        )
        raise LichenError(f"{path}: expected `field: value` lines, found {found}")
    return content


def _refuse_depth(text: str, path: Path) -> None:
    """Raises LichenError for nesting that no file needs: libyaml's composer calls itself once for each level,
    and 300,000 of them end the process. Its events come one after another."""
    events: Iterator[Any] = yaml.parse(text, BaseLoader)
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise LichenError(f"{path}:{event.start_mark.line + 1}: nested deeper than {DEEPEST} levels")


def parse(model: type[M], content: dict[str, Any], path: Path) -> M:
    """`content`, read from `path`, as `model`. Raises LichenError naming file, line and field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # A list with one bad entry is also called too short: what is said of the entry is enough.
        told = error.errors()
        errors = [each for each in told if each["type"] != "too_short" or not each["input"]] or told
        # A field that does not exist is often why another one is missing.
        errors.sort(key=lambda each: each["type"] != "extra_forbidden")
        first, more = errors[0], len(errors) - 1
        others = f" (and {more} more)" if more else ""
        location = first["loc"]
        if isinstance(first["input"], dict) and location and location[-1] in first["input"].values():
            location = location[:-1]  # the kind of a record, where the record as a whole is wrong
        raise field_error(path, location, _problem(first, model), others) from None


def _problem(error: ErrorDetails, model: type[BaseModel]) -> str:
    """pydantic's finding in the words of someone who writes YAML."""
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(error["loc"][-1]), model.model_fields, "", cutoff=0.6)
        return "; ".join(filter(None, ("there is no such field", hint)))
    discriminator = str(error.get("ctx", {}).get("discriminator", "")).strip("'")
    if error["type"] == "union_tag_invalid":
        kind, kinds = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        hint = did_you_mean(kind, kinds, f"there are {', '.join(kinds)}", cutoff=0.6)
        return f"no {discriminator} {kind!r}; {hint}"
    if error["type"] == "union_tag_not_found":
        return f"the field {discriminator!r} is missing"
    words = {
        "missing": "missing",
        "tuple_type": "expected a list, like `- {value: ..., source: ...}`",
        "model_type": "expected a mapping, like {value: ..., source: ...}",
    }
    if error["type"] == "too_short":
        least = error["ctx"]["min_length"]
        return f"expected at least {least} {'entry' if least == 1 else 'entries'}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return words.get(error["type"], error["msg"][:1].lower() + error["msg"][1:])


def field_error(path: Path, location: Location, problem: str, others: str = "") -> LichenError:
    """An error about the field at `location` of the YAML file `path`, with its line."""
    line, field = _place(path, location)
    return LichenError(f"{path}:{line}: {field}: {problem}{others}")


def replaced(path: Path, field: str, value: str) -> str:
    """The text of the YAML file `path`, a mapping with `field`, with `value` there and the rest as it is."""
    text = path.read_text(encoding="utf-8-sig")  # marks do not count a byte order mark
    root: Any = yaml.compose(text, BaseLoader)
    old = next(node for key, node in root.value if key.value == field)
    before, after = text[: old.start_mark.index], text[old.end_mark.index :]
    ended = "\n" if text[: old.end_mark.index].endswith("\n") else ""  # a block's mark is on the next line
    return f"{before}{json.dumps(value, ensure_ascii=False)}{ended}{after}"


def _place(path: Path, location: Location) -> tuple[int, str]:
    """The line of the deepest part of `location` that the file has, counted from 1, and the field in words.

    Parts that the file lacks are left out, but for the last: pydantic puts the kind of a record among them.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"), BaseLoader)
    line, field = 0, []
    for index, part in enumerate(location):
        below = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, below = key.start_mark.line, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            below = node.value[part]
            line = below.start_mark.line
        if below is not None or index == len(location) - 1:
            field.append(str(part))
        node = below or node
    return line + 1, ".".join(field)
