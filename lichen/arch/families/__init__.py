"""One folder per family, found by itself; and the way from a name or path to a spec.

config.py     MODEL_TYPES; `read`, the spec of a `config.json` or of the text tower in it; `write`, the way
              back, where specs hold all that a config says; `exported`, where other programs load such a
              model. All raise SpecError for what they cannot express
tensors.py    NAMES: how checkpoints name tensors, where it is not as in memory
tokens.py     TOKENS: special tokens; SPLITS: where their tokenizer cuts a text before it merges
chat.jinja    how they write a conversation
"""

import pkgutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lichen.arch.families.fields import shown
from lichen.arch.families.foreign import PACKING, nearest, packing_of, sizes, what_it_is
from lichen.arch.families.tensors import TensorNames
from lichen.arch.families.tokens import SpecialTokens
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError, SpecError, did_you_mean
from lichen.files.bounded import as_object, parse_json, read_bytes, read_json
from lichen.files.sealed import MANIFEST, find_damage_of

LARGEST_CONFIG = 16 * 2**20


# ------------------------------------------------------------------------------------------- the folders


def _beside(family: str, file: str) -> Any:
    """The module `file`.py in the folder of `family`, None where it has none."""
    name = f"{__name__}.{family}.{file}"
    known = family in _folders() and find_spec(name)
    return import_module(name) if known else None


@cache
def _folders() -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.ispkg))


@cache
def _configs() -> dict[str, Any]:
    """model_type -> the module that reads such a `config.json`."""
    modules = (_beside(family, "config") for family in _folders())
    return dict(sorted((kind, module) for module in modules for kind in module.MODEL_TYPES))


def tensor_names(model_type: str) -> TensorNames:
    """How checkpoints of such a model name their tensors."""
    folder = _configs()[model_type].__package__.rpartition(".")[2]
    return getattr(_beside(folder, "tensors"), "NAMES", TensorNames())


def token_families() -> tuple[str, ...]:
    """The families whose special tokens are known, the one first that serves where none is named."""
    found = {family: module for family in _folders() if (module := _beside(family, "tokens"))}
    return tuple(sorted(found, key=lambda family: not getattr(found[family], "IS_DEFAULT", False)))


def special_tokens(family: str) -> SpecialTokens:
    """Raises LichenError for a family whose special tokens are not known."""
    found = _beside(family, "tokens")
    if found is None:
        known = ", ".join(token_families())
        raise LichenError(f"no special tokens are known for family {family!r}; known: {known}")
    return found.TOKENS


def text_splits(family: str) -> tuple[str, ...]:
    """The published regular expressions, in Oniguruma's syntax, that cut a text one after another: what one
    matches, and what lies between, is a piece. No token of `family` reaches from one piece into another."""
    special_tokens(family)
    return _beside(family, "tokens").SPLITS


def chat_template(family: str) -> str:
    """How the special tokens of `family` write a conversation: the Jinja source that readers of Hugging Face
    folders render from `messages`, `tools` and `add_generation_prompt` in the form of OpenAI's chat API.

    It gives the model no name that the conversation does not give it.
    """
    return (resources.files(f"{__name__}.{family}") / "chat.jinja").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- config.json


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a `config.json`. Raises SpecError naming the field, its value and what is supported."""
    if (reader := _reader(config)) is not None:
        return reader.read(config)
    if "model_type" in config:
        raise SpecError(f"model_type is {shown(config['model_type'])}; supported: {', '.join(_configs())}")
    if other := what_it_is(config):
        raise SpecError(f"this is {other}, and no model's config.json")
    raise SpecError(f"model_type is missing; supported: {', '.join(_configs())}")


def _reader(config: Mapping[str, Any]) -> Any:
    """The module that reads such a config, None where there is none."""
    model_type = config.get("model_type")
    return _configs().get(model_type) if isinstance(model_type, str) else None


def can_write(family: str) -> bool:
    """Whether the family's specs hold all that its configs say; the others are only accounted."""
    return hasattr(_configs().get(family), "write")


