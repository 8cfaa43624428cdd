"""Compiles CUDA sources with nvcc as setup.py does, and reads what ptxas says about each kernel."""

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v"]  # spills are read from the report


@dataclass(frozen=True)
class Kernel:
    """One kernel for one target; bytes of stack, spills and static shared memory."""

    name: str
    target: str
    registers: int
    stack: int
    spills: int
    shared: int


def setup_module():
    """setup.py, for its flags and its list of targets."""
    spec = importlib.util.spec_from_file_location("rwm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find():
    """The path of nvcc, or None."""
    return setup_module().find_nvcc()


def compile_all(nvcc, sources, targets=None):
    """(kernels, messages): every kernel of every file, and what nvcc said where it failed."""
    setup = setup_module()
    known = set(re.findall(r"sm_(\d+)", setup.output(nvcc, "--list-gpu-code")))
    gencode, *_ = setup.parse_archs(targets or setup.ALL_ARCHS, known)
    flags = [*setup.NVCC_FLAGS.split(), *STRICT, *gencode, f"-I{ROOT / 'csrc'}"]
    folder = ROOT / "build" / "nvcc_gate"
    folder.mkdir(parents=True, exist_ok=True)

    def one(source):
        out = folder / f"{source.parent.name}-{source.stem}.o"
        command = [nvcc, *flags, "-c", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        return source, done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        results = list(pool.map(one, sources))
    kernels = [kernel for _, _, log in results for kernel in read(log)]
    failed = [f"{source.name}: {errors(log)}" for source, code, log in results if code]
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
