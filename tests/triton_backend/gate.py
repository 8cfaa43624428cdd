"""Compiles Triton kernels ahead of time, without a GPU, and reads what the assembler made of them.

What is compiled is what runs: `record` notes the launches of a piece of code instead of running
them, and `facts_of` gives Triton's compiler the types, constants and alignments that its own launch
would derive from the arguments.

The counts of every kernel are kept in a table beside the test (`check_table`), so that a change of
the generated code is seen and not only its worst forms. It is written anew by

    RWM_FAST_TEST_WRITE_GATES=1 pytest -m triton_aot
"""

import dataclasses
import functools
import json
import os
import re
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
    kernel, signature, constants, aligned = launch.kernel, {}, {}, []
    for param in kernel.params:
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
    key = (
        kernel,
        str(signature),
        str(constants),
        str(aligned),
        target,
        launch.warps,
        launch.stages,
    )
    if key not in _compiled:
        options = target, launch.warps, launch.stages
        _compiled[key] = compile(kernel, signature, constants, aligned, *options)
    return _compiled[key]


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
    types = {n: "constexpr" if n in constexprs else signature[n] for n in kernel.arg_names}
    hints = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=hints)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    resources, code = _disassemble(compiled.asm["cubin"])
    found = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", code, re.MULTILINE)
    names = ["UTCMMA" if re.fullmatch("UTC[A-Z]*MMA", opcode) else opcode for opcode in found]
    counts = {opcode: names.count(opcode) for opcode in OPCODES if opcode in names}
    return Facts(
        name=kernel.__name__,
        target=arch,
        warps=compiled.metadata.num_warps,
        registers=resources["REG"],
        stack=resources["STACK"],
        shared=compiled.metadata.shared,
        counts=counts,
        advisories=_advisories(compiled.asm["ptx"], arch),
    )


def _disassemble(cubin):
    """Registers and so on by name, and the machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", resources)}, code


def _advisories(ptx, arch):
    """What ptxas says in its log only; Triton hides it. Instructions that wait for one another
    (wgmma, "serialized") and registers that go through memory ("spill")."""
    suffix = "a" if arch >= 90 else ""
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        tool = "ptxas-blackwell" if arch >= 100 else "ptxas"
        flags = ("-v", f"--gpu-name=sm_{arch}{suffix}", "-o", os.devnull)
        log = _tool(tool, *flags, file.name)
    bad = re.compile(r"serialized|\(C75\d\d\)|[1-9]\d* bytes (?:spill|cumulative stack)")
    return tuple(line.strip() for line in log.splitlines() if bad.search(line))


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
