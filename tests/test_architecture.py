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
# take tensors, so they know no network; data and metrics stand on the ground.
GROUND = {"_build", "config", "disk", "errors"}
ALLOWED = {
    "_build": {"__init__"},  # the version
    "config": set(),
    "disk": {"errors"},
    "errors": set(),
    "device": {"errors"},
    "ops": {"_build"},
    "nn": GROUND | {"ops"},
    "models": GROUND | {"ops", "nn"},
    "losses": GROUND | {"ops"},
    "data": GROUND,
    "metrics": GROUND,
    "training": GROUND | {"device", "ops", "nn", "models", "losses", "data", "metrics"},
    "app": GROUND | {"device", "ops", "nn", "models", "losses", "data", "metrics", "training"},
    "dropin": {"ops"},  # in the place of other projects' operators
    "testing": GROUND | {"ops"},  # inputs and comparisons for tests and benchmarks
    "__init__": {"_build"} | {home.split(".")[1] for home in rwm_fast._HOMES.values()},
}
COMMANDS = {"train", "edit", "evaluate", "prepare", "convert", "doctor", "examples", "export"}
EVERYTHING = set(ALLOWED) - {"testing", "dropin"}

# Packages that not everybody has, and heavy ones: only these files may import them at their top.
OPTIONAL = {
    "triton": r"ops/(\w+/triton_\w+(/\w+)?|_triton\w*)\.py",
    **dict.fromkeys(("gradio", "fastapi", "uvicorn"), r"app/(page|server)\.py"),
}
# What every operator has beside a README, and the backends that every one of them has.
FILES = ("__init__.py", "call.py", "reference.py", "autograd.py")
# It is the call, and composes a backend's passes.
INSTEAD = {"modulated_conv2d/call.py": "modulated_conv2d/layer.py"}
BACKENDS = ("native", "triton", "eager")


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


def top_level_imports(tree: ast.Module) -> set[str]:
    """Names imported when the file is imported: not inside a function, not for type checkers."""
    inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found, queue = set(), [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= imports(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
        elif not isinstance(node, inside):
            queue += ast.iter_child_nodes(node)
    return found


def top_level_packages(tree: ast.Module) -> set[str]:
    """Packages that are imported when the file is imported."""
    return {name.split(".")[0] for name in top_level_imports(tree)}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


TREES = {path: parse(path) for path in SOURCES}


def test_imports_go_down():
    found = {name_of(path): upward(part_of(path), tree) for path, tree in TREES.items()}
    assert not {name: parts for name, parts in found.items() if parts}


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


def test_optional_packages_are_imported_only_where_they_are_used():
    found = [
        (name_of(path), package)
        for path, tree in TREES.items()
        for package in top_level_packages(tree) & set(OPTIONAL)
        if not re.fullmatch(OPTIONAL[package], name_of(path))
    ]
    assert not found


def test_an_optional_import_is_seen_at_the_top_and_not_inside_a_function():
    tree = ast.parse("try:\n    import triton.language\nexcept ImportError:\n    pass")
    assert top_level_packages(tree) == {"triton"}
    assert not top_level_packages(ast.parse("def f():\n    import triton"))


def using(attribute: str, paths: list[Path]) -> set[str]:
    """The files that ask something for this attribute."""
    return {name_of(path) for path in paths if attribute in attributes(TREES[path])}


def test_only_memory_takes_addresses():
    assert using("data_ptr", SOURCES) == {"ops/_memory.py"}


def test_the_device_chooses_code_in_the_dispatch_only():
    """No operator and nothing above them asks where a tensor is to choose what runs."""
    shared = [path for path in SOURCES if re.fullmatch(r"ops/_\w+\.py", name_of(path))]
    assert not using("is_cuda", [path for path in SOURCES if path not in shared])


def test_every_operator_has_its_files():
    files = {f"{op}/{name}" for op in _dispatch.OPS for name in FILES}
    files |= {
        f"{op}/{name}" for op in _dispatch.MADE_OF for name in ("__init__.py", "reference.py")
    }
    files = {INSTEAD.get(name, name) for name in files}
    assert not {name for name in files if not (PACKAGE / "ops" / name).exists()}
    for op in (*_dispatch.OPS, *_dispatch.MADE_OF):
        assert _dispatch.backends(op) == BACKENDS, op


# ---- import circles


def module_of(path: Path) -> str:
    """ops/bias_act/__init__.py -> rwm_fast.ops.bias_act"""
    parts = ("rwm_fast", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph_of(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module → modules that it imports when it is imported.

    `from package import name` needs the submodule of that name, else the package's own code. That
    the import of a submodule runs its packages' `__init__` is not counted.
    """
    graph = {}
    for module, tree in trees.items():
        needed = set()
        for name in top_level_imports(tree):
            while name and name not in trees:
                name = name.rpartition(".")[0]
            needed |= {name} - {"", module}
        graph[module] = needed
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Modules that reach one another."""
    reach = {}
    for start in graph:
        seen, queue = set(), [start]
        while queue:
            for name in graph[queue.pop()] - seen:
                seen.add(name)
                queue.append(name)
        reach[start] = seen
    found = []
    for module in sorted(graph):
        group = {other for other in reach[module] if module in reach[other]}
        if group and group not in found:
            found.append(group)
    return found


def test_no_modules_import_one_another():
    assert circles(graph_of({module_of(path): tree for path, tree in TREES.items()})) == []


def test_an_import_circle_is_seen():
    def found(**sources):
        names = {f"p.{name}" if name != "p" else name: text for name, text in sources.items()}
        return circles(graph_of({name: ast.parse(text) for name, text in names.items()}))

    one, other = "from p import b", "from p.a import f"
    assert found(p="", a=one, b=other) == [{"p.a", "p.b"}]
    assert found(p="", a=one, b="def g():\n    from p.a import f") == []
    assert found(p="from p.a import f", a=one, b="") == []  # a package and its own submodule
    assert found(p="from p.a import f", a="from p import f") == [{"p", "p.a"}]


def test_the_documents_list_every_environment_variable():
    sources = [*SOURCES, ROOT / "setup.py"]
    used = {name for p in sources for name in re.findall(r"\bRWM_FAST_[A-Z_]+", p.read_text())}
    table = re.findall(
        r"^\| `(RWM_FAST_[A-Z_]+)", (ROOT / "docs/install.md").read_text(), re.MULTILINE
    )
    assert used == set(table)


def test_native_sources_are_torch_free():
    sources = [p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 10
    for path in sources:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
