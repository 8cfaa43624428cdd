"""Where networks compute, and in which precision."""

import pytest
import torch

from rwm_fast.device import (
    cores,
    memory,
    prepare,
    resolve_precision,
    search_algorithms,
    usual_threads,
)
from rwm_fast.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_float32_on_every_cpu_and_bfloat16_only_if_asked(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("fp16", CPU) == torch.float16


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_is_bfloat16_on_cuda_since_ampere(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == getattr(torch, dtype)
    assert resolve_precision("fp32", CUDA) == torch.float32


def test_names_that_say_nothing_are_refused():
    with pytest.raises(UserError, match="--precision: expected one of auto, .*fp16, got 'fp8'"):
        prepare("cpu", "fp8")
    with pytest.raises(UserError, match="--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"):
        prepare("tpu", "auto")


def test_training_lets_cudnn_search_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    search_algorithms(CPU)
    assert not torch.backends.cudnn.benchmark
    search_algorithms(CUDA)
    assert torch.backends.cudnn.benchmark


# ---- what of the machine is there for a process


def machine(tmp_path, cgroup: str = "", **files: str):
    """A root of files."""
    written = {
        "proc/self/cgroup": cgroup,
        "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 5000 kB",
    }
    written |= files
    for name, text in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


V1, V2 = "4:memory:/job\n1:cpu,cpuacct:/job", "0::/a/b"


@pytest.mark.parametrize(
    ("expected", "cgroup", "files"),
    [
        (8, "", {}),
        (8, V2, {"a/b/cpu.max": "max 100000"}),
        (3, V2, {"a/b/cpu.max": "250000 100000"}),  # a part of a core counts whole
        (1, V2, {"a/b/cpu.max": "20000 100000"}),
        (2, V2, {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}),
        (4, V2, {"cpu.max": "400000 100000"}),  # a container sees its own as the root
        (8, V2, {"a/b/cpu.max": "rubbish"}),
        (2, V1, {"cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
                 "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}),
        (4, V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "50000"}),
        (8, V1, {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}),
    ],
)  # fmt: skip
def test_cores_keep_to_affinity_and_cgroups(tmp_path, expected, cgroup, files):
    root = machine(tmp_path, cgroup, **{f"sys/fs/cgroup/{k}": text for k, text in files.items()})
    assert cores({}, root, allowed=8) == expected
    assert cores({"LOCAL_WORLD_SIZE": "2"}, root, allowed=8) == max(expected // 2, 1)


def test_torchruns_unasked_one_thread_is_no_limit(monkeypatch):
    monkeypatch.setattr("rwm_fast.device.cores", lambda environment: 4)
    for has, environment, expected in (
        (2, {}, 2),  # by OMP_NUM_THREADS, or by the caller
        (16, {}, 4),
        (1, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),
        (1, {"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1),
        (2, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "2"}, 2),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=has: n)
        assert usual_threads(environment) == expected


MIB = 2**20


@pytest.mark.parametrize(
    ("free", "total", "cgroup", "files"),
    [
        (5000 << 10, 8000 << 10, "", {}),
        (5000 << 10, 8000 << 10, V2, {"memory.max": "max", "memory.current": "1"}),
        (MIB, 2 * MIB, V2, {"a/b/memory.max": f"{2 * MIB}", "a/b/memory.current": f"{MIB}"}),
        (MIB + 7, 2 * MIB, V2, {"a/memory.max": f"{2 * MIB}", "a/memory.current": f"{MIB}",
                                "a/memory.stat": "anon 5\ninactive_file 7"}),
        (0, MIB, V1, {"memory/job/memory.limit_in_bytes": f"{MIB}",
                      "memory/job/memory.usage_in_bytes": f"{2 * MIB}",
                      "memory/job/memory.stat": "total_inactive_file 9"}),
        (5000 << 10, 8000 << 10, V1, {"memory/memory.limit_in_bytes": "9223372036854771712",
                                      "memory/memory.usage_in_bytes": "5"}),
    ],
)  # fmt: skip
def test_memory_keeps_to_cgroups(tmp_path, free, total, cgroup, files):
    root = machine(tmp_path, cgroup, **{f"sys/fs/cgroup/{k}": text for k, text in files.items()})
    assert memory(CPU, root) == (free, total)


def test_a_system_that_tells_nothing_has_no_memory_to_tell(tmp_path):
    assert memory(CPU, tmp_path) is None and cores({}, tmp_path, allowed=3) == 3
