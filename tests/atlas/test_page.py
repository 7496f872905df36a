"""The page in a real browser, without network. Without Chromium the tests in it are skipped, and say so."""

import contextlib
import http.client
import itertools
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime

import pytest

from lichen.arch.families import load_spec
from lichen.atlas.advice import advise
from lichen.atlas.catalogue import model as catalogue
from lichen.atlas.lineage import graph as lineage
from lichen.atlas.lineage import risk
from lichen.atlas.market import compare, prices, workloads
from lichen.atlas.page import build
from lichen.atlas.page.data import data
from lichen.atlas.page.server import MOST_CONNECTIONS, PageServer
from lichen.cli.atlas import build as write_page
from lichen.errors import LichenError
from lichen.machine import devices, fits
from tests.atlas.browser import CHROMIUM, Browser

DAY = date(2026, 11, 20)  # a Friday: DeepSeek has peak hours then
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: the page is not tested (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "atlas.html"
    file.write_text(build(DAY), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    chromium.url = page.as_uri()
    chromium.send(
        "Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False
    )
    chromium.open(chromium.url)
    return chromium


def at(browser, fragment):
    browser.open(f"{browser.url}#{fragment}")
    return browser


def test_is_one_small_file_that_admits_no_connection(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2e6
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'")
    assert not re.search("unsafe|http", policy)
    assert not re.search(
        r"<(link|img|iframe)\b|src=|@import|url\(", text.split('<script type="application/json"')[0]
    )


def test_nothing_in_the_data_can_end_its_element(page):
    text = page.read_text(encoding="utf-8")
    content = text.split('id="data">', 1)[1].split("</script>", 1)[0]
    assert "<" not in content
    assert json.loads(content)["as_of"] == str(DAY)


@in_a_browser
def test_draws_itself_without_network_and_without_complaint(browser):
    assert browser.complaints == []
    assert browser.requests == [browser.url]
    sections = browser.evaluate(
        "[...document.querySelectorAll('section')].map((s) => [s.id, s.innerText.length])"
    )
    assert len(sections) >= 7
    assert all(length > 100 for _, length in sections)
    assert browser.evaluate("document.querySelectorAll('#price .point').length") > 5


@in_a_browser
@pytest.mark.parametrize(
    "fragment", ["", "theme=dark", "index=nothing&ratio=x&at=99&device=abacus&columns=none"]
)
def test_any_address_gives_a_page(browser, fragment):
    at(browser, fragment)
    assert browser.complaints == []
    assert browser.evaluate("document.querySelectorAll('#price .point').length") > 5


@pytest.mark.parametrize("day", [DAY, date(2026, 11, 21)], ids=["weekday", "weekend"])
def test_rates_in_the_data_are_those_of_the_price_table(day):
    known, hourly, long_prompts = catalogue.load(as_of=day), 0, 0
    for shown in data(day)["models"]:
        model = known.get(shown["name"])
        offers = {offer["provider"]: offer for offer in shown["offers"]}
        assert shown["provider"] == prices.default_provider(model, day)
        starts = {price.above + more for price in prices.history(model) for more in (0, 1)}
        for provider in prices.providers(model):
            for prompt, hour in itertools.product({0, *starts}, range(24)):
                moment = datetime(day.year, day.month, day.day, hour, tzinfo=UTC)
                expected = prices.price_of(model, provider, moment, prompt)
                offer = offers.get(provider, {"tiers": [{"from": 0, "hours": [None] * 24}]})
                tier = [tier for tier in offer["tiers"] if prompt >= tier["from"]][-1]
                if expected is None:
                    assert tier["hours"][hour] is None
                    continue
                rates = offer["rows"][tier["hours"][hour]]
                cached = expected.input if expected.cache_read is None else expected.cache_read
                assert (rates["input"], rates["output"], rates["cached"]) == (
                    expected.input,
                    expected.output,
                    cached,
                ), (model.name, provider, prompt, hour)
                hourly += expected.hours is not None
                long_prompts += expected.above > 0
    assert long_prompts > 0
    assert (hourly > 0) == (day == DAY)  # DeepSeek's peak hours


@in_a_browser
@pytest.mark.parametrize("name", workloads.STANDARD)
@pytest.mark.parametrize("hour", [2, 12])
def test_costs_are_those_of_the_command_line(browser, name, hour):
    at(browser, f"hour={hour}")
    browser.evaluate(f"document.querySelector('[data-workload=\"{name}\"]').click()")
    work = workloads.STANDARD[name]
    moment = datetime(DAY.year, DAY.month, DAY.day, hour, tzinfo=UTC)
    shown = browser.evaluate(
        "[...document.querySelectorAll('#price .point')].map((p) => { p.dispatchEvent(new Event('focus'));"
        " return [p.dataset.model, document.querySelector('#price .readout').innerText]; })"
    )
    known = catalogue.load(as_of=DAY)
    assert len(shown) > 5
    for model, text in shown:
        expected = workloads.cost(known.get(model), work, None, moment)
        per_million = expected.per_request / (work.input_tokens + work.output_tokens) * 1e6
        told = float(re.search(r": \$([\d.,]+) per million", text).group(1).replace(",", ""))
        assert told == pytest.approx(per_million, rel=0.01, abs=0.006), model
        assert f"at {expected.provider}" in text


@in_a_browser
def test_controls_change_what_is_shown_and_the_address(browser):
    def shown(section):
        return browser.evaluate(f"document.getElementById('{section}').innerHTML")

    pick = (
        "const select = document.querySelector('[name={}]'); select.value = 'kimi-k2.6';"
        " select.dispatchEvent(new Event('change'))"
    )
    for section, action in {
        "price": "document.querySelector('[data-workload=agentic]').click()",
        "cache": "document.querySelector('[data-name=bytes][data-value=reserved]').click()",
        "fits": pick.format("fit"),
        "table": "document.querySelector('[data-name=columns][data-value=memory]').click()",
        "advice": "document.querySelector('[data-name=for][data-value=local]').click()",
        "claims": "document.querySelector('[data-name=verdict][data-value=contradicted]').click()",
        "history": pick.format("price"),
    }.items():
        before, address = shown(section), browser.evaluate("location.hash")
        browser.evaluate(f"(() => {{ {action} }})()")
        assert shown(section) != before, section
        assert browser.evaluate("location.hash") != address, section
    assert browser.complaints == []
    link = browser.evaluate("location.href")
    views = {section: shown(section) for section in ("cache", "fits", "table", "advice", "claims", "history")}
    browser.open(link)
    assert {section: shown(section) for section in views} == views


@in_a_browser
def test_what_fits_is_what_the_account_says(browser):
    at(browser, "device=h200&devices=8&fit=kimi-k2.6")
    rows = browser.evaluate(
        "[...document.querySelectorAll('#fits tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"
    )
    spec, machine = load_spec("kimi-k2.6"), devices.parse("h200:8")
    for row, quant in zip(rows, (None, "bf16", "fp8", "q8", "q6", "q4"), strict=True):
        for cell, context in zip(row[2:5], (8192, 32768, 131072), strict=True):
            most = fits.fits(spec, machine, quant, context).most_sequences
            assert ("weights too big" in cell) if most is None else f"up to {most:,}" in cell, (
                quant,
                context,
            )


@in_a_browser
def test_table_sorts_and_says_what_is_unknown(browser):
    at(browser, "columns=size")

    def column():
        return browser.evaluate(
            "[...document.querySelectorAll('#table tbody tr')].map((r) => r.children[1].innerText)"
        )

    def billions(texts):
        sizes = {"M": 1e6, "B": 1e9, "T": 1e12}
        return [float(t.split()[0]) * sizes[t.split()[1][0]] for t in texts if t != "unknown"]

    browser.evaluate("document.querySelector('#table [data-sort]').click()")
    up = column()
    assert (billions(up), up[-1]) == (sorted(billions(up)), "unknown")
    browser.evaluate("document.querySelector('#table [data-sort]').click()")
    down = column()
    assert (billions(down), down[-1]) == (sorted(billions(down), reverse=True), "unknown")
    browser.evaluate("document.querySelector('#table td button').click()")
    assert browser.evaluate("document.querySelectorAll('#table .readout a').length") > 0


@in_a_browser
def test_the_table_can_be_taken_along_as_a_file(browser, tmp_path):
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))

    def saved(ending):
        browser.evaluate(f"document.querySelector('[data-save={ending}]').click()")
        file = tmp_path / f"lichen-atlas-{DAY}.{ending}"
        until = time.monotonic() + 60
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return file.read_text(encoding="utf-8")

    known, moment = catalogue.load(as_of=DAY), prices.moment(DAY, None)
    rows = compare.compare(list(known.models.values()), known, moment)
    titles = {model.name: model.title for model in known.models.values()}
    assert saved("csv") == compare.to_csv(rows, titles, with_sources=True)
    assert json.loads(saved("json")) == json.loads(compare.to_json(rows, titles, moment))
    assert browser.complaints == []


@in_a_browser
@pytest.mark.parametrize(
    ("fragment", "keeps"),
    [
        ("", lambda edge: True),
        ("technique=muon", lambda edge: "muon" in (edge.ancestor, edge.descendant)),
        ("grade=config", lambda edge: edge.evidence == "config"),
        ("technique=mla&grade=code", lambda edge: edge.ancestor == "mla" and edge.evidence == "code"),
    ],
)
def test_lineage_shows_the_edges_that_were_chosen(browser, fragment, keeps):
    at(browser, fragment)
    edges = lineage.load(catalogue.load(as_of=DAY)).edges
    expected = [(edge.ancestor, edge.descendant) for edge in edges if keeps(edge)]
    shown = browser.evaluate(
        "[...document.querySelectorAll('.edge')].map((e) => [e.dataset.ancestor, e.dataset.descendant])"
    )
    assert sorted(map(tuple, shown)) == sorted(expected)
    assert shown


@in_a_browser
def test_a_node_tells_its_edges_and_their_sources(browser):
    at(browser, "technique=muon")
    browser.evaluate("document.querySelector('[data-node=kimi-k2]').dispatchEvent(new Event('focus'))")
    told = browser.evaluate("document.querySelector('#lineage .readout').innerText")
    assert "Kimi K2 uses Muon (report" in told
    assert browser.evaluate("document.querySelectorAll('.edge.lit').length") == 1


@in_a_browser
def test_risk_is_that_of_the_command_line(browser):
    known = catalogue.load(as_of=DAY)
    found = risk.measure(lineage.load(known), known, DAY)
    shares = browser.evaluate(
        "[...document.querySelectorAll('#risk table')[0].tBodies[0].rows].map((r) => r.cells[2].innerText)"
    )
    assert [int(share.split()[0]) for share in shares] == [
        pytest.approx(100 * root.share, abs=0.51) for root in found.roots
    ]


@in_a_browser
def test_advice_is_that_of_the_command_line(browser):
    at(browser, "for=agent")
    known = catalogue.load(as_of=DAY)
    expected = advise.advise("agent", advise.Constraints(), known, datetime(2026, 11, 20, 12, tzinfo=UTC))
    titles = browser.evaluate("[...document.querySelectorAll('#advice .place h3')].map((h) => h.innerText)")
    assert titles == [place.title for place in expected.ranking]


@in_a_browser
def test_fits_a_phone(browser):
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
    )
    at(browser, "")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


