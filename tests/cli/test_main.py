import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lichen
from lichen.arch.published import named_models
from lichen.cli import main as cli
from lichen.errors import LichenError, SpecError

ROOT = Path(__file__).parents[2]


def lichen_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", "from lichen.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        **options,
    )


def fail_with(monkeypatch, capsys, error):
    """Run the command line with a verb that raises `error`; return its status and what it printed."""

    def verb(**_):
        raise error

    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code, capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_line_starts_without_torch(arguments):
    code = (
        "import sys\nfrom lichen.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lichen" in done.stdout.lower()


def test_version():
    assert lichen_command("--version").stdout == f"lichen {lichen.__version__}\n"


@pytest.mark.parametrize("arguments", [["fly"], ["--fast"]])
def test_a_command_that_cannot_be_parsed_is_one_line_and_status_2(arguments):
    done = lichen_command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert arguments[0] in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def without_their_arguments():
    for verb in cli.app.registered_commands:
        yield (verb.callback.__name__,)
    for group in cli.app.registered_groups:
        for verb in group.typer_instance.registered_commands:
            yield group.typer_instance.info.name, verb.name or verb.callback.__name__


@pytest.mark.parametrize("command", list(without_their_arguments()), ids=" ".join)
def test_a_verb_without_its_argument_works_or_shows_an_example(command, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if command == ("atlas", "serve"):
        return  # it runs until Ctrl-C
    done = run(*command)
    if done.status:
        assert done.err.count("\n") == 1
        assert f"lichen {' '.join(command)} " in done.err or "recipes/demo.toml" in done.err


@pytest.mark.parametrize("group", [(), ("atlas",), ("data",)])
def test_a_group_alone_shows_an_example(group, run):
    shown = " ".join(run(*group).out.split())
    assert any(f"As in: {example}" in shown for example in cli.EXAMPLES)


def test_an_argument_too_many_is_shown_an_example(run):
    assert "(agent), as in: lichen advise --for agent; `lichen advise --help`" in run("advise", "agent").err
    assert "(x); `lichen atlas list --help` shows" in run("atlas", "list", "x").err


def test_the_examples_work(tmp_path):
    """Those that need no trained model, in an empty folder, but for the file that the guide shows."""
    guide = (ROOT / "docs" / "atlas.md").read_text()
    (tmp_path / "my-model.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "config.json").write_text(json.dumps(named_models()["llama-3.1-8b"].config))
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "OMP_NUM_THREADS": "1"}
    for example in cli.EXAMPLES:
        lichen, *arguments = shlex.split(example)
        assert lichen == "lichen"
        if arguments[0] in ("train", "study"):
            assert (ROOT / arguments[1]).is_file()
        elif arguments[0] not in ("export", "sample", "trace"):
            done = lichen_command(*arguments, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)})
            assert (done.returncode, done.stderr) == (0, ""), example


@pytest.mark.parametrize("error", [LichenError("the mast is broken; mend it"), SpecError("no mast")])
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, error):
    assert fail_with(monkeypatch, capsys, error) == (1, f"error: {error}\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes. Error code 12"
        ),
        type("OutOfMemoryError", (RuntimeError,), {})("tried to allocate 123 GiB\non device 0"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_out_of_memory_says_what_to_do(monkeypatch, capsys, error):
    status, text = fail_with(monkeypatch, capsys, error)
    assert status == 1
    assert text.startswith("error: out of memory")
    assert "smaller batch" in text
    assert text.count("\n") == 1


def test_the_systems_refusals_name_the_file(monkeypatch, capsys):
    status, text = fail_with(
        monkeypatch, capsys, FileNotFoundError(errno.ENOENT, "No such file", "/no/where")
    )
    assert (status, text) == (1, "error: No such file: /no/where\n")


def test_a_defect_is_one_line_and_says_how_to_see_more(monkeypatch, capsys):
    status, text = fail_with(monkeypatch, capsys, ZeroDivisionError("division\nby zero"))
    assert status == 1
    assert text.startswith("error: a defect in Lichen: ZeroDivisionError: division by zero")
    assert "LICHEN_DEBUG=1" in text
    assert text.count("\n") == 1


def test_debugging_keeps_the_traceback(monkeypatch):
    def verb(**_):
        raise LichenError("x")

    monkeypatch.setenv("LICHEN_DEBUG", "1")
    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(LichenError):
        cli.main()


@pytest.mark.parametrize("then", ["", " + [0][1]"], ids=["Python's", "made an error of its own by a library"])
def test_ctrl_c_ends_with_a_word_and_status_130(then: str):
    code = (
        "import os, signal\nfrom contextlib import suppress\nfrom lichen.cli import main as cli\n"
        "@cli.app.command()\ndef wait() -> None:\n"
        f"    with suppress({then and 'KeyboardInterrupt'}):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        f"    0{then}\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "wait"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_during_the_first_imports_ends_the_same_way():
    code = (
        "import os, runpy, signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "runpy.run_module('lichen', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_reader_that_leaves_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from lichen.cli.main import main; main()", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_stdout_is_no_error():
    code = "from lichen.cli.main import main; main()"
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c '{code}' --help >&-"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
