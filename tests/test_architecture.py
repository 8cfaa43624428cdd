"""The rules of the house that a machine can read from the source: who imports whom, who touches
memory, what happens at import."""

import ast
import re
from pathlib import Path

import pytest

import rwm_fast
from rwm_fast.ops import _dispatch

PACKAGE = Path(rwm_fast.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"

# What each part may import. A floor may use all floors below it, but not its neighbours; losses
# take tensors, so they know no network.
GROUND = {"_build", "config", "errors"}
ALLOWED = {
    "_build": {"__init__"},  # the version
    "config": set(),
    "errors": set(),
    "ops": {"_build"},
    "nn": GROUND | {"ops"},
    "models": GROUND | {"ops", "nn"},
    "losses": GROUND | {"ops"},
    "data": GROUND | {"ops", "nn", "models"},
    "metrics": GROUND | {"ops", "nn", "models"},
    "training": GROUND | {"ops", "nn", "models", "losses", "data", "metrics"},
    "app": GROUND | {"ops", "nn", "models", "losses", "data", "metrics", "training"},
    "testing": GROUND | {"ops"},  # inputs and comparisons for tests and benchmarks
    "__init__": {"_build"} | {home.split(".")[1] for home in rwm_fast._HOMES.values()},
}
COMMANDS = {"train", "edit", "evaluate", "prepare", "doctor"}
EVERYTHING = set(ALLOWED) - {"testing"}

# Packages that not everybody has, and heavy ones: only these files may import them at their top.
OPTIONAL = {
    "triton": r"ops/(\w+/triton_\w+|_triton\w*)\.py",
    "gradio": r"app/\w+\.py",
    "tensorboard": r"training/\w+\.py",
}
ADDRESSES = r"ops/(\w+/native\w*|_cuda|_cpu)\.py"


def part_of(path: Path) -> str:
    """ops/_check.py -> ops; config.py -> config."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that a reader and this test see them"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(tree: ast.AST) -> set[str]:
    """The parts of rwm_fast that a file imports; the package's own names count as __init__."""
    parts = set()
    for name in imports(tree):
        if name.split(".")[0] == "rwm_fast":
            first = (name.split(".") + ["__init__"])[1]
            known = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()
            parts.add(first if known else "__init__")
    return parts


def upward(part: str, tree: ast.AST) -> set[str]:
    """What a file of this part imports and may not."""
    allowed = EVERYTHING if part in COMMANDS else ALLOWED[part]
    return parts_imported(tree) - allowed - {part}


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def top_level_packages(tree: ast.Module) -> set[str]:
    """Packages imported when the file is imported: not inside a function."""
    inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found, queue = set(), [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {name.split(".")[0] for name in imports(node)}
        elif not isinstance(node, inside):
            queue += ast.iter_child_nodes(node)
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down(path):
    found = upward(part_of(path), parse(path))
    assert not found, f"{name_of(path)} imports {', '.join(sorted(found))}"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("ops", "from rwm_fast.nn.layers import EqualLinear"),
        ("ops", "from rwm_fast import nn"),
        ("nn", "import rwm_fast.models.encoder"),
        ("losses", "def f():\n    from rwm_fast.models import Encoder"),
        ("data", "from rwm_fast.metrics import scores"),
        ("models", "from rwm_fast import masked_l1"),  # the public names are for users
        ("training", "import rwm_fast.app"),
        ("train", "from rwm_fast.testing import compare"),
    ],
)
def test_an_upward_import_is_seen(part, source):
    assert upward(part, ast.parse(source))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_optional_packages_are_imported_only_where_they_are_used(path):
    for package in top_level_packages(parse(path)) & set(OPTIONAL):
        assert re.fullmatch(OPTIONAL[package], name_of(path)), f"{name_of(path)}: {package}"


def test_an_optional_import_is_seen_at_the_top_and_not_inside_a_function():
    tree = ast.parse("try:\n    import triton.language\nexcept ImportError:\n    pass")
    assert top_level_packages(tree) == {"triton"}
    assert not top_level_packages(ast.parse("def f():\n    import gradio"))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_native_backends_take_addresses(path):
    if not re.fullmatch(ADDRESSES, name_of(path)):
        assert "data_ptr" not in attributes(parse(path)), name_of(path)


@pytest.mark.parametrize("path", [p for p in SOURCES if part_of(p) != "ops"], ids=name_of)
def test_nothing_above_ops_asks_for_the_device_to_choose_code(path):
    assert "is_cuda" not in attributes(parse(path)), name_of(path)


def test_every_operator_has_its_files_and_ends_with_the_reference():
    for op in _dispatch.OPS:
        backends = _dispatch.backends(op)
        assert backends[-1] == "reference", op
        assert set(backends) <= set(_dispatch.NAMES), op
        folder = PACKAGE / "ops" / op
        for name in (
            "reference.py",
            "autograd.py",
            *(f"{_dispatch._MODULES[b]}.py" for b in backends),
        ):
            assert (folder / name).exists(), f"{op}: {name}"


def test_the_readme_lists_every_environment_variable():
    sources = [*SOURCES, ROOT / "setup.py"]
    used = {name for p in sources for name in re.findall(r"\bRWM_FAST_[A-Z_]+", p.read_text())}
    table = re.findall(r"^\| `(RWM_FAST_[A-Z_]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert used == set(table)


def test_native_sources_are_torch_free():
    sources = [p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 10
    for path in sources:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
