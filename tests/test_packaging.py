"""Installs the package in every way that the README names, in fresh virtual environments.

Minutes long and it reaches the package index, so it is not part of plain `pytest`:
`pytest -m packaging`. Environments that must run the package see this interpreter's torch through
links; those that must not are bare. The compiler keeps its objects (reusing_compiler.py).
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent
MODULE = f"rwm_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
SWITCHES = ("RWM_FAST_", "CXX", "CUDA", "LDFLAGS", "PYTHONPATH", "PIP_NO_BUILD_ISOLATION")
CXX = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
compiler = pytest.mark.skipif(not CXX, reason="there is no C++ compiler here")


class Environment:
    """A fresh virtual environment; with_torch lets it see the packages of this interpreter."""

    def __init__(self, folder, path, *, with_torch=False):
        # Borrowed packages have a pip; to install another takes seconds.
        own_pip = [] if not (with_torch and importlib.util.find_spec("pip")) else ["--without-pip"]
        subprocess.run([sys.executable, "-m", "venv", *own_pip, str(folder)], check=True)
        self.folder = folder
        self.path = path
        self.python = str(folder / "bin" / "python")
        if with_torch:
            self.borrow_packages()

    def borrow_packages(self):
        """Link this interpreter's packages, all but ours: it may be installed here too."""
        borrowed = self.folder / "borrowed"
        borrowed.mkdir()
        for entry in Path(torch.__file__).parent.parent.iterdir():
            if "rwm_fast" not in entry.name and entry.suffix != ".pth":
                (borrowed / entry.name).symlink_to(entry)
        (self.site() / "zz_torch.pth").write_text(f"{borrowed}\n")

    def site(self):
        return next((self.folder / "lib").glob("python*")) / "site-packages"

    def run(self, *command, ok=True, cwd=None, **environment):
        """Run python with these arguments; the finished process."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(SWITCHES)}
        env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1", "PATH": self.path}
        # For time: no CUDA where no test asks for it, and no optimisation.
        env |= {"RWM_FAST_CUDA": "0", "CXXFLAGS": "-O0", **environment}
        done = subprocess.run(
            [self.python, *command], cwd=cwd or self.folder, env=env, capture_output=True, text=True
        )
        if ok:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, *arguments, cwd=None, **options):
        return self.run("-m", "pip", "install", *arguments, cwd=cwd, **options)

    def build_info(self):
        code = "import json, rwm_fast; print(json.dumps(rwm_fast.build_info()))"
        return json.loads(self.run("-c", code).stdout)

    def bias_act(self):
        """Runs one operator twice; the finished process, which printed who served it."""
        code = (
            "import torch, rwm_fast\n"
            "x = -torch.ones(1, 2, 4, 4)\n"
            "for _ in range(2): y = rwm_fast.bias_act(x, activation='lrelu', gain=1.0)\n"
            "assert torch.allclose(y, 0.2 * x), y\n"
            "print(rwm_fast.explain('bias_act', x))\n"
        )
        return self.run("-W", "error", "-c", code)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """PATH, and before it a `c++` that compiles nothing twice."""
    if not CXX:
        return os.environ["PATH"]
    folder = tmp_path_factory.mktemp("compiler")
    objects, script = folder / "objects", folder / "bin" / "c++"
    objects.mkdir()
    script.parent.mkdir()
    program = Path(__file__).with_name("reusing_compiler.py")
    words = map(str, (sys.executable, "-S", program, objects, CXX))
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the checkout, as a user has it: what git knows, or what an sdist holds."""
    folder = tmp_path_factory.mktemp("tree")
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listing.stdout.splitlines() if listing.returncode == 0 else None
    if names is None:
        ignored = shutil.ignore_patterns("build", "*.so", "_build_info.json", "__pycache__")
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=ignored)
        return folder
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def bare(path, tmp_path_factory):
    """An environment with what a build without isolation needs, and no torch."""
    environment = Environment(tmp_path_factory.mktemp("venv") / "bare", path)
    environment.install("setuptools", "wheel", "pybind11", "ninja")
    return environment


# Where the environment that pip makes for a build is not the point: it takes seconds.
IN_BARE = ("--no-build-isolation", "--no-deps")


