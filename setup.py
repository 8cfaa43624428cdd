"""Builds rwm_fast._C (C++, CPU) and rwm_fast._cuda (CUDA) with ninja.

torch is not needed to build: kernels take raw pointers. Switches, all from the environment:

    RWM_FAST_EXT         auto (default): _C if there is a C++ compiler; 1: insist; 0: build nothing
    RWM_FAST_CUDA        auto (default): _cuda if nvcc is found and works; 1: insist; 0: leave out
    RWM_FAST_CUDA_ARCHS  targets such as "8.0 9.0a" or "80;90a+PTX", or "all"; default: those of
                         TORCH_CUDA_ARCH_LIST, else of the visible GPUs, else 8.0 and its PTX
    RWM_FAST_NVCC        which nvcc; default: CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda
    CXX, CXXFLAGS, LDFLAGS, NVCC_CCBIN, MAX_JOBS    as usual

pip hides what is printed here, so what was built, or why not, is kept in rwm_fast/_build_info.json.
Editors find how in build/compile_commands.json. Nothing may raise before build_ext runs, or a mere
question for metadata would fail.
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
        inplace = self.inplace or getattr(self, "editable_mode", False)
        # Python started in the source folder imports the package from there, installed or not: so
        # the modules are left there too, or it would run without them.
        packages = [Path("rwm_fast")] + ([] if inplace else [Path(self.build_lib, "rwm_fast")])
        Path("build").mkdir(exist_ok=True)
        with open("build/.lock", "w") as lock:
            if os.name != "nt":  # where nothing is compiled
                import fcntl  # ninja does not notice another ninja in the same folder

                fcntl.flock(lock, fcntl.LOCK_EX)
            cpu, cpu_words = obeying("RWM_FAST_EXT", make_cpu)
            cuda, cuda_words = obeying("RWM_FAST_CUDA", make_cuda)
            record = {"cpu": cpu_words, "cuda": cuda_words}
            for package in packages:
                package.mkdir(parents=True, exist_ok=True)
                put(cpu, package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
                put(cuda, package / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}")
                (package / "_build_info.json").write_text(json.dumps(record, indent=2) + "\n")

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
    shutil.copy2(library, f"{target}.new")
    os.replace(f"{target}.new", target)


def obeying(switch, make):
    """(library or None, sentence for the record): what make() says, as the switch wants it."""
    mode = os.environ.get(switch) or "auto"
    if mode not in ("auto", "1", "0"):
        raise CompileError(f"{switch} must be auto, 1 or 0, got {mode!r}")
    try:
        if mode == "0":
            raise Skipped(f"{switch}=0")
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
    cxx = None if os.name == "nt" else find_cxx()
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
        hint = "see the compiler's messages above (Python.h is among Python's development files);"
        hint += " RWM_FAST_EXT=0 installs without it"
        raise CompileError(f"the C++ module does not compile: {hint}") from error
    return library, output(*cxx, "--version").splitlines()[0]


def make_cuda():
    """(library, compiler and targets) of the CUDA module."""
    if os.environ.get("RWM_FAST_EXT") == "0":
        raise Skipped("RWM_FAST_EXT=0")
    try:
        nvcc = find_nvcc()
        if nvcc is None:
            raise Skipped("no nvcc in RWM_FAST_NVCC, CUDACXX, CUDA_HOME, CUDA_PATH, on PATH")
        gencode, words = cuda_targets(nvcc)
        host = ["-ccbin", os.environ["NVCC_CCBIN"]] if os.environ.get("NVCC_CCBIN") else []
        sources = [CSRC / "bindings_cuda.cpp", *sorted(CSRC.glob("*/*.cu"))]
        # nvcc links: it knows its own library folders. -nodlink: no device code crosses files.
        link = [nvcc, *host, "-shared", "-nodlink", "-cudart", "static", "-Xlinker", "-s"]
        return run_ninja("_cuda", sources, [nvcc, *host, *NVCC_FLAGS.split()], gencode, link), words
    except (OSError, subprocess.CalledProcessError, CompileError) as error:
        raise Skipped(str(error)) from error


def cuda_targets(nvcc):
    """nvcc's target flags, and the words for the build record."""
    own, inherited = os.environ.get("RWM_FAST_CUDA_ARCHS"), os.environ.get("TORCH_CUDA_ARCH_LIST")
    spec = ALL_ARCHS if own == "all" else own or inherited or visible_gpus() or DEFAULT_ARCHS
    known = set(re.findall(r"sm_(\d+)", output(nvcc, "--list-gpu-code")))
    flags, names, notes = parse_archs(spec, known)
    release = re.search(r"release ([\d.]+)", output(nvcc, "--version"))[1]
    return flags, "; ".join([f"nvcc {release} for {' '.join(names)}", *notes])


