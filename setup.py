"""Builds rwm_fast._C (C++, CPU) and rwm_fast._cuda (CUDA) with ninja.

torch is not needed to build: kernels take raw pointers. Switches, all from the environment:

    RWM_FAST_EXT         auto (default) builds _C if there is a C++ compiler; 1 insists; 0 builds nothing
    RWM_FAST_CUDA        auto (default) builds _cuda if nvcc is found and works; 1 insists; 0 leaves it out
    RWM_FAST_CUDA_ARCHS  targets such as "8.0 9.0a" or "80;90a+PTX"; default: TORCH_CUDA_ARCH_LIST, the visible GPUs, a list
    RWM_FAST_NVCC        which nvcc, before CUDACXX, CUDA_HOME, CUDA_PATH and PATH
    CXX, CXXFLAGS, LDFLAGS, NVCC_CCBIN, MAX_JOBS  as usual

What was built, or why not, is written to rwm_fast/_build_info.json: pip hides this program's output. Nothing here may raise
before build_ext runs, or asking for metadata would fail too.
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
# Hopper as 90a: the same devices as 90, plus wgmma.
DEFAULT_ARCHS = "80 86 89 90a 100 120"
# No -m flag: instruction sets are chosen at run time (csrc/common/isa.h). The math flags change no result, they only drop errno
# and traps, which forbid vectorising. -Wno-uninitialized: g++ 12's own AVX-512 header trips it.
CXX_FLAGS = (
    "-O3 -g0 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math"
    " -Wall -Wno-uninitialized"
)
NVCC_FLAGS = "-O3 -std=c++17 -lineinfo -Xcompiler -fPIC,-fvisibility=hidden,-g0"


class Skipped(Exception):
    """A module is left out, for the reason in the message."""


def switch(name):
    value = os.environ.get(name, "auto") or "auto"
    if value not in ("auto", "0", "1"):
        raise CompileError(f"{name} must be auto, 1 or 0, got {value!r}")
    return value


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find_program(kind, candidates):
    """First candidate that runs. A candidate set by the user (`explicit`) that does not is an error."""
    for name, explicit in candidates:
        if not name:
            continue
        words = shlex.split(name)
        path = shutil.which(words[0])
        if path:
            return [path, *words[1:]]
        if explicit:
            raise CompileError(f"{explicit}={name}: no such {kind}")
    return None


def find_cxx():
    chosen = [(os.environ.get("CXX"), "CXX")]
    return find_program("compiler", chosen + [(n, None) for n in ("c++", "g++", "clang++")])


def find_nvcc():
    env = os.environ.get
    chosen = [(env(name), name) for name in ("RWM_FAST_NVCC", "CUDACXX")]
    homes = [f"{env(n)}/bin/nvcc" for n in ("CUDA_HOME", "CUDA_PATH") if env(n)]
    found = find_program(
        "nvcc", chosen + [(n, None) for n in (*homes, "nvcc", "/usr/local/cuda/bin/nvcc")]
    )
    return found[0] if found else None


def find_ninja():
    try:
        import ninja

        program = Path(ninja.BIN_DIR) / "ninja"
        if program.exists():
            return str(program)
    except ImportError:
        pass
    found = shutil.which("ninja")
    if not found:
        raise CompileError("ninja not found: pip install ninja, or build with isolation")
    return found


def visible_gpus():
    try:
        lines = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return " ".join(sorted(set(re.findall(r"\d+\.\d+", lines)))).replace("9.0", "9.0a")


def parse_archs(spec, known, strict=True):
    """Targets of a list such as "8.0 sm_90a;100+PTX" -> (gencode flags, names, notes).

    known holds the numbers this nvcc can compile for; others are dropped with a note. The PTX of the lowest target up to 80 is always
    added, so that any newer or unlisted GPU still runs. strict=False (a list written for torch) drops a +PTX that an
    architecture-specific target cannot have, instead of refusing it.
    """
    targets, ptx, notes = [], set(), []
    for word in re.split(r"[\s,;]+", spec.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d+)(?:\.(\d))?([af]?)(\+PTX)?", word)
        if not match:
            raise CompileError(f"RWM_FAST_CUDA_ARCHS: cannot read {word!r} in {spec!r}")
        number = match[1] + (match[2] or "")
        if number not in known:
            notes.append(f"{word} dropped: not known to this nvcc")
            continue
        target = number + (match[3] or "")
        if target not in targets:
            targets.append(target)
        if match[4] and match[3]:
            if strict:
                raise CompileError(
                    f"RWM_FAST_CUDA_ARCHS: {word}: PTX of an 'a' or 'f' target runs only there"
                )
            notes.append(f"{word}: +PTX dropped")
        elif match[4]:
            ptx.add(number)
    if not targets:
        raise CompileError(f"no target left of {spec!r}: {'; '.join(notes)}")
    ptx.add(str(min([80, *(int(re.match(r"\d+", t)[0]) for t in targets)])))
    flags = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    flags += [f"-gencode=arch=compute_{p},code=compute_{p}" for p in sorted(ptx, key=int)]
    names = [f"sm_{t}" for t in targets] + [f"ptx{p}" for p in sorted(ptx, key=int)]
    return flags, names, notes


@contextlib.contextmanager
def one_build_at_a_time():
    """ninja itself does not notice a second ninja in the same folder."""
    Path("build").mkdir(exist_ok=True)
    with open("build/.lock", "w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        except ImportError:  # Windows, where nothing is compiled
            pass
        yield


class NinjaFile:
    """A build.ninja under construction. Paths are relative to the source root, where ninja runs."""

    def __init__(self, folder):
        # builddir is where ninja keeps its own log.
        self.lines = ["ninja_required_version = 1.5", f"builddir = {self.path(folder)}"]

    @staticmethod
    def path(path):
        return re.sub(r"([$ :])", r"$\1", str(path))

    def rule(self, name, command, **variables):
        # $in and $out stay ninja's; every other $ is the shell's.
        text = re.sub(r"\$(?!in\b|out\b)", "$$$$", command)
        self.lines += [f"rule {name}", f"  command = {text}"]
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]

    def build(self, out, rule, inputs):
        self.lines.append(f"build {self.path(out)}: {rule} {' '.join(map(self.path, inputs))}")

    def write(self, path):
        text = "\n".join(self.lines) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


class BuildExt(build_ext):
    """Compiles both modules with ninja, copies them into the package and records what happened."""

    def run(self):
        with one_build_at_a_time():
            self.build_and_record()

    def build_and_record(self):
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = Path(PACKAGE if inplace else os.path.join(self.build_lib, PACKAGE))
        package.mkdir(parents=True, exist_ok=True)
        record = {}
        for key, module, make in (("cpu", "_C", self.make_cpu), ("cuda", "_cuda", self.make_cuda)):
            target = package / (module + sysconfig.get_config_var("EXT_SUFFIX"))
            try:
                library, record[key] = make(module)
                # A new file, never a rewritten one: a running process may have the old one mapped.
                shutil.copy2(library, f"{target}.new")
                os.replace(f"{target}.new", target)
            except Skipped as reason:
                record[key] = f"not built: {reason}"
                target.unlink(missing_ok=True)
            print(f"{PACKAGE}.{module}: {record[key]}")
        (package / "_build_info.json").write_text(json.dumps(record, indent=2) + "\n")

    def get_outputs(self):
        package = Path(self.build_lib) / PACKAGE
        return [str(p) for p in package.glob("_C.*")] + [str(p) for p in package.glob("_cuda.*")]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return sorted(str(p) for p in Path("csrc").rglob("*.*"))

    def make_cpu(self, module):
        if switch("RWM_FAST_EXT") == "0":
            raise Skipped("RWM_FAST_EXT=0")
        if os.name == "nt":
            raise Skipped("Windows is not supported yet")
        cxx = find_cxx()
        if cxx is None:
            if switch("RWM_FAST_EXT") == "1":
                raise CompileError("RWM_FAST_EXT=1, and there is no C++ compiler on PATH")
            raise Skipped("no C++ compiler on PATH (c++, g++, clang++) and CXX is not set")
        sources = [Path("csrc/bindings.cpp"), *sorted(Path("csrc").glob("*/*.cpp"))]
        flags = [
            *CXX_FLAGS.split(),
            *self.include_flags(),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ]
        link = [*cxx, "-shared", *shlex.split(os.environ.get("LDFLAGS", ""))]
        link += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-s"]
        try:
            library = self.compile(module, sources, [*cxx, *flags, "-MMD"], link)
        except subprocess.CalledProcessError as error:
            hint = "RWM_FAST_EXT=0 installs without it"
            raise CompileError(f"the C++ module did not compile; {hint}") from error
        return library, "built with " + output(*cxx, "--version").splitlines()[0]

    def make_cuda(self, module):
        mode = switch("RWM_FAST_CUDA")
        if mode == "0":
            raise Skipped("RWM_FAST_CUDA=0")
        try:
            return self.make_cuda_or_raise(module)
        except (OSError, subprocess.CalledProcessError, CompileError) as error:
            if mode == "1":
                raise CompileError(f"RWM_FAST_CUDA=1: {error}") from error
            raise Skipped(str(error)) from error

    def make_cuda_or_raise(self, module):
        if switch("RWM_FAST_EXT") == "0":
            raise CompileError("RWM_FAST_EXT=0")
        kernels = sorted(Path("csrc").glob("*/*.cu"))
        if not kernels:
            raise CompileError("there are no CUDA sources in csrc/")
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError("no nvcc in RWM_FAST_NVCC, CUDACXX, CUDA_HOME, CUDA_PATH or on PATH")
        known = set(re.findall(r"sm_(\d+)", output(nvcc, "--list-gpu-code")))
        own, inherited = (
            os.environ.get("RWM_FAST_CUDA_ARCHS"),
            os.environ.get("TORCH_CUDA_ARCH_LIST"),
        )
        spec = own or inherited or visible_gpus() or DEFAULT_ARCHS
        gencode, names, notes = parse_archs(spec, known, strict=bool(own))
        host = ["-ccbin", os.environ["NVCC_CCBIN"]] if os.environ.get("NVCC_CCBIN") else []
        compile_ = [nvcc, *host, *NVCC_FLAGS.split(), *gencode, *self.include_flags(), "-MMD"]
        link = [
            nvcc,
            *host,
            "-shared",
            "-nodlink",
            "-cudart",
            "static",
            "-Xlinker",
            "--exclude-libs,ALL",
        ]
        library = self.compile(module, [Path("csrc/bindings_cuda.cu"), *kernels], compile_, link)
        release = re.search(r"release ([\d.]+)", output(nvcc, "--version"))[1]
        return library, "; ".join([f"built with nvcc {release} for {' '.join(names)}", *notes])

    def include_flags(self):
        """-isystem keeps pybind11 out of the depfiles, and the link gives it one name: a fresh build environment with the
        same pybind11 then rebuilds nothing."""
        import pybind11

        python = sysconfig.get_path("include")
        if not Path(python, "Python.h").exists():
            raise CompileError(
                f"Python.h is not in {python}: install Python's development files, or set RWM_FAST_EXT=0"
            )
        link = self.workspace() / "pybind11"
        fresh = Path(f"{link}.{os.getpid()}")
        fresh.symlink_to(pybind11.get_include())
        os.replace(fresh, link)
        return ["-Icsrc", "-isystem", str(link), "-isystem", python]

    def workspace(self):
        """Where objects stay between builds; one for each Python and pybind11."""
        import pybind11

        name = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-pybind11-{pybind11.__version__}"
        path = Path("build") / f"ninja-{name}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def compile(self, module, sources, compile_, link):
        folder = self.workspace() / module
        folder.mkdir(exist_ok=True)
        library = folder / f"{module}.so"
        objects = [folder / f"{source}.o" for source in sources]
        ninja = NinjaFile(folder)
        # A changed command line is a changed rule, and ninja rebuilds; headers come back through the depfile.
        ninja.rule(
            "compile",
            f"{shlex.join(compile_)} -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"{shlex.join(link)} $in -o $out")
        for source, obj in zip(sources, objects, strict=True):
            ninja.build(obj, "compile", [source])
        ninja.build(library, "link", objects)
        ninja.write(folder / "build.ninja")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run(
            [find_ninja(), "-f", str(folder / "build.ninja"), *jobs, str(library)], check=True
        )
        return library


if __name__ == "__main__":
    # One Extension stands for both modules: it makes the wheel specific to this Python and platform.
    setup(ext_modules=[Extension(f"{PACKAGE}._C", [])], cmdclass={"build_ext": BuildExt})
