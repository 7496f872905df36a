"""Kimi K2 (arXiv 2507.20534), computed as DeepSeek-V3 is, with tokens of its own."""

from collections.abc import Mapping
from typing import Any

from lichen.arch.families.deepseek_v3.config import exported as exported
from lichen.arch.families.deepseek_v3.config import read as read_deepseek
from lichen.arch.families.deepseek_v3.config import write as write
from lichen.arch.spec import ModelSpec

MODEL_TYPES = ("kimi_k2",)


def read(config: Mapping[str, Any]) -> ModelSpec:
    return read_deepseek(config, MODEL_TYPES[0])
