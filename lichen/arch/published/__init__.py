"""Published models that ship with the package: their configs, with source and date."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lichen.arch.spec import Storage


@dataclass(frozen=True)
class NamedModel:
    """A `config.json` as it stood at `source` on `date` (ISO 8601), without its `quantization_config`.

    `storage` is what that said: how the weights beside it are packed, None where they are not.
    """

    name: str
    source: str
    date: str
    config: dict[str, Any]
    storage: Storage | None = None


@cache
def named_models() -> dict[str, NamedModel]:
    """All of them, by name."""
    entries = [entry for entry in files(__name__).iterdir() if entry.name.endswith(".json")]
    models = [NamedModel(**json.loads(entry.read_text(encoding="utf-8"))) for entry in entries]
    return {model.name: model for model in sorted(models, key=lambda model: model.name)}