@in_a_browser
def test_follows_the_system_into_the_dark_until_told_otherwise(browser):
    def paper():
        browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return browser.evaluate("getComputedStyle(document.body).backgroundColor")

    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = paper()
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = paper()
    assert dark != light
    browser.evaluate("document.getElementById('theme').click()")
    assert paper() == light
    browser.send("Emulation.setEmulatedMedia", features=[])


@in_a_browser
def test_every_control_has_a_name_and_is_reached_by_keyboard(browser):
    nameless = browser.evaluate("""[...document.querySelectorAll('button, select, input')].filter((control) =>
        !(control.innerText.trim()
            || control.ariaLabel || control.labels?.length)).map((c) => c.outerHTML)""")
    assert nameless == []
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip"


@in_a_browser
def test_a_day_before_all_models_gives_a_page(browser, tmp_path):
    file = tmp_path / "early.html"
    file.write_text(build(date(2020, 1, 1)), encoding="utf-8")
    browser.open(file.as_uri())
    assert browser.complaints == []
    assert "No test has two scores on 2020-01-01" in browser.evaluate("document.body.innerText")


def test_a_folder_is_no_place_for_the_page(tmp_path):
    with pytest.raises(LichenError, match=r"is a folder: name a file in it, like .*atlas\.html"):
        write_page(out=tmp_path)


