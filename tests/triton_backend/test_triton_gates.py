"""The gates of the Triton kernels catch what they are for; so does the supports of the backends."""

import gate
import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.triton_aot

HALF = {"a": "tensordesc<bf16[128,64]>", "b": "tensordesc<bf16[128,64]>", "trips": "i32"}


@triton.jit
def spilling(x, y, SIZE: tl.constexpr):
    """Holds SIZE numbers in the registers of 32 threads until their sum is known."""
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(y + at, values * tl.sum(values, 0))


@triton.jit
def product(a, b, scale, y, trips, SAFE: tl.constexpr):
    """(scale ⊙ a)·bᵀ along a run-time number of blocks; SAFE tells the compiler of at least one."""
    acc = tl.zeros((128, 128), tl.float32)
    count = tl.maximum(trips, 1) if SAFE else trips
    for k in range(0, count):
        left = a.load([0, k * 64]) * tl.load(scale + k * 64 + tl.arange(0, 64))[None, :]
        acc = tl.dot(left, b.load([0, k * 64]).T, acc)
    at = tl.arange(0, 128)
    tl.store(y + at[:, None] * 128 + at[None, :], acc)


def facts_of_spilling(size, arch):
    signature = {"x": "*fp32", "y": "*fp32"}
    return gate.compile(spilling, signature, {"SIZE": size}, ["x", "y"], arch, warps=1)


def facts_of_product(safe, arch=90):
    signature = {**HALF, "scale": "*bf16", "y": "*fp32"}
    return gate.compile(product, signature, {"SAFE": safe}, ["scale", "y"], arch, 8, 3)


@pytest.mark.parametrize("arch", gate.TARGETS)
def test_spills_are_caught(arch):
    gate.check(facts_of_spilling(1024, arch))
    with pytest.raises(AssertionError, match="spill"):
        gate.check(facts_of_spilling(16384, arch))


def test_a_serialised_loop_is_caught():
    facts = facts_of_product(safe=True)
    gate.check(facts)
    assert facts.count("HGMMA") and facts.count("UTMALDG") >= 2 and not facts.count("HMMA")
    with pytest.raises(AssertionError, match="serialized"):
        gate.check(facts_of_product(safe=False))


def test_limits_are_kept():
    facts = facts_of_product(safe=True)
    with pytest.raises(AssertionError, match="registers of 32"):
        gate.check(facts, most_registers=32)
    with pytest.raises(AssertionError, match="shared memory"):
        gate.check(gate.dataclasses.replace(facts, shared=232449))


def test_what_is_recorded_is_what_would_run():
    x = torch.zeros(1024, dtype=torch.bfloat16)

    def run():
        gate._triton.launch(spilling, 3, x.device, x, x[1:], warps=2, SIZE=512)

    (launch,) = gate.record(run)
    assert launch.grid == (3,) and launch.warps == 2
    facts = gate.facts_of(launch, 90)
    assert facts.name == "spilling" and facts.warps == 2 and facts.count("STG")
    # x + 1 element is off a 16-byte boundary: its stores are narrower than the loads of x.
    assert facts.count("STG") > facts.count("LDG")


def test_arguments_get_the_types_that_triton_gives():
    x = torch.zeros(8, dtype=torch.bfloat16)
    assert gate._type(x) == ("*bf16", True)
    assert gate._type(x[1:]) == ("*bf16", False)
    assert gate._type(48) == ("i32", True) and gate._type(2**31) == ("i64", True)
    assert gate._type(47) == ("i32", False) and gate._type(True) == ("u1", False)
    assert gate._type(1.5) == ("fp32", False)


def test_drift_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    monkeypatch.setattr(gate, "WRITE", False)
    assert gate.check_table(tmp_path / "none.json", {"a": {}}) == ["a: not in the table"]
    monkeypatch.setattr(gate, "WRITE", True)
    assert gate.check_table(path, {"a": {"registers": 40, "LDG": 8}}) == []
    monkeypatch.setattr(gate, "WRITE", False)
    assert gate.check_table(path, {"a": {"registers": 44, "LDG": 9}}) == []
    lines = gate.check_table(path, {"a": {"registers": 45, "LDG": 8, "LDL": 3}, "b": {}})
    assert lines == ["a: LDL was 0, is 3", "a: registers was 40, is 45", "b: not in the table"]
    path.write_text(path.read_text().replace(triton.__version__, "0.0"))
    gate._stored.cache_clear()
    assert gate.check_table(path, {"a": {"registers": 99}}) is None
