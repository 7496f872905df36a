import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lichen.errors import LichenError
from lichen.train.metrics import MetricsLog, Sample
from lichen.train.report.draw import draw
from lichen.train.report.plots import MAX_POINTS, plots, smoothed
from lichen.train.report.write import write_report
from lichen.train.run import start_run


@pytest.fixture
def report(make_recipe, metrics_of, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "a <run>")
    with MetricsLog(run.folder, 0) as log:
        for step in range(1, 31):
            metrics = replace(metrics_of(step), max_logit=float(step), clipped_heads=0)
            if step == 30:
                samples = (Sample("def <T>(", "x) -> '&':\n    pass"),)
                metrics = replace(metrics, validation_loss=1.5, bits_per_byte=1.875, samples=samples)
            log.append(metrics)
    write_report(run)
    return run


def test_the_page_stands_alone_and_says_what_happened(report):
    page = (report.folder / "report.html").read_text()

    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attributes: list) -> None:
            self.tags.append(tag)
            for name, value in attributes:
                assert name not in ("src", "srcset"), (tag, value)
                assert name != "href" or (value or "").startswith("#"), (tag, value)

        def handle_data(self, data: str) -> None:
            self.text += data

    checker = Checker()
    checker.feed(page)
    assert not {"script", "link", "img", "iframe"} & set(checker.tags)
    assert not re.search(r"@import|url\((?!#)", page)
    assert checker.tags.count("svg") == len(list((report.folder / "plots").iterdir())) == 6
    for words in (
        "a <run>",
        "1.875",
        "def <T>(x) -> '&':\n    pass",
        "muonclip",
        "routed experts",
        "processor",
    ):
        assert words in checker.text, words
    assert 'model_type = "deepseek_v3"' in checker.text
    for title in ("Loss", "Learning rate", "Expert load", "Largest attention logit"):
        assert title in page


def test_the_figures_are_pngs_of_a_readable_size(report):
    for path in (report.folder / "plots").iterdir():
        raw = path.read_bytes()
        assert raw.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", raw[16:24])
        assert width > 800
        assert height > 400


def test_a_dense_model_has_no_balance_plot(metrics_of):
    dense = [replace(metrics_of(step), load_worst=None, load_mean=None) for step in (1, 2, 3)]
    assert [plot.name for plot in plots(dense, None)] == ["loss", "learning_rate", "gradient_norm", "speed"]


def test_one_step_can_be_drawn(metrics_of):
    for svg, _ in draw([plot.spec for plot in plots([metrics_of(1)], None)]):
        assert svg.startswith("<svg")


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(LichenError, match=r"ended with status 1 \(\w*Error: "):
        draw([{"data": {"values": []}, "mark": "no-such-mark"}])


def test_nothing_outlives_a_process_that_is_killed_while_it_draws(metrics_of):
    charts = [plot.spec for plot in plots([metrics_of(1), metrics_of(2)], None)]
    import_draw = "import json; from lichen.train.report.draw import draw"
    script = f"{import_draw}; draw(json.loads({json.dumps(charts)!r}) * 9)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    _wait(lambda: len(_living(process.pid)) > 1)
    process.kill()
    process.wait()
    _wait(lambda: not _living(process.pid))


def _living(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended just now
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_long_run_keeps_its_shape_in_few_points(metrics_of):
    long = [replace(metrics_of(step), lr=step * 1e-6) for step in range(1, 5001)]
    curve = next(plot for plot in plots(long, None) if plot.name == "learning_rate").spec["layer"][0]["data"][
        "values"
    ]
    assert len(curve) <= MAX_POINTS
    for point in curve:
        assert point["value"] == pytest.approx(point["step"] * 1e-6, abs=1e-5)


def test_smoothing_keeps_lines_straight_and_has_no_spike_at_the_end():
    line = [0.5 * step for step in range(200)]
    assert smoothed(line)[:-5] == pytest.approx(line[:-5])
    assert smoothed([]) == []
    noisy = [(-1.0) ** step for step in range(200)]
    assert max(map(abs, smoothed(noisy)[20:])) < 0.2