@pytest.fixture
def served(page):
    """A running server of the page, given the address that it listens on."""

    @contextlib.contextmanager
    def served(host="127.0.0.1"):
        with PageServer(page.read_text(encoding="utf-8"), host, 0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return served


def ask(server, method="GET", path="/", host="localhost"):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer, answer.read()


def test_serves_the_page_and_nothing_else(served, page):
    with served() as server:
        answer, content = ask(server)
        assert content == page.read_bytes()
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Referrer-Policy") == "no-referrer"
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content.decode()).group(1)
        assert answer.getheader("Content-Security-Policy") == f"{policy}; frame-ancestors 'none'"
        head, nothing = ask(server, "HEAD")
        assert (head.status, nothing) == (200, b"")
        assert head.getheader("Content-Length") == str(len(content))
        assert ask(server, path="/etc/passwd")[0].status == 404
        assert ask(server, "POST")[0].status == 501
        with pytest.raises(LichenError, match=f"port {server.server_port}: address already in use"):
            PageServer("", "127.0.0.1", server.server_port)


@pytest.mark.parametrize(
    ("listens", "host", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:8642", True),
        ("127.0.0.1", "LOCALHOST:8642", True),
        ("127.0.0.1", "[::1]:9000", True),  # through a tunnel
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example:8642", False),
        ("127.0.0.1", "192.168.1.2:8642", False),
        ("127.0.0.1", "[::1", False),
        ("::1", "[::1]:8642", True),
        ("::1", "evil.example", False),
        ("0.0.0.0", "192.168.1.2:8642", True),
        ("0.0.0.0", "evil.example:8642", False),
        ("localhost", "localhost", True),
    ],
)
def test_a_name_that_somebody_else_points_here_is_not_answered(served, listens, host, answered):
    """DNS rebinding: a site's own name, which leads to this machine."""
    with served(listens) as server:
        answer, content = ask(server, host=host)
        assert answer.status == (200 if answered else 421)
        assert (b"kimi-k2.6" in content) == answered
        assert server.is_local == (listens != "0.0.0.0")


