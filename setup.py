"""Builds rwm_fast._C (C++, CPU) and rwm_fast._cuda (CUDA) with ninja.

torch is not needed to build: kernels take raw pointers. Switches, all from the environment:

    RWM_FAST_EXT         auto (default): _C if there is a C++ compiler; 1: insist; 0: build nothing
    RWM_FAST_CUDA        auto (default): _cuda if nvcc is found and works; 1: insist; 0: leave out
    RWM_FAST_CUDA_ARCHS  targets such as "8.0 9.0a" or "80;90a+PTX", or "all"; default: those of
                         TORCH_CUDA_ARCH_LIST, else of the visible GPUs, else 8.0 and its PTX
    RWM_FAST_NVCC        which nvcc; default: CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda
    CXX, CXXFLAGS, LDFLAGS, NVCC_CCBIN, MAX_JOBS    as usual

pip hides what is printed here, so what was built, or why not, is kept in rwm_fast/_build_info.json.
Nothing may raise before build_ext runs, or a mere question for metadata would fail.
"""

import contextlib
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

PACKAGE = "rwm_fast"
CSRC = Path("csrc")
# Without a GPU to ask: PTX of 8.0 runs on every newer one, and one target takes a sixth of the time
# of all. RWM_FAST_CUDA_ARCHS=all makes a module for others; 90a is 90 plus wgmma.
DEFAULT_ARCHS = "80"
ALL_ARCHS = "80 86 89 90a 100 120"
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
        packages = [Path(PACKAGE)] + ([] if inplace else [Path(self.build_lib, PACKAGE)])
        record = {}
        with one_build_at_a_time():
            for part, module, make in (("cpu", "_C", make_cpu), ("cuda", "_cuda", make_cuda)):
                library = None
                try:
                    library, record[part] = make(module)
                except Skipped as reason:
                    record[part] = f"not built: {reason}"
                for package in packages:
                    put(library, package / (module + sysconfig.get_config_var("EXT_SUFFIX")))
                print(f"{PACKAGE}.{module}: {record[part]}")
            for package in packages:
                package.mkdir(parents=True, exist_ok=True)
                (package / "_build_info.json").write_text(json.dumps(record, indent=2) + "\n")

    def get_source_files(self):
        return sorted(str(path) for path in CSRC.rglob("*.*"))

    def get_outputs(self):
        package = Path(self.build_lib, PACKAGE)
        names = ("_C.*", "_cuda.*", "_build_info.json")
        return [str(path) for name in names for path in package.glob(name)]

    def get_output_mapping(self):
        return {}


def put(library, target):
    """Copy a module to its place, or remove the one there if there is none."""
    if library is None:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # A new file, not a rewritten one: a running process may have the old one open.
    shutil.copy2(library, f"{target}.new")
    os.replace(f"{target}.new", target)


def make_cpu(module):
    """(library, "built with …") of the C++ module; a compiler that fails is an error."""
    mode = switch("RWM_FAST_EXT")
    if mode == "0":
        raise Skipped("RWM_FAST_EXT=0")
    cxx = None if os.name == "nt" else find_cxx()
    if cxx is None:
        reason = "no C++ compiler on PATH (c++, g++, clang++), and CXX is not set"
        raise CompileError(f"RWM_FAST_EXT=1: {reason}") if mode == "1" else Skipped(reason)
    tests = set(CSRC.glob("testing/*"))  # tests compile these themselves
    sources = [CSRC / "bindings.cpp", *sorted(set(CSRC.glob("*/*.cpp")) - tests)]
    flags = [*CXX_FLAGS.split(), *include_flags(), *words_of("CXXFLAGS")]
    strip = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-s"]
    link = [*cxx, "-shared", *strip, *words_of("LDFLAGS")]
    try:
        library = run_ninja(module, sources, [*cxx, *flags], link)
    except subprocess.CalledProcessError as error:
        hint = "see the compiler's messages above; RWM_FAST_EXT=0 installs without it"
        raise CompileError(f"the C++ module does not compile: {hint}") from error
    return library, "built with " + output(*cxx, "--version").splitlines()[0]


