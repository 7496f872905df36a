"""Vega-Lite charts to SVG and PNG, in a process of their own: where memory is short, the library that draws
ends its process instead of raising, and must not take a finished training with it."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from lichen.errors import LichenError


def draw(charts: Sequence[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """The SVG text and the PNG file of each chart. Raises LichenError with what kept one from being drawn."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lichen.train.report.draw"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(charts).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = re.search(r"^[# ]*(\w[\w ]+: .+)", done.stderr.decode(errors="replace"), re.MULTILINE)
        raise LichenError(f"drawing ended with status {done.returncode}{f' ({said[1]})' if said else ''}")
    return [(svg, base64.b64decode(png)) for svg, png in json.loads(done.stdout)]


def _main() -> None:
    """What `draw` starts. It ends with the process that asked: its pipes are all that it waits for."""
    import vl_convert

    drawn = []
    for chart in json.load(sys.stdin):
        png = vl_convert.vegalite_to_png(chart, scale=2)
        drawn.append((vl_convert.vegalite_to_svg(chart), base64.b64encode(png).decode()))
    json.dump(drawn, sys.stdout)


if __name__ == "__main__":
    _main()
