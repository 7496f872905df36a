"""Python's standard library as plain code: no comments, no docstrings, one way to write everything.

    python recipes/plain_code.py FOLDER

A model that learns for a few minutes learns either what code looks like or what people write about it. Test
suites, which are a tenth of what there is to learn, are left out; what cannot be read or parsed, too.
"""

import ast
import sys
import sysconfig
import warnings
from pathlib import Path

LEFT_OUT = {"site-packages", "test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo"}


def plain(source: bytes) -> str:
    """The code in `source` as `ast.unparse` writes it. Raises SyntaxError or ValueError where it is none."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module(body=[ast.Expr(ast.Constant(str())), *rest]):
                node.body = rest
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return ast.unparse(tree) + "\n"


def main() -> None:
    library, target = Path(sysconfig.get_path("stdlib")), Path(sys.argv[1])
    warnings.simplefilter("ignore")  # of invalid escapes in old modules
    for file in sorted(library.rglob("*.py")):
        inside = file.relative_to(library)
        if LEFT_OUT.isdisjoint(inside.parts):
            try:
                text = plain(file.read_bytes())
            except (SyntaxError, ValueError, OSError):
                continue
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            (target / inside).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
