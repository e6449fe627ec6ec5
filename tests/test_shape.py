"""The house rules that can be counted: lengths of functions and files, types, docstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(f for folder in ("diffalign", "scorers", "training") for f in (ROOT / folder).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines of a function without its decorators and its docstring."""
    whole = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return whole
    return whole - (function.body[0].end_lineno - function.body[0].lineno + 1)


def untyped(function: Function) -> list[str]:
    """Names of arguments without annotation (self and cls aside), and ``return``."""
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    bare = [arg.arg for arg in given if arg.annotation is None and arg.arg not in ("self", "cls")]
    return bare + ["return"] * (function.returns is None)


def undocumented(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """Public functions, classes and methods without docstring (functions within functions are private)."""
    found = []
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            found += [] if ast.get_docstring(node) else [prefix + node.name]
            found += undocumented(node.body, f"{node.name}.") if isinstance(node, ast.ClassDef) else []
    return found


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {str(f.relative_to(ROOT)): ast.parse(f.read_text(encoding="utf-8")) for f in FILES}


def test_no_function_is_long(trees):
    long = [
        f"{p}:{f.lineno} {f.name} {length(f)}"
        for p, t in trees.items()
        for f in functions(t)
        if length(f) > 80
    ]
    assert long == []


def test_functions_are_short_as_a_rule(trees):
    lengths = [length(f) for tree in trees.values() for f in functions(tree)]
    assert median(lengths) <= 10
    assert quantiles(lengths, n=10)[-1] <= 35


def test_no_file_is_long():
    lines = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert {path: n for path, n in lines.items() if n > 450} == {}


def test_launch_scripts_are_thin():
    script = ROOT / "training" / "align.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40


def test_everything_is_typed(trees):
    bare = [
        f"{p}:{f.lineno} {f.name} {untyped(f)}" for p, t in trees.items() for f in functions(t) if untyped(f)
    ]
    assert bare == []


def test_public_names_are_documented(trees):
    bare = [f"{path} {name}" for path, tree in trees.items() for name in undocumented(tree.body)]
    bare += [f"{path} module" for path, tree in trees.items() if ast.get_docstring(tree) is None]
    assert bare == []


def test_the_counts_count():
    source = 'def f(a, *b: int, **c) -> None:\n    """Doc.\n\n    More.\n    """\n    return None\n\n'
    source += "class C:\n    def g(self): ..."
    tree = ast.parse(source)
    assert [length(f) for f in functions(tree)] == [2, 1]
    assert [untyped(f) for f in functions(tree)] == [["a", "c"], ["return"]]
    assert undocumented(tree.body) == ["C", "C.g"]
