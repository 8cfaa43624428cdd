"""The CUDA sources compiled by g++ against csrc/testing/cuda_on_cpu.h, and loaded."""

import ctypes
import functools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "csrc").glob("*/*.cu")), Path(__file__).with_name("library.cpp")]
# -O1: nearly as fast to run as -O2 here (the fibre switches dominate), and half as long to compile.
# _FORTIFY_SOURCE has its own idea of longjmp.
FLAGS = "-std=c++17 -O1 -fPIC -U_FORTIFY_SOURCE -Wall -Werror -Wno-unknown-pragmas -x c++"
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
    flags = [*FLAGS.split(), f"-I{ROOT / 'csrc'}", *(SANITIZE.split() if sanitized else [])]
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


class _Argument(ctypes.Union):
    _fields_ = [
        ("i", ctypes.c_int64),
        ("p", ctypes.c_uint64),
        ("d", ctypes.c_double),
    ]


class Simulated:
    """Stands for rwm_fast._cuda: the same functions, running on the CPU."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.sim_name.restype = ctypes.c_char_p
        self._library.sim_kinds.restype = ctypes.c_char_p
        self._library.sim_set_seed.argtypes = [ctypes.c_uint64]
        index = 0
        while name := self._library.sim_name(index):
            kinds = self._library.sim_kinds(index).decode()
            setattr(self, name.decode(), functools.partial(self._call, index, name.decode(), kinds))
            index += 1

    def _call(self, index, name, kinds, *values):
        if len(values) != len(kinds):
            raise TypeError(f"{name} takes {len(kinds)} arguments, got {len(values)}")
        arguments = (_Argument * len(values))()
        for argument, kind, value in zip(arguments, kinds, values, strict=True):
            setattr(argument, kind, value)
        message = ctypes.create_string_buffer(512)
        if self._library.sim_call(index, arguments, message, len(message)):
            raise ValueError(message.value.decode())

    def set_seed(self, seed):
        """0: threads in order; anything else draws the order of blocks, warps and lanes."""
        self._library.sim_set_seed(seed)

    def take_counts(self):
        """Launches, blocks, block barriers and warp barriers since the last call."""
        counts = (ctypes.c_int64 * 4)()
        self._library.sim_take_counts(counts)
        return dict(zip(("launches", "blocks", "barriers", "warp_barriers"), counts, strict=True))


@functools.cache
def simulated():
    """All operators' CUDA sources."""
    return Simulated(build("operators", SOURCES, sanitized=SANITIZED))
