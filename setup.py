"""Builds rwm_fast._C (C++, CPU) and rwm_fast._cuda (CUDA) with ninja.

torch is not needed to build: kernels take raw pointers. The switches, all from the environment, are
in docs/install.md. pip hides what is printed here, so what was built, or why not, is kept in
rwm_fast/_build_info.json. Editors find how in build/compile_commands.json. Nothing may raise before
build_ext runs, or a mere question for metadata would fail.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("csrc")
# Without a GPU to ask: PTX of 8.0 runs on every newer one, and one target takes a sixth of the time
# of all. (nvcc's own -arch=native makes no PTX, and code for an old GPU where there is none.)
DEFAULT_ARCHS = "80"
ALL_ARCHS = "80 86 89 90a 100 120"  # 90a is 90 plus wgmma
# No -m flag: instruction sets are chosen at run time (csrc/common/isa.h). The math flags change no
# result; they drop errno and traps, which forbid vectorising. -Wno-uninitialized: g++ 12's own
# AVX-512 header trips it.
CXX_FLAGS = (
    "-O3 -g0 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math"
    " -Wall -Wno-uninitialized"
)
NVCC_FLAGS = "-O3 -std=c++17 -lineinfo -Xcompiler -fPIC,-fvisibility=hidden,-g0"


class Skipped(Exception):
    """A module is left out, for the reason in the message."""


class BuildExt(build_ext):
    """Compiles both modules, copies them into the package and records what happened."""

    def run(self):
        # Python started in the source folder imports the package from there, installed or not: so
        # the modules are left there too, or it would run without them.
        packages = [Path("rwm_fast")]
        if not (self.inplace or getattr(self, "editable_mode", False)):
            packages.append(Path(self.build_lib, "rwm_fast"))
        Path("build").mkdir(exist_ok=True)
        with open("build/.lock", "w") as lock:
            if os.name != "nt":  # where nothing is compiled
                import fcntl  # ninja does not notice another ninja in the same folder

                fcntl.flock(lock, fcntl.LOCK_EX)
            cpu, cpu_words = obeying("RWM_FAST_EXT", make_cpu)
            cuda, cuda_words = obeying("RWM_FAST_CUDA", make_cuda)
            record = json.dumps({"cpu": cpu_words, "cuda": cuda_words}, indent=2)
            for package in packages:
                package.mkdir(parents=True, exist_ok=True)
                put(cpu, package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
                put(cuda, package / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}")
                (package / "_build_info.json").write_text(f"{record}\n")

    def get_outputs(self):
        package, names = Path(self.build_lib, "rwm_fast"), ("_C.*", "_cuda.*", "_build_info.json")
        return [str(path) for name in names for path in package.glob(name)]

    def get_output_mapping(self):
        return {}


def put(library, target):
    """Copy a module to its place, or remove the one there if there is none."""
    if library is None:
        return target.unlink(missing_ok=True)
    # A new file, not a rewritten one: a running process may have the old one open.
    os.replace(shutil.copy2(library, f"{target}.new"), target)


def obeying(switch, make):
    """(library or None, sentence for the record): what make() says, as the switch wants it."""
    mode = os.environ.get(switch) or "auto"
    if mode not in ("auto", "1", "0"):
        raise CompileError(f"{switch} must be auto, 1 or 0, got {mode!r}")
    try:
        if "0" in (mode, os.environ.get("RWM_FAST_EXT")):
            raise Skipped(f"{switch if mode == '0' else 'RWM_FAST_EXT'}=0")
        library, words = make()
        words = f"built with {words}"
    except Skipped as reason:
        if mode == "1":
            raise CompileError(f"{switch}=1: {reason}") from reason
        library, words = None, f"not built: {reason}"
    print(f"{make.__name__.removeprefix('make_')}: {words}")
    return library, words


def make_cpu():
    """(library, compiler) of the C++ module; a compiler that fails is an error."""
    cxx = None if os.name == "nt" else program(["CXX"], ["c++", "g++", "clang++"])
    if cxx is None:
        raise Skipped("no C++ compiler on PATH (c++, g++, clang++), and CXX is not set")
    # Tests compile csrc/testing themselves.
    sources = [p for p in sorted(CSRC.rglob("*.cpp")) if p.parent.name != "testing"]
    sources.remove(CSRC / "bindings_cuda.cpp")
    strip = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-s"]
    link = [*cxx, "-shared", *strip, *words_of("LDFLAGS")]
    try:
        library = run_ninja("_C", sources, [*cxx, *CXX_FLAGS.split()], words_of("CXXFLAGS"), link)
    except subprocess.CalledProcessError as error:
        raise CompileError(
            "the C++ module does not compile: see the compiler's messages above (Python.h is among"
            " Python's development files); RWM_FAST_EXT=0 installs without it"
        ) from error
    return library, output(*cxx, "--version").splitlines()[0]


def make_cuda():
    """(library, compiler and targets) of the CUDA module."""
    try:
        nvcc = find_nvcc()
        if nvcc is None:
            raise Skipped("no nvcc in RWM_FAST_NVCC, CUDACXX, CUDA_HOME, CUDA_PATH, on PATH")
        gencode, words = cuda_targets(nvcc)
        host = ["-ccbin", os.environ["NVCC_CCBIN"]] if os.environ.get("NVCC_CCBIN") else []
        sources = [CSRC / "bindings_cuda.cpp", *sorted(CSRC.glob("*/*.cu"))]
        # nvcc links: it knows its own library folders. -nodlink: no device code crosses files.
        link = [*nvcc, *host, "-shared", "-nodlink", "-cudart", "static", "-Xlinker", "-s"]
        nvcc += [*host, *NVCC_FLAGS.split()]
        return run_ninja("_cuda", sources, nvcc, gencode, link), words
    except (OSError, subprocess.CalledProcessError, CompileError) as error:
        raise Skipped(str(error)) from error


def cuda_targets(nvcc):
    """nvcc's target flags, and the words for the build record."""
    own, inherited = os.environ.get("RWM_FAST_CUDA_ARCHS"), os.environ.get("TORCH_CUDA_ARCH_LIST")
    spec = ALL_ARCHS if own == "all" else own or inherited or visible_gpus() or DEFAULT_ARCHS
    known = set(re.findall(r"sm_(\d+)", output(*nvcc, "--list-gpu-code")))
    flags, names, notes = parse_archs(spec, known)
    release = re.search(r"release ([\d.]+)", output(*nvcc, "--version"))[1]
    return flags, "; ".join([f"nvcc {release} for {' '.join(names)}", *notes])


