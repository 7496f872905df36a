"""What a benchmark prints: the machine, Markdown tables, and the same as JSON."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lichen.files.atomic import write_text
from lichen.machine.rates import machine


@dataclass
class Report:
    """Prints as it goes; `data` is what the JSON file will hold."""

    name: str
    packages: Sequence[str] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        self.data["machine"] = machine(torch.device("cpu")) | {p: _version(p) for p in self.packages}
        self.data["date"] = datetime.date.today().isoformat()
        self.data["command"] = f"python -m benchmarks.{self.name} {' '.join(sys.argv[1:])}".strip()
        print(f"# {self.name}\n")
        facts = self.data["machine"] | {"date": self.data["date"], "command": self.data["command"]}
        print("; ".join(f"{key}: {value}" for key, value in facts.items()))

    def heading(self, text: str) -> None:
        print(f"\n## {text}\n")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def table(self, key: str, rows: Sequence[dict[str, Any]]) -> None:
        """Print rows that share their keys, and keep them under `key`."""
        self.data[key] = list(rows)
        print(markdown(rows), flush=True)

    def target(
        self, what: str, value: float, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Print and keep a figure and, where a limit is set, whether it is met."""
        if at_most is not None:
            met, wanted = value <= at_most, f"at most {at_most:g}"
        elif at_least is not None:
            met, wanted = value >= at_least, f"at least {at_least:g}"
        else:
            met, wanted = None, ""
        self.data.setdefault("targets", []).append(
            {"what": what, "value": value, "at_most": at_most, "at_least": at_least, "met": met}
        )
        verdict = "" if met is None else f" ({wanted}: {'met' if met else 'NOT met'})"
        self.say(f"- {what}: {value:.3g}{verdict}")

    def end(self, file: Path | None) -> None:
        if file is not None:
            write_text(file, json.dumps(self.data, indent=2) + "\n")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]

    def line(values: Iterable[str]) -> str:
        return (
            "| " + " | ".join(value.ljust(width) for value, width in zip(values, widths, strict=True)) + " |"
        )

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
