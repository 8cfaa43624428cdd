"""Compiles CUDA sources with nvcc as setup.py does, and reads what ptxas says about each kernel,
and how wide its stores to global memory are in PTX: ptxas keeps their width."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v"]  # spills are read from the report


@dataclass(frozen=True)
class Kernel:
    """One kernel for one target; bytes of stack, spills and static shared memory; the widths of
    its global stores in bytes, one for each store."""

    name: str
    target: str
    registers: int
    stack: int
    spills: int
    shared: int
    stores: tuple[int, ...] = ()

    @property
    def width(self):
        """Elements of a thread: the last number among the template's arguments; 1 without."""
        numbers = re.findall(r"[<,] ?(\d+)(?=[,>])", self.name)
        return int(numbers[-1]) if numbers else 1


def setup_module():
    """setup.py, for its flags and its list of targets."""
    spec = importlib.util.spec_from_file_location("rwm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find():
    """The path of nvcc, or None."""
    return (setup_module().find_nvcc() or [None])[-1]


def flags_of(nvcc, targets=None):
    """As setup.py compiles, but for -O3: that is for the host's side of the code alone."""
    setup = setup_module()
    known = set(re.findall(r"sm_(\d+)", setup.output(nvcc, "--list-gpu-code")))
    gencode, *_ = setup.parse_archs(targets or setup.ALL_ARCHS, known)
    return [*(f for f in setup.NVCC_FLAGS.split() if f != "-O3"), *STRICT, *gencode]


def key(nvcc, source):
    """Of a source and all it includes of ours, of nvcc, its flags and all targets."""
    texts, left = {}, [source]
    while left:
        path = left.pop()
        texts[path.relative_to(ROOT).as_posix()] = text = path.read_text()
        for name in re.findall(r'^#\s*include "(.+)"', text, re.MULTILINE):
            places = (path.parent / name, ROOT / "csrc" / name)
            found = next(place for place in places if place.exists())
            if found.relative_to(ROOT).as_posix() not in texts:
                left.append(found)
    release = setup_module().output(nvcc, "--version")
    everything = repr((release, flags_of(nvcc), sorted(texts.items())))
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def compile_all(nvcc, sources, targets=None):
    """(kernels, messages): every kernel of every file, and what nvcc said where it failed."""
    flags = [*flags_of(nvcc, targets), f"-I{ROOT / 'csrc'}"]
    folder = ROOT / "build" / "nvcc_gate"
    folder.mkdir(parents=True, exist_ok=True)

    def one(source):
        out = folder / f"{source.parent.name}-{source.stem}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = [nvcc, *flags, "-c", str(source), "-o", str(out / "object"), "-keep"]
        done = subprocess.run([*command, f"-keep-dir={out}"], capture_output=True, text=True)
        stores = {key: widths for ptx in out.glob("*.ptx") for key, widths in read_ptx(ptx).items()}
        kernels = read(done.stdout + done.stderr)
        kernels = [replace(k, stores=stores.get((k.name, k.target), ())) for k in kernels]
        return source, done.returncode, done.stdout + done.stderr, kernels

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        results = list(pool.map(one, sources))
    kernels = [kernel for *_, found in results for kernel in found]
    failed = [f"{source.name}: {errors(log)}" for source, code, log, _ in results if code]
    return kernels, failed


def errors(log):
    return "\n".join(line for line in log.splitlines() if re.search("error|warning", line))[:2000]


def read(log):
    """The kernels of a log of `ptxas -v`."""
    kernels, name, frame = [], None, (0, 0)
    for line in demangled(log).splitlines():
        if found := re.search(r"Compiling entry function '(.+)' for 'sm_(\w+)'", line):
            name = (short(found[1]), found[2])
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            frame = (int(found[1]), int(found[2]))
        elif name and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels.append(Kernel(*name, int(found[1]), *frame, int(shared[1]) if shared else 0))
            name = None
    return kernels


def read_ptx(path):
    """(kernel, target) -> the widths of its global stores."""
    text = path.read_text()
    target = re.search(r"^\.target sm_(\w+)", text, re.MULTILINE)[1]
    bodies = re.split(r"^(?:\.\w+ )*\.entry ", text, flags=re.MULTILINE)[1:]
    names = demangled("\n".join(re.match(r"\w+", body)[0] for body in bodies)).splitlines()
    stored = r"\bst\.global(?:\.[a-z]+)*?(?:\.v(\d))?\.[bfsu](\d+)"
    widths = ([int(n or 1) * int(b) // 8 for n, b in re.findall(stored, body)] for body in bodies)
    return {(short(name), target): tuple(w) for name, w in zip(names, widths, strict=True)}


def demangled(log):
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return log
    return subprocess.run([tool], input=log, capture_output=True, text=True, check=True).stdout


def short(name):
    """A kernel's name without its parameters and our namespace."""
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0 and not name.startswith("(anonymous", i):
            name = name[:i]
            break
    return name.replace("rwm::", "").replace("(anonymous namespace)::", "")


def table(kernels):
    """Lines: kernel, then registers for each target."""
    targets = sorted({k.target for k in kernels}, key=lambda t: int(re.match(r"\d+", t)[0]))
    found = {(k.name, k.target): k for k in kernels}
    lines = [f"{'kernel':70}" + "".join(f"{t:>6}" for t in targets)]
    for name in sorted({k.name for k in kernels}):
        row = [found.get((name, t)) for t in targets]
        lines.append(f"{name:70}" + "".join(f"{k.registers if k else '':>6}" for k in row))
    return lines
