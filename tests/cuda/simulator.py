"""The CUDA sources compiled by g++ against csrc/testing/cuda_on_cpu.h, and loaded."""

import functools
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "csrc").glob("*/*.cu")), Path(__file__).with_name("library.cpp")]
# -O1: nearly as fast to run as -O2 here (the fibre switches dominate), and half as long to compile.
# _FORTIFY_SOURCE has its own idea of longjmp.
# Hidden: two libraries in one process keep their own lists of functions.
FLAGS = "-std=c++17 -O1 -fPIC -fvisibility=hidden -U_FORTIFY_SOURCE -Wall -Werror"
FLAGS += " -Wno-unknown-pragmas -x c++"
# torch brings pybind11.
SYSTEM = [sysconfig.get_path("include"), Path(torch.__file__).with_name("include")]
# -O0: the checks would make -O1 five times longer to compile.
SANITIZE = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
# Set in a process that test_sanitized.py started with the sanitizers' runtime in it.
SANITIZED = os.environ.get("RWM_FAST_TEST_SANITIZED") == "1"


def compiler():
    """g++ as CXX says, or None."""
    return shutil.which(os.environ.get("CXX") or "g++")


def build(name, sources, *, sanitized=False):
    """Compile what is out of date and link; returns the library's path."""
    folder = ROOT / "build" / "cuda_on_cpu" / (name + ("-sanitized" if sanitized else ""))
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS.split(), f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in SYSTEM)]
    flags += [f"-DRWM_LIBRARY={name}", *(SANITIZE.split() if sanitized else [])]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        objects = list(pool.map(lambda s: _compile(s, folder, flags), sources))
    library = folder / "library.so"
    if not library.exists() or any(o.stat().st_mtime > library.stat().st_mtime for o in objects):
        # A new file: this process may have the old one open.
        fresh = library.with_suffix(f".{os.getpid()}")
        sanitize = SANITIZE.split() if sanitized else []
        _run([compiler(), "-shared", *sanitize, *objects, "-o", fresh])
        fresh.replace(library)
    return library


def _compile(source, folder, flags):
    target = folder / (source.parent.name + "-" + source.stem + ".o")
    stamp = target.with_suffix(".command")
    command = [compiler(), *flags, "-MMD", "-c", str(source), "-o", str(target)]
    if not _is_fresh(target, stamp, command):
        _run(command)
        stamp.write_text(" ".join(command))
    return target


def _is_fresh(target, stamp, command):
    if not stamp.exists() or stamp.read_text() != " ".join(command) or not target.exists():
        return False
    names = re.sub(r"\\\n", " ", target.with_suffix(".d").read_text()).split()[1:]
    built = target.stat().st_mtime
    return all(Path(n).exists() and Path(n).stat().st_mtime <= built for n in names)


def _run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def load(library):
    """The library as a module: the functions of rwm_fast._cuda, and those of library.cpp."""
    name = library.parent.name.removesuffix("-sanitized")
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


@functools.cache
def simulated():
    """All operators' CUDA sources."""
    return load(build("operators", SOURCES, sanitized=SANITIZED))