def make_cuda(module):
    """(library, "built with …") of the CUDA module; a failure is an error only if asked for."""
    mode = switch("RWM_FAST_CUDA")
    if mode == "0":
        raise Skipped("RWM_FAST_CUDA=0")
    try:
        if switch("RWM_FAST_EXT") == "0":
            raise CompileError("RWM_FAST_EXT=0")
        kernels = sorted(CSRC.glob("*/*.cu"))
        if not kernels:
            raise CompileError("there are no CUDA sources in csrc")
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError("no nvcc in RWM_FAST_NVCC, CUDACXX, CUDA_HOME, CUDA_PATH, on PATH")
        gencode, summary = cuda_targets(nvcc)
        host = ["-ccbin", os.environ["NVCC_CCBIN"]] if os.environ.get("NVCC_CCBIN") else []
        flags = [*host, *NVCC_FLAGS.split(), *gencode, *include_flags()]
        sources = [CSRC / "bindings_cuda.cpp", *kernels]
        # nvcc links: it knows its own library folders. -nodlink: no device code crosses files.
        link = [nvcc, *host, "-shared", "-nodlink", "-cudart", "static"]
        library = run_ninja(module, sources, [nvcc, *flags], [*link, "-Xlinker", "-s"])
        return library, summary
    except (OSError, subprocess.CalledProcessError, CompileError) as error:
        if mode == "1":
            raise CompileError(f"RWM_FAST_CUDA=1: {error}") from error
        raise Skipped(str(error)) from error


def cuda_targets(nvcc):
    """nvcc's target flags, and the sentence for the build record."""
    own, inherited = os.environ.get("RWM_FAST_CUDA_ARCHS"), os.environ.get("TORCH_CUDA_ARCH_LIST")
    spec = own or inherited or visible_gpus() or DEFAULT_ARCHS
    spec = ALL_ARCHS if spec == "all" else spec
    known = set(re.findall(r"sm_(\d+)", output(nvcc, "--list-gpu-code")))
    flags, names, notes = parse_archs(spec, known, strict=bool(own))
    release = re.search(r"release ([\d.]+)", output(nvcc, "--version"))[1]
    return flags, "; ".join([f"built with nvcc {release} for {' '.join(names)}", *notes])


