"""The demo's corpus against Python's own tokenizer and parser."""

from __future__ import annotations

import ast
import dis
import importlib.util
import io
import json.decoder
import subprocess
import sys
import sysconfig
import textwrap
import tokenize
from pathlib import Path

import pytest

from lichen.train.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SPECIFICATION = importlib.util.spec_from_file_location("plain_code", RECIPES / "plain_code.py")
assert SPECIFICATION is not None
plain_code = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(plain_code)


@pytest.mark.parametrize("module", [json.decoder, textwrap, tokenize])
def test_the_code_is_the_same_without_what_people_wrote_about_it(module) -> None:
    source = Path(module.__file__).read_bytes()
    text = plain_code.plain(source)
    kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)}
    assert tokenize.COMMENT not in kinds
    before, after = (ast.parse(code) for code in (source, text))
    names = [[node.name for node in ast.walk(tree) if hasattr(node, "name")] for tree in (before, after)]
    assert names[0] == names[1]
    functions = [
        node for node in ast.walk(after) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
    ]
    assert not any(ast.get_docstring(node) for node in functions)
    assert code_of(source) == code_of(text)


def code_of(source: str | bytes) -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Name, operations and names of every function, as `python -OO` compiles it: without docstrings,
    which leave a NOP behind. Whether there is an EXTENDED_ARG depends on how many constants there are."""
    found, waiting = [], [compile(source, "module.py", "exec", optimize=2)]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if hasattr(constant, "co_code")]
        operations = [each.opname for each in dis.get_instructions(code)]
        operations = [name for name in operations if name not in ("EXTENDED_ARG", "NOP")]
        found.append((code.co_name, operations, code.co_names))
    return found


def test_functions_of_a_docstring_alone_still_parse() -> None:
    text = plain_code.plain(
        b'"""Module."""\n\ndef nothing():\n    """No."""  # really\n\nclass Bare(Exception):\n    "x"\n'
    )
    assert text == "def nothing():\n    pass\n\nclass Bare(Exception):\n    pass\n"


def test_the_library_is_written_without_its_tests(tmp_path: Path) -> None:
    subprocess.run([sys.executable, RECIPES / "plain_code.py", tmp_path], check=True)
    written = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.py")}
    assert {Path("json/decoder.py"), Path("textwrap.py")} <= written
    assert not any("test" in file.parts or "encodings" in file.parts for file in written)
    assert all((Path(sysconfig.get_path("stdlib")) / file).exists() for file in written)
    assert len(written) > 300


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_are_of_the_demo_s_data(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert read.data.path == "data/code"
    assert (
        f'--vocab-size {read.model.config["vocab_size"]} --out "$DATA"' in (RECIPES / "demo.sh").read_text()
    )
