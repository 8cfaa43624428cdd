"""What there is to name: files, modules, identifiers and options of this repository, and the texts
that name them. Read from the sources; nothing of the package is imported for it but its commands'
own --help."""

import ast
import contextlib
import functools
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOPS = ("rwm_fast", "csrc", "tests", "benchmarks", "docs", "examples", ".ci", ".github")
NOT_OURS = {"__pycache__", "site"}
C_LIKE = {".h", ".cuh", ".cpp", ".cu"}
COMMANDS = tuple("train edit app evaluate prepare convert doctor examples export".split())


@functools.cache
def files() -> frozenset[Path]:
    """Every file of the repository, relative to it; without git, for an sdist has none."""
    found = {p for p in ROOT.iterdir() if p.is_file()}
    for top in TOPS:
        found |= {p for p in (ROOT / top).rglob("*") if p.is_file()}
    found = {p.relative_to(ROOT) for p in found if p.suffix not in (".so", ".pyc")}
    return frozenset(p for p in found if not NOT_OURS & set(p.parts))


@functools.cache
def paths() -> frozenset[str]:
    """Files and folders as text."""
    folders = {parent for p in files() for parent in p.parents}
    return frozenset(p.as_posix() for p in files() | folders)


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The syntax tree of a Python file, node by node."""
    return tuple(ast.walk(ast.parse((ROOT / path).read_text(), str(path))))


@functools.cache
def sources(*suffixes: str) -> list[Path]:
    return sorted(p for p in files() if p.suffix in suffixes)


# ---- texts: what people read, as (file, line, text)

Text = tuple[Path, int, str]


def markdown(path: Path) -> Iterator[Text]:
    """Prose: everything outside fenced blocks and the options of a page's API blocks."""
    fenced = False
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield path, number, line


def blocks(path: Path, language: str) -> Iterator[Text]:
    """Fenced blocks of one language; "" is shell, as here in all documents."""
    text = (ROOT / path).read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] == language:
            yield path, text.count("\n", 0, found.start()) + 2, found[2]


@functools.cache
def docstrings(path: Path) -> set[ast.Constant]:
    found = set()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in nodes(path):
        first = node.body[0] if isinstance(node, documented) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            found.add(first.value)
    return found


def python_prose(path: Path) -> Iterator[Text]:
    """Docstrings and comments."""
    for node in docstrings(path):
        if isinstance(node.value, str):
            yield path, node.lineno, node.value
    with open(ROOT / path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield path, token.start[0], token.string


def python_strings(path: Path) -> Iterator[Text]:
    """Other constants: messages that the package prints."""
    prose = docstrings(path)
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield path, node.lineno, node.value


COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
SHELL_COMMENT = re.compile(r"(?m)(?:^|\s)#[^\n]*")


def comments(path: Path, pattern: re.Pattern) -> Iterator[Text]:
    text = (ROOT / path).read_text()
    for found in pattern.finditer(text):
        yield path, text.count("\n", 0, found.start()) + 1, found[0]


@functools.cache
def prose() -> tuple[Text, ...]:
    """All words that are about the repository."""
    return tuple(_prose())


def _prose() -> Iterator[Text]:
    for path in sources(".md"):
        if path.parts[:2] != ("benchmarks", "results"):
            yield from markdown(path)
    for path in sources(".py"):
        yield from python_prose(path)
    for path in sources(*C_LIKE):
        yield from comments(path, COMMENT)
    scripts = [p for p in files() if p.parts[0] == ".ci" and not p.suffix]
    for path in sorted({*scripts, *sources(".toml", ".yml", ".yaml", ".txt", ".cff")}):
        yield from comments(path, SHELL_COMMENT)


def messages() -> Iterator[Text]:
    """Words that the package and its build print: constants, in Python and in C++."""
    for path in sources(".py"):
        if path.parts[0] in ("rwm_fast", "setup.py"):
            yield from python_strings(path)
    for path in sources(*C_LIKE):
        yield from comments(path, re.compile(r'(?<!#include )"[^"\n]*"'))


# ---- names

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@functools.cache
def identifiers() -> frozenset[str]:
    """Every name that code uses: Python (texts left out), C++ (comments left out), build files."""
    found: set[str] = set()
    for path in sources(".py"):
        found.add(path.stem)
        # "lrelu" is a name too, a sentence is none; the examples of test_names.py name nothing
        for _, _, text in python_strings(path) if path.name != "test_names.py" else ():
            found |= set() if " " in text else set(IDENTIFIER.findall(text))
        for node in nodes(path):
            values = [v for _, v in ast.iter_fields(node)]
            names = [n for v in values for n in (v if isinstance(v, list) else [v])]
            if not isinstance(node, ast.Constant):
                dotted = (n for n in names if isinstance(n, str))
                found |= {part for name in dotted for part in name.split(".")}
    for path in sources(*C_LIKE):
        found |= set(IDENTIFIER.findall(COMMENT.sub(" ", (ROOT / path).read_text())))
    for path in (*sources(".toml", ".yml", ".yaml"), Path(".ci/run"), Path(".ci/sanitize")):
        found |= set(IDENTIFIER.findall(SHELL_COMMENT.sub(" ", (ROOT / path).read_text())))
    return frozenset(found)


@functools.cache
def arguments() -> frozenset[str]:
    """Names of arguments and fields: with such a name before the point a text means a value."""
    every = [node for path in sources(".py") for node in nodes(path)]
    fields = [n.target for n in every if isinstance(n, ast.AnnAssign)]
    names = {n.id for n in fields if isinstance(n, ast.Name)}
    return frozenset(names | {n.arg for n in every if isinstance(n, ast.arg)})


def module(name: str) -> Path | None:
    """The file of a dotted module name, if it is one of ours."""
    base = Path(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p in files()), None)


