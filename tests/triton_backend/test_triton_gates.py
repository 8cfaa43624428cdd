"""The gates of the Triton kernels catch what they are for; so does the supports of the backends."""

import gate
import pytest
import tables
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
        gate.check(facts_of_spilling(8192, arch))


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
    path, row = tmp_path / "table.json", {"key": "1", "registers": 40, "LDG": 8}
    monkeypatch.setattr(tables, "WRITE", False)
    assert tables.check(tmp_path / "none.json", {"a": {}}) == ["a: not in the table"]
    monkeypatch.setattr(tables, "WRITE", True)
    assert tables.check(path, {"a": row}) == [] and tables.known(path, "a", "1") is None
    monkeypatch.setattr(tables, "WRITE", False)
    tables._stored.cache_clear()
    assert tables.check(path, {"a": row}) == []
    assert tables.check(path, {"a": {"key": "2", "registers": 44, "LDG": 9}}) == []
    changed = {"key": "2", "registers": 45, "LDG": 8, "LDL": 3}
    lines = tables.check(path, {"a": changed, "b": {}})
    assert lines == ["a: LDL was 0, is 3", "a: registers was 40, is 45", "b: not in the table"]
    lines = tables.check(path, {"a": {**row, "LDG": 9}})
    assert lines == ["a: LDG was 8, is 9"], "the same key is the same code"
    path.write_text(path.read_text().replace(triton.__version__, "0.0"))
    tables._stored.cache_clear()
    assert tables.check(path, {"a": changed}) is None and tables.known(path, "a", "1") is None


def test_a_stored_row_stands_for_the_same_code_alone(tmp_path, monkeypatch):
    """Another source, argument, constant, alignment, number of warps or target has another key."""
    x, path = torch.zeros(1024), tmp_path / "table.json"

    def launch(argument=x, size=512, warps=2):
        run = lambda: gate._triton.launch(
            spilling, 1, x.device, x, argument, warps=warps, SIZE=size
        )
        return gate.record(run)[0]

    def facts(target=80, **settings):
        return gate.facts_of_table(path, {"a": launch(**settings)}, target)["a"]

    stored = facts()
    others = [{"argument": x[1:]}, {"argument": x.half()}, {"size": 256}, {"warps": 4}]
    keys = [gate._key(*gate._arguments(launch(**change)), 80) for change in others]
    keys += [gate._key(*gate._arguments(launch()), 90)]
    monkeypatch.setattr(spilling, "hash", "of another source")
    keys += [gate._key(*gate._arguments(launch()), 80)]
    monkeypatch.undo()
    assert len({stored.key, *keys}) == 7
    monkeypatch.setattr(tables, "SAMPLE", int(stored.key, 16) + 1)  # not of the sample
    monkeypatch.setattr(tables, "WRITE", True)
    tables.check(path, {"a": {**stored.row(), "registers": 99}})
    monkeypatch.setattr(tables, "WRITE", False)
    tables._stored.cache_clear()
    assert facts() == gate.dataclasses.replace(stored, registers=99)
    assert facts(warps=4).registers != 99 and facts(target=90).registers != 99
    monkeypatch.setattr(tables, "SAMPLE", 1)  # all are of the sample
    assert facts() == stored
    assert tables.check(path, {"a": facts().row()}) == [
        f"a: registers was 99, is {stored.registers}"
    ]
