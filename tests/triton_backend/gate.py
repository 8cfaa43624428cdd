"""Compiles Triton kernels ahead of time, without a GPU, and reads what the assembler made of them.

What is compiled is what runs: `record` notes the launches of a piece of code instead of running
them, and `facts_of` gives Triton's compiler the types, constants and alignments that its own launch
would derive from the arguments.

The counts of every kernel are kept in a table beside the test (`check_table`), so that a change of
the generated code is seen and not only its worst forms. It is written anew by

    RWM_FAST_TEST_WRITE_GATES=1 pytest -m triton_aot
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rwm_fast.ops import _triton

TARGETS = (80, 90, 100)
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
OPCODES = (
    "HGMMA", "HMMA", "UTCMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDG", "STG", "LDS", "STS", "LDSM",
    "LDL", "STL", "BAR", "WARPGROUP",
)  # fmt: skip
DRIFT = 0.1
WRITE = os.environ.get("RWM_FAST_TEST_WRITE_GATES") == "1"
_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
_compiled = {}


@dataclasses.dataclass(frozen=True)
class Facts:
    """One kernel for one target: what a thread and a block take, and instructions in its code."""

    name: str
    target: int
    warps: int
    registers: int
    stack: int
    shared: int
    counts: dict[str, int]  # by opcode, only those that occur
    advisories: tuple[str, ...]  # of ptxas, about spills and serialised instructions

    def count(self, opcode):
        return self.counts.get(opcode, 0)

    def row(self):
        return {"registers": self.registers, "shared": self.shared, **self.counts}


@dataclasses.dataclass(frozen=True)
class Launch:
    """What `_triton.launch` was called with."""

    kernel: object
    grid: tuple[int, ...]
    arguments: dict[str, object]  # run-time arguments and constants, by parameter
    warps: int
    stages: int


def record(function):
    """The launches that function() would make; nothing runs, so its results mean nothing."""
    launches = []

    def note(kernel, programs, device, *args, warps=4, stages=1, **constants):
        grid = programs if isinstance(programs, tuple) else (programs,)
        assert min(grid) >= 1, f"{kernel.__name__}: empty grid {grid}"
        bound = dict(zip(kernel.arg_names, args, strict=False))
        defaults = {p.name: p.default for p in kernel.params if p.has_default}
        arguments = {**defaults, **bound, **constants}
        assert set(arguments) == set(kernel.arg_names), f"{kernel.__name__}: {set(arguments)}"
        launches.append(Launch(kernel, grid, arguments, warps, stages))

    with mock.patch.object(_triton, "launch", note):
        function()
    return launches


def facts_of(launch, target):
    """Compile what a launch would run."""
    return facts_of_all([launch], target)[0]


def facts_of_all(launches, target):
    """Compile what launches would run; one after the other, but disassembled at once."""
    wanted = [_arguments(launch) for launch in launches]
    keys = [(kernel, *map(str, rest), target) for kernel, *rest in wanted]
    new = {k: a for k, a in zip(keys, wanted, strict=True) if k not in _compiled}
    built = [_build(*arguments, target) for arguments in new.values()]
    _compiled.update(zip(new, _facts(built, target), strict=True))
    return [_compiled[key] for key in keys]


def _arguments(launch):
    """(kernel, types, constants, names divisible by 16, warps, stages)."""
    signature, constants, aligned = {}, {}, []
    for param in launch.kernel.params:
        value = launch.arguments[param.name]
        constant = param.is_constexpr or value is None or (value is not True and value == 1)
        if isinstance(value, torch.Tensor):
            constant = False
        if constant:
            constants[param.name] = value
            continue
        signature[param.name], divisible = _type(value)
        if divisible:
            aligned.append(param.name)
    return launch.kernel, signature, constants, aligned, launch.warps, launch.stages


def _type(value):
    """A run-time argument's type in Triton's words, and whether Triton would note 16 | value."""
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, bool):
        return "u1", False
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    box = ",".join(map(str, value.block_shape))  # a TensorDescriptor
    return f"tensordesc<{_TYPES[value.base.dtype]}[{box}]>", False


def compile(kernel, signature, constexprs, aligned, arch, warps=4, stages=1):
    """Facts of one kernel: run-time types by name, constants by name, names divisible by 16."""
    return _facts([_build(kernel, signature, constexprs, aligned, warps, stages, arch)], arch)[0]


def _build(kernel, signature, constexprs, aligned, warps, stages, arch):
    """What Triton makes of a kernel, and what ptxas said about it."""
    types = {n: "constexpr" if n in constexprs else signature[n] for n in kernel.arg_names}
    hints = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=hints)
    options = {"num_warps": warps, "num_stages": stages}
    log = io.StringIO()
    with contextlib.redirect_stdout(log), triton.knobs.nvidia.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    # Nothing was said where the code was in Triton's cache.
    said = log.getvalue()
    return kernel, compiled, said if "ptxas info" in said else _ptxas(compiled.asm["ptx"], arch)


def _facts(built, arch):
    """Facts of every (kernel, what Triton made of it, log)."""
    codes = _disassemble([_machine_code(compiled.asm["cubin"]) for _, compiled, _ in built], arch)
    return [_one(*one, code, arch) for one, code in zip(built, codes, strict=True)]


def _one(kernel, compiled, log, code, arch):
    with _file(compiled.asm["cubin"], ".cubin") as file:
        resources = dict(re.findall(r"(REG|STACK):(\d+)", _tool("cuobjdump", "-res-usage", file)))
    names = ["UTCMMA" if re.fullmatch("UTC[A-Z]*MMA", opcode) else opcode for opcode in code]
    return Facts(
        name=kernel.__name__,
        target=arch,
        warps=compiled.metadata.num_warps,
        registers=int(resources["REG"]),
        stack=int(resources["STACK"]),
        shared=compiled.metadata.shared,
        counts={opcode: names.count(opcode) for opcode in OPCODES if opcode in names},
        advisories=_advisories(log),
    )


def _machine_code(cubin):
    """The instructions: sections .text.* of an ELF file."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<2I4Q", cubin, offset + size * i) for i in range(count)]
    strings = sections[names][4]
    return b"".join(
        cubin[start : start + length]
        for name, _, _, _, start, length in sections
        if cubin.startswith(b".text.", strings + name)
    )


