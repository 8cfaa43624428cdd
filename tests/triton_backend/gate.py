"""Compiles Triton kernels ahead of time, without a GPU, and reads what the assembler made of them.

What is compiled is what runs: `record` notes the launches of a piece of code instead of running
them, and `facts_of` gives Triton's compiler the types, constants and alignments that its own launch
would derive from the arguments.

What the table of stored counts (tables.py) says of the very same code is not compiled again.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import tables
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
    key: str  # of all that the code is made from

    def count(self, opcode):
        return self.counts.get(opcode, 0)

    def row(self):
        return {
            "key": self.key,
            "registers": self.registers,
            "shared": self.shared,
            **self.counts,
        }


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
    keys = [_key(*arguments, target) for arguments in wanted]
    new = {k: a for k, a in zip(keys, wanted, strict=True) if k not in _compiled}
    built = [_build(*arguments, target) for arguments in new.values()]
    _compiled.update(zip(new, _facts(built, target), strict=True))
    return [_compiled[key] for key in keys]


def facts_of_table(path, launches, target):
    """label → Facts of label → launch: as stored in the table, or compiled where it lacks them."""
    keys = {label: _key(*_arguments(launch), target) for label, launch in launches.items()}
    rows = {label: tables.known(path, label, key) for label, key in keys.items()}
    new = [label for label in launches if rows[label] is None]
    compiled = facts_of_all([launches[label] for label in new], target)
    facts = dict(zip(new, compiled, strict=True))
    return {
        label: facts.get(label) or _of_row(launch, target, rows[label])
        for label, launch in launches.items()
    }


def _of_row(launch, target, row):
    """A stored row is of a kernel that passed the gate: no stack, no advisories."""
    counts = {opcode: row[opcode] for opcode in OPCODES if opcode in row}
    fixed = (launch.kernel.__name__, target, launch.warps, row["registers"], 0, row["shared"])
    return Facts(*fixed, counts, (), row["key"])


def _key(kernel, *arguments):
    """Of the kernel's source, that of all it calls, and everything it is compiled with."""
    text = repr((kernel.cache_key, *map(str, arguments)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    said = said if "ptxas info" in said else _ptxas(compiled.asm["ptx"], arch)
    key = _key(kernel, signature, constexprs, aligned, warps, stages, arch)
    return kernel.__name__, key, compiled, said


def _facts(built, arch):
    """Facts of every (kernel's name, key, what Triton made of it, log)."""
    codes = _disassemble([_machine_code(one[2].asm["cubin"]) for one in built], arch)
    return [_one(*one, code, arch) for one, code in zip(built, codes, strict=True)]


def _one(name, key, compiled, log, code, arch):
    with _file(compiled.asm["cubin"], ".cubin") as file:
        resources = dict(re.findall(r"(REG|STACK):(\d+)", _tool("cuobjdump", "-res-usage", file)))
    names = ["UTCMMA" if re.fullmatch("UTC[A-Z]*MMA", opcode) else opcode for opcode in code]
    return Facts(
        name=name,
        target=arch,
        warps=compiled.metadata.num_warps,
        registers=int(resources["REG"]),
        stack=int(resources["STACK"]),
        shared=compiled.metadata.shared,
        counts={opcode: names.count(opcode) for opcode in OPCODES if opcode in names},
        advisories=_advisories(log),
        key=key,
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
