"""`lichen atlas`, `lichen price` and `lichen compare` as a person and as a script meet them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.arch.families import load_spec, write_config
from lichen.atlas.market.prices import table

FILE = """\
name: my-model
title: My model
lab: Me
country: France
family: Mine
sources:
  card: {url: "https://example.org/card", date: 2026-10-01}
release:
  - {value: 2026-10-01, source: card}
prices:
  - {provider: me, input: 1, output: 2, since: 2026-10-01, source: card}
"""


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")


# ------------------------------------------------------------------------------------------------ atlas


def test_list_names_the_models_of_a_day(run):
    today, then = run("atlas", "list"), run("atlas", "list", "--as-of", "2026-04-30")
    assert "kimi-k3" in today.out
    assert "kimi-k3" not in then.out
    assert "As known on 2026-04-30" in then.out
    content = json.loads(run("atlas", "list", "--json").out)
    assert content["models"]["gpt-5.5"]["total_parameters"] is None
    assert content["models"]["deepseek-v3"]["total_parameters"] == 671_000_000_000


def test_show_gives_every_fact_with_its_source_and_date(run):
    out = run("atlas", "show", "kimi-k2.6").out
    assert (
        "license: Modified MIT\n    https://huggingface.co/moonshotai/Kimi-K2.6/blob/main/LICENSE, 2026-"
        in out
    )
    assert "more than 100 M users a month or more than 20 M USD of revenue a month" in out
    assert "  differs: 1.6 T\n" in out
    assert "cache at 262,144 tokens: 17.16 GiB" in out
    assert "HLE full with tools: 54% (thinking)" in out
    assert "Price table: genai-prices" in out


def test_show_of_a_closed_model_says_unknown(run):
    out = run("atlas", "show", "gpt-5.5").out
    assert "total parameters: unknown" in out
    assert "not published" in out
    assert "Computed" not in out


def test_show_as_json_holds_facts_scores_costs_and_prices(run):
    content = json.loads(run("atlas", "show", "deepseek-v4-pro", "--as-of", "2026-04-30", "--json").out)
    assert content["release"][0]["value"] == "2026-04-24"
    assert content["computed"]["parameters, counted"]["value"] == pytest.approx(1.573e12, rel=0.01)
    assert {price["provider"] for price in content["price_history"]} >= {"deepseek", "deepseek-list"}
    assert all(score["date"] <= "2026-04-30" for score in content["scores"])


def test_a_users_model_is_checked_added_and_compared(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    assert run("atlas", "check", file).out == f"{file}: good\n"
    assert "is kept in" in run("atlas", "add", file).out
    assert "my-model" in run("atlas", "list").out
    assert "1 / 2 / no cache price" in run("compare", "my-model", "gpt-5.5").out


def test_a_users_model_with_a_config_is_accounted_and_fitted(run, refusal, tmp_path):
    file, folder = tmp_path / "mine.yaml", tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(write_config(load_spec("llama-3.1-8b"))))
    file.write_text(FILE)
    run("atlas", "add", file)
    assert "no config of it is named" in refusal("account", "my-model")
    file.write_text(FILE + "spec_name: weights\n")
    run("atlas", "add", file)
    assert run("account", "my-model").out.startswith("my-model: 8.030 B parameters")
    assert "GiB of weights (bf16)" in run("fits", "my-model", "--gpu", "rtx5090").out
    assert "did you mean my-model?" in refusal("account", "my-modell")


def test_brackets_in_a_users_words_are_shown_as_they_are(run, tmp_path):
    file = tmp_path / "m.yaml"
    title, provider = "My [/] model", "m[/x]"
    file.write_text(
        FILE.replace("title: My model", f'title: "{title}"').replace(
            "provider: me", f'provider: "{provider}"'
        )
        + f'license:\n  - {{value: "[/] {title}", source: card}}\n'
    )
    assert run("atlas", "add", file).status == 0
    for command in (["compare", "my-model"], ["atlas", "list"], ["atlas", "show", "my-model"]):
        assert title in run(*command).out
    assert provider in run("price", "my-model").out


def test_a_bad_file_is_refused_in_a_sentence(refusal, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.replace("country", "land"))
    assert f"{file}:4: land: there is no such field" in refusal("atlas", "check", file)
    assert f"{file}:4: land: there is no such field" in refusal("atlas", "add", file)
    file.write_text(FILE + "price_refs:\n  - {provider: moonshotai, model_id: kimi-k2.66}\n")
    assert "did you mean" in refusal("atlas", "check", file)
    assert "there is no file" in refusal("atlas", "check", tmp_path / "none.yaml")


def a_socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:  # its names are short
        listener.bind(path.name)


CONTEXT = "context:\n  - {{value: {}, source: card}}"
DAMAGES = {
    "nothing": lambda path: path.touch(),
    "not YAML": lambda path: path.write_text("name: ["),
    "not text": lambda path: path.write_bytes(bytes(range(256))),
    "a list": lambda path: path.write_text("- 1"),
    "cut": lambda path: path.write_text(FILE[:200]),
    "a wrong field": lambda path: path.write_text(FILE.replace("country", "land")),
    "a name that is taken": lambda path: path.write_text(FILE.replace("my-model", "kimi-k2.6")),
    "nested": lambda path: path.write_text("a: " + "[" * 5000 + "]" * 5000),
    "many digits": lambda path: path.write_text(FILE + CONTEXT.format("9" * 5000)),
    "hexadecimal": lambda path: path.write_text(FILE + CONTEXT.format("0x" + "f" * 99)),
    "sexagesimal": lambda path: path.write_text(FILE.replace("My model", "1:" * 5000 + "1")),
    "an endless name": lambda path: path.write_text(FILE + f"spec_name: {'x' * 5000}"),
    "no such config": lambda path: path.write_text(FILE + "spec_name: weights"),
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a folder": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to("gone.yaml"),
    "a link outside": lambda path: path.symlink_to(Path(__file__)),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_file_of_the_users_own_stops_nobody_who_asks_about_others(run, refusal, tmp_path, damage):
    folder = tmp_path / "config" / "lichen" / "atlas"
    folder.mkdir(parents=True)
    damage(folder / "broken.yaml")
    (folder / "sound.yaml").write_text(FILE.replace("my-model", "sound"))
    with pytest.warns(UserWarning, match=rf"left out: .*{folder / 'broken.yaml'}") as told:
        assert "sound" in run("atlas", "list").out
    assert len(told) == 1
    with pytest.warns(UserWarning, match="left out"):
        assert run("compare", "sound", "gpt-5.5").status == 0
    for verb in ("account", "price"):
        with pytest.warns(UserWarning, match="left out"):
            assert str(folder / "broken.yaml") in refusal(verb, "broken")
    with pytest.warns(UserWarning, match="left out"):
        assert "broken.yaml" in refusal("atlas", "check", folder / "broken.yaml")


@pytest.mark.parametrize("command", ["claims", "atlas build --out {}/atlas.html", "lineage --risk"])
def test_what_is_left_out_is_told_once_by_what_asks_about_several_days(run, tmp_path, command):
    folder = tmp_path / "config" / "lichen" / "atlas"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").touch()
    with pytest.warns(UserWarning, match="left out") as told:
        assert run(*command.format(tmp_path).split()).status == 0
    assert len(told) == 1


@pytest.mark.parametrize(
    "make",
    [Path.touch, os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("gone/x")],
    ids=["a file", "a FIFO", "a loop", "a link to nowhere"],
)
def test_what_is_in_the_place_of_the_users_folder_is_named(run, refusal, tmp_path, make):
    (tmp_path / "mine.yaml").write_text(FILE)
    folder = tmp_path / "config" / "lichen" / "atlas"
    folder.parent.mkdir(parents=True)
    make(folder)
    with pytest.warns(UserWarning, match=f"left out: {folder} is no folder that can be read"):
        assert run("atlas", "show", "kimi-k2.6").status == 0
    with pytest.warns(UserWarning, match="left out"):
        told = refusal("atlas", "add", tmp_path / "mine.yaml")
    assert f"{folder} is for the folder of your own models" in told


# ------------------------------------------------------------------------------------------------ price


def test_price_shows_hours_ratios_and_the_date_of_the_table(run):
    out = run("price", "deepseek-v4-pro", "--as-of", "2026-11-23", "--at", "02:00").out
    assert "01-04, 06-10 UTC, Mon-Fri (in force)" in out
    assert "1/5.68" in out
    assert f"newest entry {table()[1]}" in out


def test_price_as_json_is_exact(run):
    content = json.loads(run("price", "kimi-k2.6", "--as-of", "2026-11-23", "--json").out)
    (offer,) = content["offers"]
    assert offer["provider"] == "moonshotai"
    assert offer["prices"][0]["input"] == 0.95
    assert offer["costs"]["blend"]["ratio"] == pytest.approx((3 * 0.95 + 4) / (3 * 5 + 30))
    assert offer["costs"]["blend"]["usd_per_day"] == pytest.approx(6.85)
    assert content["table"]["newest_entry"] == str(table()[1])


def test_price_of_ones_own_workload_over_ones_own_hours(run):
    shape = ["--input", "1000000", "--cached", "0.5", "--requests", "10", "--hours", "2,12"]
    done = run("price", "deepseek-v4-pro", *shape, "--as-of", "2026-11-23", "--json")
    content = json.loads(done.out)
    cost = content["offers"][0]["costs"]["yours"]
    assert cost["usd_per_request"] == pytest.approx((0.5 * (0.66 + 0.022) + 0.5 * (1.32 + 0.044)) / 2)
    assert cost["usd_per_day"] == pytest.approx(10 * cost["usd_per_request"])


def test_price_of_all_providers_and_against_another_model(run):
    content = json.loads(run("price", "kimi-k2.6", "--provider", "all", "--against", "kimi-k3", "--json").out)
    assert len(content["offers"]) >= 5
    assert content["against"] == "kimi-k3"


def test_an_unknown_price_is_loud(run):
    out = run("price", "deepseek-v3.2", "--provider", "deepseek").out
    assert "UNKNOWN: no price" in out
    assert "That is not free of charge" in out
    assert "deepseek-v3.2: on " in out
    assert "in / out / cached, by " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kimi-k2.66"], "did you mean kimi-k2.6"),
        (["kimi-k2.6", "--as-of", "2999-01-01"], "is in the future"),
        (["kimi-k2.6", "--as-of", "yesterday"], "is not a date"),
        (["kimi-k2.6", "--at", "noon"], "is not a time of day"),
        (["kimi-k2.6", "--at", "10:00+05:00"], "is not a time of day"),
        (["kimi-k2.6", "--against", ""], "no model ''"),
        (["kimi-k2.6", "--provider", "nobody"], "in / out / cached, by moonshotai at 0.95 / 4 / 0.16, "),
        (["kimi-k2.6", "--workload", "party"], "blend, output-heavy, agentic"),
        (["kimi-k2.6", "--workload", "blend", "--input", "5"], "describe your own"),
        (["kimi-k2.6", "--hours", "25"], "--hours"),
        (["kimi-k3", "--as-of", "2026-04-30"], "kimi-k3 came out on 2026-07-16"),
    ],
)
def test_what_price_cannot_answer(refusal, arguments, message):
    assert message in refusal("price", *arguments)


@pytest.mark.parametrize("option", ["--input", "--output", "--cached", "--requests"])
def test_negative_numbers_are_refused_in_a_sentence(run, option):
    done = run("price", "kimi-k2.6", option, "-1")
    assert done.status in (1, 2)
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert option.strip("-") in done.err


# ---------------------------------------------------------------------------------------------- compare


def test_compare_prints_a_table_and_its_sources_on_demand(run):
    plain, sourced = (
        run("compare", "kimi-k2.6", "gpt-5.5"),
        run("compare", "kimi-k2.6", "gpt-5.5", "--sources"),
    )
    assert "Kimi K2.6" in plain.out
    assert "17.16 GiB" in plain.out
    assert "[1]" not in plain.out
    assert "[1] https://" in sourced.out
    assert "newest entry" in plain.out


def test_compare_in_three_file_forms(run):
    names = ["kimi-k2.6", "deepseek-v4-flash"]
    content = json.loads(run("compare", *names, "--json").out)
    assert list(content["models"]) == names
    table = list(csv.reader(io.StringIO(run("compare", *names, "--csv").out)))
    assert table[0] == ["section", "row", *names]
    assert run("compare", *names, "--md").out.startswith("|  | Kimi K2.6 | DeepSeek-V4-Flash |\n| --- |")


def test_compare_refuses_two_forms_and_models_to_come(refusal):
    assert "choose one" in refusal("compare", "kimi-k2.6", "--json", "--csv")
    assert "came out on 2026-07-16" in refusal("compare", "kimi-k3", "--as-of", "2026-04-30")


def test_the_atlas_loads_no_torch_and_asks_no_network():
    code = (
        "import socket, sys\n"
        "socket.socket.connect = None\n"
        "sys.argv = ['lichen', 'compare', 'kimi-k2.6', 'gpt-5.5', '--json']\n"
        "from lichen.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    assert not exit.code\n"
        "loaded = {'torch', 'numpy', 'safetensors', 'tokenizers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
