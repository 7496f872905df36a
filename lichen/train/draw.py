"""Vega-Lite charts to SVG and PNG, in a process of their own: where memory is short, the library that draws
ends its process instead of raising, and must not take a finished training with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import vl_convert


def draw(charts: Sequence[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """The SVG text and the PNG file of each chart. Raises whatever kept them from being drawn."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_be_quiet) as process:
        return list(process.map(_draw, charts))


def _be_quiet() -> None:
    """Last words and Ctrl-C are the business of the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _draw(chart: dict[str, Any]) -> tuple[str, bytes]:
    return vl_convert.vegalite_to_svg(chart), vl_convert.vegalite_to_png(chart, scale=2)
