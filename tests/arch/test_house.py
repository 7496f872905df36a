"""What the rooms know of each other: parts and families are spoken of where they stand and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import lichen
from lichen.arch import families, parts

ROOT = Path(lichen.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Where parts become modules.
MAY_ASK_FOR_CLASSES = (ROOT / "arch/parts", ROOT / "nn/build.py")
# Where a config's parts are told apart, which says what a config cannot express.
MAY_SORT_BY_KIND = ROOT / "arch/families"
# How RoPE is scaled is no part of its own: it is told apart where it is read, written and computed.
MAY_ASK_HOW_ROPE_IS_SCALED = (ROOT / "arch/families", ROOT / "ops/rope.py")

# Named after the training runs that used them, not after the families.
OPTIMIZER_RECIPES = ROOT / "optim/recipes.py"


def part_names() -> set[str]:
    """The classes of all parts."""
    modules = (import_module(f"{parts.__name__}.{entry.name}") for entry in iter_modules(parts.__path__))
    return {
        name
        for module in modules
        for name, found in vars(module).items()
        if isinstance(found, type) and found.__module__ == module.__name__
    }


def family_names() -> dict[str, Path]:
    """Every model_type and folder -> the folder."""
    found = {}
    for entry in iter_modules(families.__path__):
        if entry.ispkg:
            config = import_module(f"{families.__name__}.{entry.name}.config")
            found |= dict.fromkeys((entry.name, *config.MODEL_TYPES), ROOT / "arch/families" / entry.name)
    return found


def names_in(node: ast.AST) -> set[str]:
    inner = list(ast.walk(node))
    names = {each.id for each in inner if isinstance(each, ast.Name)}
    return names | {each.attr for each in inner if isinstance(each, ast.Attribute)}


def is_call(node: ast.AST, *functions: str) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) in functions


def asked_for(tree: ast.AST) -> Iterator[str]:
    """What `isinstance`, `of_kind`, a comparison with `type(...)` and class patterns ask for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_call(node, "isinstance", "issubclass", "of_kind"):
            yield from names_in(node.args[1])
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(is_call(side, "type") for side in sides):
                yield from (name for side in sides for name in names_in(side))
        elif isinstance(node, ast.MatchClass):
            yield from names_in(node.cls)


def words_of(tree: ast.AST) -> Iterator[str]:
    """String constants other than docstrings, and identifiers; imports say where something is from."""
    documented = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_asks_which_part_it_is(file: Path) -> None:
    if any(file.is_relative_to(place) for place in MAY_ASK_FOR_CLASSES):
        return
    scaled = any(file.is_relative_to(place) for place in MAY_ASK_HOW_ROPE_IS_SCALED)
    allowed = {"Yarn", "Llama3Scaling"} if scaled else set()
    tree = ast.parse(file.read_text())
    if file.is_relative_to(MAY_SORT_BY_KIND):
        allowed |= {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and is_call(node, "of_kind")
            for name in names_in(node.args[1])
        }
    assert not part_names() & set(asked_for(tree)) - allowed


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, GQA)",
        "isinstance(x, gqa.GQA)",
        "isinstance(x, (int, GQA))",
        "issubclass(x, GQA)",
        "type(x) is GQA",
        "GQA == type(x)",
        "of_kind(x, GQA)",
        "match x:\n    case gqa.GQA(): pass",
    ],
)
def test_every_way_of_asking_is_noticed(code: str) -> None:
    assert "GQA" in set(asked_for(ast.parse(code)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_family_is_named_in_its_folder_alone(file: Path) -> None:
    if file == OPTIMIZER_RECIPES:
        return
    said = set(words_of(ast.parse(file.read_text())))
    named = {
        name for name, folder in family_names().items() if name in said and not file.is_relative_to(folder)
    }
    # A family may be built on another one, whose module it has imported under its name.
    if file.is_relative_to(ROOT / "arch/families") and file.parent != ROOT / "arch/families":
        named -= {
            alias.asname
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    assert not named


def test_a_family_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder is read, written, named and offered without a line elsewhere."""
    folder = tmp_path / "lichen_test_family"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    config = (ROOT / "arch/families/llama/config.py").read_text().replace('"llama"', '"lichen_test_family"')
    (folder / "config.py").write_text(config)
    (folder / "tokens.py").write_text((ROOT / "arch/families/llama/tokens.py").read_text())
    (folder / "chat.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    for cached in (families._folders, families._configs):
        cached.cache_clear()
    try:
        spec = families.load_spec("llama-3.1-8b")
        written = families.write_config(spec) | {"model_type": "lichen_test_family"}
        again = families.read_config(written)
        assert again.family == "lichen_test_family"
        assert families.write_config(again) == written
        assert families.for_export(again) == again
        assert "lichen_test_family" in families.token_families()
        assert families.chat_template("lichen_test_family") == "{{ messages }}"
    finally:
        families._folders.cache_clear()
        families._configs.cache_clear()


def test_there_is_one_pass() -> None:
    """No module has a second way through it."""
    for file in (*(ROOT / "nn").glob("*.py"), *(ROOT / "kv").glob("*.py"), *(ROOT / "serve").glob("*.py")):
        functions = [
            node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)
        ]
        assert "extend" not in functions, file