def parse_archs(spec, known):
    """Targets of a list such as "8.0 sm_90a;100+PTX" -> (nvcc flags, names, notes).

    What this nvcc does not know (`known` are its numbers) is dropped with a note, and so is the
    "+PTX" of an "a" or "f" target: it would run only there. The PTX of the lowest target, at most
    80, is always added: any newer or unlisted GPU then runs it.
    """
    targets, ptx, notes = {}, set(), []
    for word in re.split(r"[\s,;]+", spec.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?([af]?)(\+PTX)?", word)
        if not match:
            raise CompileError(f"CUDA targets: cannot read {word!r} in {spec!r}")
        number, special = match[1] + (match[2] or ""), match[3]
        if number not in known:
            notes.append(f"{word} dropped, this nvcc does not know it")
            continue
        targets[number + special] = int(number)
        if match[4] and special:
            notes.append(f"+PTX of {word.removesuffix('+PTX')} dropped")
        elif match[4]:
            ptx.add(int(number))
    if not targets:
        raise CompileError(f"CUDA targets: nothing left of {spec!r}: {'; '.join(notes)}")
    ptx.add(min(80, *targets.values()))
    codes = [f"sm_{t}" for t in targets] + [f"compute_{p}" for p in sorted(ptx)]
    flags = [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes]
    return flags, [code.replace("compute_", "ptx") for code in codes], notes


def visible_gpus():
    """Compute capabilities of this machine's GPUs, as a target list; "" if it shows none."""
    try:
        lines = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return ""
    found = sorted(set(re.findall(r"^\d+\.\d+$", lines, re.MULTILINE)))
    return " ".join(found).replace("9.0", "9.0a")


def find_cxx():
    """The C++ compiler's command as words, or None."""
    words = words_of("CXX")
    if words and not shutil.which(words[0]):
        raise CompileError(f"CXX={os.environ['CXX']}: there is no such program")
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return words or (found and [found])


def find_nvcc():
    """The path of nvcc, or None."""
    for name in filter(os.environ.get, ("RWM_FAST_NVCC", "CUDACXX")):
        if not shutil.which(os.environ[name]):
            raise CompileError(f"{name}={os.environ[name]}: there is no such program")
        return os.environ[name]
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def run_ninja(module, sources, command, flags, link):
    """Compile and link what changed; returns the library's path.

    Objects stay between builds, for each Python and pybind11. ninja keeps the command line of every
    object, so a changed flag rebuilds, and its headers, so a changed header rebuilds what includes
    it. -isystem keeps pybind11 out of those, and the link gives it one name: a fresh environment
    with the same pybind11 rebuilds nothing.
    """
    import pybind11

    python = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    workspace = Path("build", f"ninja-{python}-pybind11-{pybind11.__version__}")
    folder, headers = workspace / module, workspace / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    headers.unlink(missing_ok=True)
    headers.symlink_to(pybind11.get_include())
    include = [f"-I{CSRC}", "-isystem", str(headers), "-isystem", sysconfig.get_path("include")]
    commands = ([*command, *include, *flags], link)
    compile_, link = (shlex.join(words).replace("$", "$$") for words in commands)
    objects = [f"{folder / source}.o" for source in sources]
    lines = [
        f"builddir = {folder}",
        f"rule compile\n  command = {compile_} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {link} $in -o $out",
        *(f"build {folder / source}.o: compile {source}" for source in sources),
        f"build {folder}/{module}.so: link {' '.join(objects)}",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
    if ninja is None:
        raise CompileError("the build needs ninja: pip install ninja")
    files = sorted(workspace.glob("*/build.ninja"))
    texts = [output(ninja, "-f", str(file), "-t", "compdb", "compile") for file in files]
    entries = [entry for text in texts for entry in json.loads(text)]
    Path("build/compile_commands.json").write_text(json.dumps(entries, indent=1))
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