def test_requests_that_are_never_sent_to_their_end_keep_nobody_out(served, monkeypatch, capfd):
    with served() as server:
        held = [socket.create_connection(server.server_address) for _ in range(MOST_CONNECTIONS + 20)]
        for each in held:
            with contextlib.suppress(OSError):  # the first are gone already
                each.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert ask(server)[0].status == 200
        assert threading.active_count() < MOST_CONNECTIONS + 20
        monkeypatch.setattr("lichen.atlas.page.server.LONGEST_CONNECTION", 0.0)
        for each in held:
            each.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
            each.close()
        gone = socket.create_connection(server.server_address)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        gone.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gone.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, ""])
def test_what_it_cannot_listen_on(host):
    with pytest.raises(LichenError, match=r"cannot listen on .*; --host and --port choose another address"):
        PageServer("", host, 0)


@in_a_browser
def test_the_page_draws_itself_from_the_server(browser, served):
    with served() as server:
        browser.open(server.url)
        assert browser.complaints == []
        assert browser.evaluate("document.querySelectorAll('#price .point').length") > 5


def test_ctrl_c_ends_the_server():
    command = [sys.executable, "-m", "lichen", "atlas", "serve", "--port", "0", "--as-of", str(DAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert "http://127.0.0.1:" in server.stdout.readline()
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
    assert (server.returncode, errors) == (0, "")