def write_config(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a spec, fields in alphabetical order as in published checkpoints.

    Raises SpecError for a model that the spec's family cannot express, or whose family is only accounted.
    """
    if not can_write(spec.family):
        families = ", ".join(filter(can_write, _configs()))
        raise SpecError(f"family is {shown(spec.family)}; configs can be written of {families}")
    return dict(sorted(_configs()[spec.family].write(spec).items()))


def for_export(spec: ModelSpec) -> ModelSpec:
    """The same model under the model_type that transformers, vLLM and llama.cpp all load.

    Raises SpecError for a model that transformers would load without a word and compute differently.
    """
    exported = getattr(_configs().get(spec.family), "exported", None)
    if exported is None:
        raise SpecError(f"{spec.family} can be accounted but not yet trained, so there is nothing to export")
    return exported(spec)


def load_spec(name_or_path: str | Path, others: Iterable[str] = ()) -> ModelSpec:
    """The spec of a named model, of a `config.json`, or of the one in a folder.

    The name of a shipped model wins over a file of that name; "./NAME" or a Path always means the file.
    `others`: names that the caller knows, to offer the nearest of to somebody who mistypes one.
    Raises SpecError for an unknown name, a file that is not a config, one that cannot be expressed, or a
    folder that Lichen wrote and whose config.json has changed since.
    """
    if isinstance(name_or_path, str) and name_or_path in named_models():
        return _shipped(name_or_path)
    path = Path(name_or_path)
    try:
        if path.is_dir():
            folder, path = path, path / "config.json"
            if not path.exists():
                raise SpecError(f"{folder} is a folder without a config.json{_beside_config(folder)}")
            _require_as_written(path)
        elif not path.exists() and not path.is_symlink():
            name, names = str(name_or_path), sorted({*named_models(), *others})
            known = f"models by name: {', '.join(names)}"
            hint = did_you_mean(name.rpartition("/")[2], names, known, cutoff=0.6)  # moonshotai/Kimi-K2.6
            raise SpecError(f"{name}: no such file, folder or model; {hint}")
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    try:
        config = _read_object(path)
        packing = path.with_name(PACKING)
        if path.name != PACKING and config.get("quantization_config") is None and packing.exists():
            config["quantization_config"] = packing_of(_read_object(packing))
    except LichenError as error:
        needed = "" if path.name == "config.json" else "; name a config.json, or the folder with one"
        raise SpecError(f"{error}{needed}") from error
    try:
        return read_config(config)
    except SpecError as error:
        told = [str(error), sizes(config), None if _reader(config) else nearest(config)]
        raise SpecError(f"{path}: {'; '.join(filter(None, told))}") from error


def _require_as_written(config: Path) -> None:
    """Compare it with what an export, a run or a checkpoint, whose model/ it is in, vouches for."""
    folder = config.absolute().parent
    seals = [(folder, "lichen.json", "config.json")]
    if (folder / "recipe.toml").exists():
        seals.append((folder, "run.json", "config.json"))
    if (folder.parent / "state.json").exists():
        seals.append((folder.parent, MANIFEST, f"{folder.name}/config.json"))
    for root, seal, name in seals:
        if not (root / seal).exists():
            continue
        try:
            said = read_json(root / seal)
            if said.get("format_version") == 1 and not isinstance(said.get("files"), dict):
                continue  # of an earlier version, which did not vouch for it
            reason = find_damage_of(root, name, seal)
        except LichenError as error:
            raise SpecError(str(error)) from error
        if reason:
            raise SpecError(
                f"{config.parent} is not as it was written: {reason}. Bring the file back from a copy; or, "
                f"to count what it says now, name {config} itself"
            )


def _beside_config(folder: Path) -> str:
    """What else in `folder` belongs to a model, to whoever misses its config.json."""
    found = []
    for path in sorted(folder.glob("*_config.json")):
        with suppress(LichenError):
            found.append(what_it_is(_read_object(path)))
    there = " and ".join(filter(None, found))
    return there and f", but with {there}: put the model's config.json beside it"


def _read_object(path: Path) -> dict[str, Any]:
    return as_object(parse_json(read_bytes(path, LARGEST_CONFIG), str(path)), str(path))


@cache
def _shipped(name: str) -> ModelSpec:
    named = named_models()[name]
    return replace(read_config(named.config), storage=named.storage)