def parse_archs(spec, known, strict=True):
    """Targets of a list such as "8.0 sm_90a;100+PTX" -> (nvcc flags, names, notes).

    known holds the numbers this nvcc compiles for; others are dropped with a note. The PTX of the
    lowest target, at most 80, is always added: any newer or unlisted GPU then runs it. PTX of an
    "a" or "f" target runs only there, so "+PTX" on one is refused, or dropped if not strict (the
    list was written for torch).
    """
    targets, ptx, notes = [], set(), []
    for word in re.split(r"[\s,;]+", spec.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?([af]?)(\+PTX)?", word)
        if not match:
            raise CompileError(f"CUDA targets: cannot read {word!r} in {spec!r}")
        number, special, wants_ptx = match[1] + (match[2] or ""), match[3], bool(match[4])
        if number not in known:
            notes.append(f"{word} dropped, this nvcc does not know it")
            continue
        if wants_ptx and special and strict:
            raise CompileError(f"CUDA targets: {word}: PTX of sm_{number}{special} runs only there")
        if wants_ptx and special:
            notes.append(f"+PTX of {word.removesuffix('+PTX')} dropped")
        elif wants_ptx:
            ptx.add(int(number))
        if number + special not in targets:
            targets.append(number + special)
    if not targets:
        raise CompileError(f"CUDA targets: nothing left of {spec!r}: {'; '.join(notes)}")
    ptx.add(min(80, *(int(target.rstrip("af")) for target in targets)))
    flags = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    flags += [f"-gencode=arch=compute_{p},code=compute_{p}" for p in sorted(ptx)]
    return flags, [f"sm_{t}" for t in targets] + [f"ptx{p}" for p in sorted(ptx)], notes


def visible_gpus():
    """Compute capabilities of this machine's GPUs, as a target list; "" if it shows none."""
    try:
        lines = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return ""
    found = sorted(set(re.findall(r"^\d+\.\d+$", lines, re.MULTILINE)))
    return " ".join("9.0a" if capability == "9.0" else capability for capability in found)


def find_cxx():
    """The C++ compiler's command as words, or None."""
    words = words_of("CXX")
    if words and not shutil.which(words[0]):
        raise CompileError(f"CXX={os.environ['CXX']}: there is no such program")
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return words or (found and [found])


def find_nvcc():
    """The path of nvcc, or None."""
    for name in ("RWM_FAST_NVCC", "CUDACXX"):
        if os.environ.get(name):
            if not shutil.which(os.environ[name]):
                raise CompileError(f"{name}={os.environ[name]}: there is no such program")
            return os.environ[name]
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def find_ninja():
    with contextlib.suppress(ImportError):
        import ninja

        program = shutil.which("ninja", path=ninja.BIN_DIR)
        if program:
            return program
    program = shutil.which("ninja")
    if not program:
        raise CompileError("the build needs ninja: pip install ninja")
    return program


def include_flags():
    """-isystem keeps pybind11 out of the depfiles, and the link gives it one name: a fresh build
    environment with the same pybind11 rebuilds nothing."""
    import pybind11

    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").exists():
        hint = "install Python's development files, or set RWM_FAST_EXT=0"
        raise CompileError(f"there is no Python.h in {python}: {hint}")
    link = workspace() / "pybind11"
    fresh = Path(f"{link}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(pybind11.get_include())
    os.replace(fresh, link)
    return [f"-I{CSRC}", "-isystem", str(link), "-isystem", python]


def workspace():
    """Where objects stay between builds: a folder for each Python and pybind11."""
    import pybind11

    python = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    path = Path("build", f"ninja-{python}-pybind11-{pybind11.__version__}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_ninja(module, sources, compile_, link):
    """Compile and link what changed; returns the library's path.

    ninja keeps the command line of every object, so a changed flag rebuilds, and its headers, so a
    changed header rebuilds what includes it.
    """
    folder = workspace() / module
    folder.mkdir(exist_ok=True)
    library = folder / f"{module}.so"
    objects = [folder / f"{source}.o" for source in sources]
    commands = {
        "compile": f"{quoted(compile_)} -MMD -MF $out.d -c $in -o $out",
        "link": f"{quoted(link)} $in -o $out",
    }
    lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]
    lines += ["rule compile", f"  command = {commands['compile']}"]
    lines += ["  depfile = $out.d", "  deps = gcc"]
    lines += ["rule link", f"  command = {commands['link']}"]
    for source, obj in zip(sources, objects, strict=True):
        lines.append(f"build {obj}: compile {source}")
    lines.append(f"build {library}: link {' '.join(map(str, objects))}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run([find_ninja(), "-f", str(folder / "build.ninja"), *jobs], check=True)
    return library


def quoted(command):
    """A command for the shell, with ninja's own sign escaped."""
    return shlex.join(command).replace("$", "$$")


@contextlib.contextmanager
def one_build_at_a_time():
    """ninja does not notice another ninja in the same folder."""
    Path("build").mkdir(exist_ok=True)
    with open("build/.lock", "w") as lock:
        with contextlib.suppress(ImportError):  # Windows, where nothing is compiled
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def switch(name):
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "1", "0"):
        raise CompileError(f"{name} must be auto, 1 or 0, got {value!r}")
    return value


def words_of(name):
    return shlex.split(os.environ.get(name, ""))


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    # One Extension stands for both modules: it makes the wheel specific to Python and platform.
    module = Extension(f"{PACKAGE}._C", [])
    setup(license="MIT", ext_modules=[module], cmdclass={"build_ext": BuildExt})