def can_run(name: str) -> bool:
    """Whether `python -m NAME` finds something of ours that is a program."""
    path = module(name)
    if path is not None and path.name == "__init__.py":
        path = module(name + ".__main__")
    return path is not None and "__main__" in (ROOT / path).read_text()


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """Names at the top of a file, and of classes, functions' arguments and attributes in it."""
    found = set()
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[-1])
    if path == Path("rwm_fast/__init__.py"):  # its public names are imported when they are used
        found |= {text for _, _, text in python_strings(path) if text.isidentifier()}
    return frozenset(found)


@functools.cache
def classes() -> dict[str, list[Path]]:
    """Where the classes of a name are."""
    found: dict[str, list[Path]] = {}
    for path in sources(".py"):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path)
    return found


def resolves(name: str) -> bool:
    """Whether a dotted name of the package is a module, or what its module defines."""
    parts = name.split(".")
    if parts[1:2] in (["_C"], ["_cuda"]):  # compiled
        return True
    for length in range(len(parts), 0, -1):
        path = module(".".join(parts[:length]))
        if path is not None:
            return all(part in defined(path) for part in parts[length : length + 2])
    return False


# ---- options

OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")


@functools.cache
def options(command: str) -> frozenset[str]:
    """What a command of the package offers."""
    said, name = io.StringIO(), f"rwm_fast.{command}"
    program = f"{name}.__main__" if module(f"{name}.__main__") else name
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(program).main(["--help"])
    assert "--help" in said.getvalue(), said.getvalue()
    return frozenset(name.replace("_", "-") for name in OPTION.findall(said.getvalue()))


@functools.cache
def declared() -> frozenset[str]:
    """Options that any program of this repository declares by itself."""
    found: set[str] = set()
    for path in sources(".py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                found |= {str(node.args[0].value)} if str(node.args[0].value)[:2] == "--" else set()
    return frozenset(found)


def is_option(name: str, command: str | None = None) -> bool:
    name = name.replace("_", "-")
    if command in COMMANDS:
        return name in options(command)
    return name in declared() or any(name in options(c) for c in COMMANDS)


@functools.cache
def extras() -> frozenset[str]:
    """Extras of pyproject.toml (Python 3.10 has no tomllib)."""
    text = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.M | re.S)[1]
    return frozenset(re.findall(r"^([\w-]+) = ", section, re.MULTILINE))