def parse_archs(spec, known):
    """Targets of a list such as "8.0 sm_90a;100+PTX" -> (nvcc flags, names, notes).

    What this nvcc does not know (`known` are its numbers) is dropped with a note. The PTX of the
    lowest target, at most 80, is always added: any newer or unlisted GPU then runs it.
    """
    targets, ptx, notes = {}, [], []
    for word in re.split(r"[\s,;]+", spec.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?([af]?)(\+PTX)?", word)
        if not match:
            raise CompileError(f"CUDA targets: cannot read {word!r} in {spec!r}")
        number = match[1] + (match[2] or "")
        if number in known:
            targets[number + match[3]] = int(number)
            ptx += [number + match[3]] if match[4] else []
        else:
            notes.append(f"{word} dropped, this nvcc does not know it")
    if not targets:
        raise CompileError(f"CUDA targets: nothing left of {spec!r}: {'; '.join(notes)}")
    ptx = dict.fromkeys([str(min(80, *targets.values())), *ptx])
    flags = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    flags += [f"-gencode=arch=compute_{t},code=compute_{t}" for t in ptx]
    return flags, [f"sm_{t}" for t in targets] + [f"ptx{t}" for t in ptx], notes


def visible_gpus():
    """Compute capabilities of this machine's GPUs, as a target list; "" if it shows none."""
    try:
        lines = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return ""
    found = sorted(set(re.findall(r"^\d+\.\d+$", lines, re.MULTILINE)))
    return " ".join(found).replace("9.0", "9.0a")


def find_nvcc():
    """nvcc's command as words, or None."""
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return program(["RWM_FAST_NVCC", "CUDACXX"], places)


def program(names, places):
    """A command as words: of the first of these variables that is set, whose program must exist,
    or else the first of these places where there is one; None if there is none."""
    for name in filter(words_of, names):
        if not shutil.which(words_of(name)[0]):
            raise CompileError(f"{name}={os.environ[name]}: there is no such program")
        return words_of(name)
    return next(([found] for found in map(shutil.which, places) if found), None)


def run_ninja(module, sources, command, flags, link):
    """Compile and link what changed; returns the library's path.

    Objects stay between builds, for each Python and pybind11. ninja keeps the command line of every
    object, so a changed flag rebuilds, and its headers, so a changed header rebuilds what includes
    it. -isystem keeps pybind11 out of those, and the link gives it one name: a fresh environment
    with the same pybind11 rebuilds nothing.
    """
    import pybind11

    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
    if ninja is None:
        raise CompileError("the build needs ninja: pip install ninja")
    python = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    workspace = Path("build", f"ninja-{python}-pybind11-{pybind11.__version__}")
    folder, headers = workspace / module, workspace / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    headers.unlink(missing_ok=True)
    headers.symlink_to(pybind11.get_include())
    places = [f"-I{CSRC}", "-isystem", str(headers), "-isystem", sysconfig.get_path("include")]
    compile_ = [*command, *places, *flags]
    quoted = lambda words: shlex.join(words).replace("$", "$$")
    (folder / "build.ninja").write_text(
        f"builddir = {folder}\n"
        f"rule compile\n  command = {quoted(compile_)} -MMD -MF $out.d -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc\n"
        f"rule link\n  command = {quoted(link)} $in -o $out\n"
        + "".join(f"build {folder / source}.o: compile {source}\n" for source in sources)
        + f"build {folder}/{module}.so: link {' '.join(f'{folder / s}.o' for s in sources)}\n"
    )
    files = sorted(workspace.glob("*/build.ninja"))
    commands = [json.loads(output(ninja, "-f", str(f), "-t", "compdb", "compile")) for f in files]
    Path("build/compile_commands.json").write_text(json.dumps(sum(commands, []), indent=1))
    jobs = [f"-j{count}" for count in words_of("MAX_JOBS")]
    subprocess.run([ninja, "-f", str(folder / "build.ninja"), *jobs], check=True)
    return folder / f"{module}.so"


def words_of(name):
    return shlex.split(os.environ.get(name, ""))


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    # One Extension stands for both modules: it makes the wheel specific to Python and platform.
    module = Extension("rwm_fast._C", [])
    setup(license="MIT", ext_modules=[module], cmdclass={"build_ext": BuildExt})
