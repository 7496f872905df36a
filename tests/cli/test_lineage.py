"""`lichen lineage` as a person and as a script meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")


def test_the_whole_tree(run) -> None:
    lines = run("lineage").out.splitlines()
    assert lines[0] == "Techniques"
    assert "├── muon: Muon (Keller Jordan, 2024-12), used by 9" in lines
    assert (
        "│   └── deepseek-v3 (DeepSeek, 2024-12) [code: deepseek_v3 imports parts of deepseek_v2] [report]"
        in [line.rstrip() for line in lines if "[report]" in line]
    )
    then = run("lineage", "--as-of", "2026-04-30").out
    assert "kimi-k3" not in then
    assert "As of 2026-04-30." in then


def test_one_model_with_sources_and_the_license_then(run) -> None:
    out = " ".join(run("lineage", "kimi-k2.6", "--sources").out.replace("│", " ").split())
    assert "[config: text_config.model_type = deepseek_v3] https://huggingface.co/moonshotai/Kimi-K2.6" in out
    assert "then under DeepSeek Model License" in out


def test_one_technique(run) -> None:
    out = run("lineage", "muon").out
    assert "gave rise to" in out
    assert "qk-clip" in out
    assert "kimi-k2 (Moonshot AI, 2025-07) [report]" in out


def test_forms_for_programs(run) -> None:
    content = json.loads(run("lineage", "mla", "--json").out)
    assert {"mla", "kimi-k2.6"} <= {node["name"] for node in content["nodes"]}
    assert ElementTree.fromstring(run("lineage", "--graphml").out).tag.endswith("graphml")
    assert run("lineage", "--mermaid").out.startswith("flowchart LR\n")


def test_risk_shows_what_it_measures(run) -> None:
    out = run("lineage", "--risk", "--as-of", "2026-04-30").out
    assert out.startswith("Risk as of 2026-04-30, over 21 open models")
    for words in ("deepseek-v3", "multi-lab open exchange", "single-lab open weights (Meta)", "700 M users"):
        assert words in out
    assert "transformers 5.23.0" in out
    content = json.loads(run("lineage", "--risk", "--json").out)
    assert 0 < content["exchange"][0]["herfindahl"] < 1
    assert content["obligations"]["llama-4-maverick"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mlaa"], "no model or technique 'mlaa'"),
        (["--as-of", "2099-01-01"], "is in the future"),
        (["--json", "--mermaid"], "choose one"),
        (["mla", "--risk"], "--risk is about the whole graph"),
    ],
)
def test_lineage_refuses(refusal, arguments: list[str], words: str) -> None:
    assert words in refusal("lineage", *arguments)


def test_fits_cost_and_lineage_need_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['lichen', *sys.argv[1:]]\n"
        "from lichen.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'httpx2'} & set(sys.modules)"
    )
    for arguments in (["fits", "kimi-k2"], ["cost", "kimi-k2", "--tokens", "1T"], ["lineage", "--risk"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