@pytest.fixture
def with_torch(path, tmp_path):
    return Environment(tmp_path / "with_torch", path, with_torch=True)


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory):
    """A PATH with the ordinary tools and no compiler."""
    folder = tmp_path_factory.mktemp("path")
    for name in ("sh", "uname", "ldd", "getconf", "cat", "rm"):
        if shutil.which(name):
            (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@compiler
def test_pip_install_builds_the_native_module_and_it_runs(tree, with_torch):
    with_torch.install("--no-deps", str(tree))
    assert with_torch.build_info()["cpu"].startswith("built with ")
    done = with_torch.bias_act()
    assert "'native': 'used'" in done.stdout
    assert done.stderr == ""
    doctor = with_torch.run("-m", "rwm_fast.doctor").stdout
    assert "Nothing is broken." in doctor
    assert "torch_parallel_for found" in doctor


@compiler
def test_pip_install_editable_imports_the_tree(tree, with_torch):
    with_torch.install("--no-deps", "-e", str(tree))
    where = with_torch.run("-c", "import rwm_fast; print(rwm_fast.__file__)").stdout.strip()
    assert Path(where).resolve() == (tree / "rwm_fast/__init__.py").resolve()
    assert (tree / MODULE).exists()
    assert "'native': 'used'" in with_torch.bias_act().stdout


@pytest.fixture(scope="module")
def sdist(tree, bare, tmp_path_factory):
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    bare.run("-c", code, cwd=tree)
    return next(folder.glob("rwm_fast-*.tar.gz"))


def test_the_sdist_holds_all_sources_and_nothing_built(tree, sdist):
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    headers = {p.relative_to(tree).as_posix() for p in (tree / "csrc").rglob("*.h")}
    assert headers and headers <= names
    assert not [name for name in names if name.endswith((".so", "_build_info.json"))]


@compiler
def test_its_wheel_needs_no_torch_to_build_and_holds_everything(tree, sdist, bare, tmp_path):
    bare.run("-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(sdist))
    assert bare.run("-c", "import torch", ok=False).returncode != 0
    wheel = zipfile.ZipFile(next(tmp_path.glob("rwm_fast-*.whl")))
    names = set(wheel.namelist())
    assert {MODULE, "rwm_fast/_build_info.json", "rwm_fast/py.typed"} <= names
    for source in (tree / "rwm_fast").rglob("*.py"):
        assert source.relative_to(tree).as_posix() in names
    for folder in ("weights", "pictures", "browser"):
        files = {f.relative_to(tree).as_posix() for f in (tree / "rwm_fast" / folder).iterdir()}
        assert len(files) >= 2 and files <= names
    metadata = wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert "Requires-Dist: torch<2.15,>=2.10" in metadata
    assert "License: MIT" in metadata
    assert any(n.endswith("LICENSE") for n in names)
    assert not any(n.startswith(("tests", "benchmarks", "csrc")) for n in names)
    # One file serves every torch: it links neither torch nor a second thread pool.
    wheel.extract(MODULE, tmp_path)
    libraries = subprocess.run(["ldd", str(tmp_path / MODULE)], capture_output=True, text=True)
    assert "libc." in libraries.stdout
    assert not re.search(r"torch|omp|python", libraries.stdout.replace(str(tmp_path), ""))


@compiler
def test_without_isolation_and_without_the_index(tree, with_torch):
    with_torch.install("setuptools", "wheel", "pybind11")
    # Of its own, or the build would meet the objects of another version of ninja.
    with_torch.install("--ignore-installed", "--no-deps", "ninja")
    with_torch.install("--no-build-isolation", "--no-deps", "--no-index", str(tree))
    assert "'native': 'used'" in with_torch.bias_act().stdout


def test_without_a_compiler_it_installs_and_says_so(tree, with_torch, no_compiler):
    with_torch.install("--no-deps", str(tree), PATH=no_compiler)
    reason = "no C++ compiler on PATH"
    assert reason in with_torch.build_info()["cpu"]
    done = with_torch.bias_act()
    assert "'eager': 'used'" in done.stdout
    # Announced at the first use, once.
    assert done.stderr.count(reason) == 1, done.stderr
    doctor = with_torch.run("-m", "rwm_fast.doctor").stdout
    assert reason in doctor
    assert "Nothing is broken." in doctor


def test_rwm_fast_ext_0_builds_nothing(tree, with_torch):
    with_torch.install("--no-deps", str(tree), RWM_FAST_EXT="0", RWM_FAST_CUDA="")
    info = with_torch.build_info()
    assert info["cpu"] == "not built: RWM_FAST_EXT=0"
    assert info["cuda"] == "not built: RWM_FAST_EXT=0"
    assert not list((with_torch.site() / "rwm_fast").glob("*.so"))


def test_rwm_fast_ext_1_insists(tree, bare, no_compiler):
    done = bare.install(*IN_BARE, str(tree), ok=False, PATH=no_compiler, RWM_FAST_EXT="1")
    assert done.returncode != 0
    assert "RWM_FAST_EXT=1: no C++ compiler on PATH" in done.stdout + done.stderr


def test_a_compiler_that_fails_fails_the_installation(tree, bare):
    done = bare.install(*IN_BARE, str(tree), ok=False, CXX="false")
    assert done.returncode != 0
    assert "the C++ module does not compile" in done.stdout + done.stderr
    assert "RWM_FAST_EXT=0 installs without it" in done.stdout + done.stderr


@compiler
@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on PATH")
def test_nvcc_builds_the_cuda_module_and_it_loads_without_a_gpu(tree, with_torch, tmp_path):
    one = tmp_path / "one"  # one operator, for time
    shutil.copytree(tree, one, ignore=shutil.ignore_patterns("build"))
    for source in (*one.glob("csrc/*/cuda.cu"), *one.glob("csrc/*/cpu.cpp")):
        if source.parent.name != "bias_act":
            source.unlink()
    options = {"RWM_FAST_CUDA": "1", "RWM_FAST_CUDA_ARCHS": "9.0a"}
    with_torch.install("--no-deps", str(one), **options)
    assert with_torch.build_info()["cuda"].endswith("for sm_90a ptx80")
    code = "import torch, rwm_fast._cuda as c; print(repr(c.device_problem()), dir(c))"
    shown = with_torch.run("-c", code).stdout
    assert "bias_act" in shown
    assert torch.cuda.is_available() or "the CUDA runtime says: " in shown or "no GPU" in shown


@compiler
def test_a_broken_nvcc_is_a_reason_or_an_error_if_insisted(tree, bare, tmp_path):
    nvcc, target = tmp_path / "nvcc", tmp_path / "target"
    nvcc.write_text("#!/bin/sh\necho broken toolkit >&2\nexit 1\n")
    nvcc.chmod(0o755)
    install = (*IN_BARE, "--target", str(target), str(tree))
    bare.install(*install, RWM_FAST_NVCC=str(nvcc), RWM_FAST_CUDA="")
    record = json.loads((target / "rwm_fast/_build_info.json").read_text())
    assert record["cuda"].startswith("not built: ")
    done = bare.install(*install, ok=False, RWM_FAST_NVCC=str(nvcc), RWM_FAST_CUDA="1")
    assert done.returncode != 0
    assert "RWM_FAST_CUDA=1: " in done.stdout + done.stderr


def everything(tree):
    """All sources of the C++ module."""
    sources = {path.relative_to(tree).as_posix() for path in (tree / "csrc").rglob("*.cpp")}
    return {s for s in sources if "testing" not in s and "bindings_cuda" not in s}


@compiler
def test_a_second_build_compiles_only_what_changed(tree, bare):

    def objects(**environment):
        """Objects that a build makes."""
        command = ("setup.py", "build_ext", "--inplace")
        out = bare.run(*command, cwd=tree, RWM_FAST_CUDA="0", **environment).stdout
        return {
            w for line in out.splitlines() if " -c " in line for w in line.split() if ".cpp" in w
        }

    def touch(name):
        (tree / "csrc" / name).write_text((tree / "csrc" / name).read_text() + "\n")

    objects()
    assert objects() == set()
    editors = json.loads((tree / "build/compile_commands.json").read_text())
    assert {entry["file"] for entry in editors} == everything(tree)
    touch("common/isa.cpp")
    assert {Path(o).name.removesuffix(".d") for o in objects()} == {"isa.cpp", "isa.cpp.o"}
    touch("common/cpu_features.h")
    sources = {o for o in objects() if o.endswith(".cpp")}
    assert sources == {"csrc/bindings.cpp", "csrc/common/isa.cpp"}
    flags = "-O0 -DRWM_UNUSED"
    assert {o for o in objects(CXXFLAGS=flags) if o.endswith(".cpp")} == everything(tree)
