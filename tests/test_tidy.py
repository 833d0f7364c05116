"""The rules of the house that no other tool checks: sizes, packages, docstrings, words that must not get in."""

import ast
import os
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("proto", "cluster", "node", "client", "deploy", "tests")
PACKAGED = ("cluster", "node", "client")
MADE = {".git", ".venv", "__pycache__", "build", "dist", "target"}

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# Written so that this file does not contain them itself.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.])/(?:work/(?:main|shared)|root/\.|home/\w+/)",
    "an option that names a package index": r"--(?:extra-index|index|find)-(?:url|links)|PIP_(?:\w+_INDEX|INDEX|FIND)_",
    "a download host": r"pypi\.[o]rg|pythonhosted\.[o]rg|\bcrates\.[i]o\b|deb\.debian\.[o]rg",
}


def files() -> Iterator[Path]:
    """Every file of the repository that a person wrote, and the generated code."""
    for folder, below, names in os.walk(ROOT):
        below[:] = [d for d in below if d not in MADE and not d.endswith((".egg-info", "_cache"))]
        below[:] = [d for d in below if d not in (".hypothesis", ".benchmarks", ".typing")]
        yield from (Path(folder, name) for name in names)


def sources(*folders: str) -> list[Path]:
    found = [p for p in files() if p.suffix == ".py" and "_pb2" not in p.name]
    return sorted(p for p in found if p.relative_to(ROOT).parts[0] in folders)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    """The syntax tree; what the compiler warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ast.parse(path.read_text(), name(path))


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_file_swallows_the_system() -> None:
    sizes = {name(p): len(p.read_text().splitlines()) for p in sources(*OURS)}
    assert {p: lines for p, lines in sizes.items() if lines > FILE_LINES_MAX} == {}


def test_functions_fit_on_a_screen() -> None:
    sizes = {
        f"{name(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in sources(*OURS)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {f: lines for f, lines in sizes.items() if lines > FUNCTION_LINES_MAX} == {}


def test_public_modules_and_classes_say_what_they_are() -> None:
    undocumented = []
    for path in sources(*PACKAGED):
        tree = parse(path)
        if tree.body and not path.name.startswith("_") and not ast.get_docstring(tree):
            undocumented.append(name(path))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        undocumented += [f"{name(path)}: {c.name}" for c in classes if not ast.get_docstring(c)]
    assert undocumented == []


def test_nothing_names_a_machine_or_a_download_host() -> None:
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if path.name == "Cargo.lock":  # made by the build and ignored by git
            continue
        for what, pattern in FORBIDDEN.items():
            found += [f"{name(path)}: {what}: {m.group()}" for m in re.finditer(pattern, text)]
    assert found == []


def test_the_import_name_is_a_namespace() -> None:
    """An `__init__.py` in one portion would hide the others."""
    assert [name(p) for p in files() if p.parent.name == "ringpost" and p.name == "__init__.py"] == []


def test_every_package_is_shipped() -> None:
    """A package that is missing here imports in an editable install and is absent from the wheel."""
    setuptools = pyproject()["tool"]["setuptools"]
    expected = set()
    for package, folder in setuptools["package-dir"].items():
        root = ROOT / folder
        inits = [p for p in files() if p.name == "__init__.py" and p.is_relative_to(root)]
        expected |= {".".join((package, *p.parent.relative_to(root).parts)) for p in inits}
        assert {p.parent for p in sources(folder.split("/")[0]) if p.is_relative_to(root)} <= {p.parent for p in inits}
        assert (root / "py.typed").is_file(), f"{folder} has no py.typed"
    assert set(setuptools["packages"]) == expected


def test_type_checkers_see_every_package() -> None:
    """They cannot follow an editable install's import hook; committed links show them the way."""
    for package, folder in pyproject()["tool"]["setuptools"]["package-dir"].items():
        assert ROOT.joinpath(".typing", *package.split(".")).resolve() == ROOT / folder