def _disassemble(codes, arch):
    """The opcodes of each; of all in one process, for its start takes longest."""
    if not codes:
        return []
    with _file(b"".join(codes), ".bin") as file:
        text = _tool("nvdisasm", "-ndf", "--binary", f"SM{_arch(arch)}", file)
    found = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", text, re.MULTILINE)
    ends = list(itertools.accumulate(len(code) // 16 for code in codes))  # bytes an instruction
    assert len(found) == ends[-1], "nvdisasm left out instructions"
    return [found[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _ptxas(ptx, arch):
    """What ptxas says of a kernel."""
    tool = "ptxas-blackwell" if arch >= 100 else "ptxas"
    with _file(ptx.encode(), ".ptx") as file:
        return _tool(tool, "-v", f"--gpu-name=sm_{_arch(arch)}", "-o", os.devnull, file)


def _advisories(log):
    """What ptxas says in its log only: instructions that wait for one another (wgmma,
    "serialized") and registers that go through memory ("spill")."""
    bad = re.compile(r"serialized|\(C75\d\d\)|[1-9]\d* bytes (?:spill|cumulative stack)")
    return tuple(line.strip() for line in log.splitlines() if bad.search(line))


def _arch(arch):
    return f"{arch}a" if arch >= 90 else f"{arch}"


@contextlib.contextmanager
def _file(content, suffix):
    """The name of a temporary file."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        yield file.name


def _tool(name, *args):
    """What one of the tools in Triton's wheel (or of the CUDA toolkit) says."""
    inside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    command = [str(inside) if inside.exists() else name.removesuffix("-blackwell"), *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout + done.stderr


def check(facts, *, most_registers=None):
    """The gate that every kernel passes."""
    where = f"{facts.name} for sm_{facts.target}"
    assert not facts.advisories, f"{where}: {'; '.join(facts.advisories)}"
    local = facts.count("LDL") + facts.count("STL")
    assert not (local or facts.stack), f"{where}: {local} local accesses, {facts.stack} B of stack"
    most = most_registers or 65536 // (32 * facts.warps)
    assert facts.registers <= min(most, 255), f"{where}: {facts.registers} registers of {most}"
    assert facts.shared <= SHARED[facts.target], f"{where}: {facts.shared} B of shared memory"


@functools.cache
def _stored(path):
    return json.loads(path.read_text()) if path.exists() else {"triton": None, "rows": {}}


def check_table(path, rows):
    """Compare rows (name → Facts.row()) with a stored table, or write them into it if told to.

    Returns lines about counts that drifted by more than a tenth; None if the table was made by
    another version of Triton, whose code is its own.
    """
    if WRITE:
        _write(path, rows)
        return []
    stored = _stored(path)
    if stored["triton"] not in (None, triton.__version__):
        return None
    return [line for name, row in rows.items() for line in _drift(name, row, stored["rows"])]


def _drift(name, row, stored):
    if name not in stored:
        return [f"{name}: not in the table"]
    old = stored[name]
    return [
        f"{name}: {key} was {old.get(key, 0)}, is {row.get(key, 0)}"
        for key in sorted({*old, *row})
        # Below ten a tenth is less than one instruction.
        if abs(row.get(key, 0) - old.get(key, 0)) > max(DRIFT * old.get(key, 0), 1)
    ]


def _write(path, rows):
    stored = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    kept = stored["rows"] if stored.get("triton") == triton.__version__ else {}
    table = {"triton": triton.__version__, "rows": dict(sorted({**kept, **rows}.items()))}
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in table["rows"].items())
    path.write_text(f'{{"triton": {json.dumps(table["triton"])}, "rows": {{\n{lines}\n}}}}\n')
