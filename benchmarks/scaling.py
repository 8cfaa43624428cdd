"""Training on many GPUs, on paper: bytes, buckets, operations, and a model of images/s.

    python -m benchmarks.scaling --out benchmarks/results/scaling/NAME.json

writes the JSON and a table beside it. What a step computes and sends comes from `step_cost.py`, the
points that are measured here from `several.py`; `--measured` takes those from an earlier JSON, or
`--measured ""` leaves them out. No GPU is needed, and none is measured: every number of a GPU is
modelled, from the rate that layers reached on one (`benchmarks/results/h100.json`).

The model: a process computes at a fixed rate; a bucket goes when `step_cost.py` saw it go, one after
the other; an update waits for its last bucket, then moves its weights' bytes at the rate of a copy.
A sum over n processes takes the shorter of NCCL's own two forms, with its constants:

    ring: base + hops · α + 2 (n − 1) / n · bytes / bandwidth     hops: 2 (n − 1), slow ones 2 (m − 1)
    tree: base + 2 ((n / m − 1) α within + log2 m · α between) + 2 bytes / bandwidth    m machines
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import cpu
from benchmarks.step_cost import Kind, Update, as_json, cost, from_json
from rwm_fast.config import PRESETS

RESULTS = Path(__file__).parent / "results"
GPUS = (1, 8, 64, 512)
STRONG = 1024  # images of a batch: two for each of the most GPUs
MACHINE = 8  # GPUs of a machine
LEAST = 2  # images of a process: one pair
# Bytes that an update moves a weight: Adam reads it, its gradient and two moments and writes three;
# with several processes the gradient is copied into a bucket too.
ADAM, COPY = 7 * 4, 2 * 4


@dataclass(frozen=True)
class Link:
    alpha: float  # seconds a hop
    bandwidth: float  # bytes/s in one direction


@dataclass(frozen=True)
class Network:
    """Machines of 8 GPUs, one network port of a machine for all of them."""

    name: str
    within: Link
    between: Link
    base: float  # seconds of any collective
    word: float  # seconds a hop of a CPU's message between processes, of which gloo's ring is made


# NCCL 2.30, src/graph/tuning.cc (protocol "Simple": base 8.4 µs; a hop of the ring 3.4 µs over NVLink
# and 14 µs over the network; 4 and 14 µs in the tree) and topo.h (20.6 GB/s a link of an H100, of 18).
NVLINK = Link(3.4e-6, 18 * 20.6e9)
BASE, TREE_ALPHA, NET_ALPHA = 8.4e-6, 4.0e-6, 14e-6
WORD = 30e-6  # assumed: TCP between machines of a cluster
NETWORKS = [
    Network(f"{gigabits} Gb/s", NVLINK, Link(NET_ALPHA, gigabits * 1e9 / 8), BASE, WORD)
    for gigabits in (100, 400)
]


def all_reduce(size: float, n: int, network: Network) -> float:
    """Seconds of a sum of so many bytes over n processes."""
    if n == 1:
        return 0.0
    machines = math.ceil(n / MACHINE)
    slow = 2 * (machines - 1)
    bandwidth = network.within.bandwidth
    if machines > 1:
        bandwidth = min(bandwidth, network.between.bandwidth)
    hops = slow * network.between.alpha + (2 * (n - 1) - slow) * network.within.alpha
    ring = hops + 2 * (n - 1) / n * size / bandwidth
    depth = math.log2(machines) * network.between.alpha + (n / machines - 1) * TREE_ALPHA
    tree = 2 * depth + 2 * size / bandwidth
    return network.base + min(ring, tree)


def agreed(n: int, network: Network) -> float:
    """Seconds in which all agree before a step: three numbers through gloo's ring, on CPUs."""
    return 2 * (n - 1) * network.word


def ready(update: Update, n: int, rate: float, network: Network, slices: int = 1) -> float:
    """Seconds until an update's gradients are there, if the last of so many slices sends them."""
    before = (slices - 1) * update.flops
    free = 0.0
    if n > 1:
        for size, left in update.buckets:
            free = max(free, (before + left) / rate) + all_reduce(size, n, network)
    return max(free, (before + update.flops) / rate)


def step_seconds(
    kinds: list[Kind], n: int, rate: float, memory: float, network: Network, slices: int = 1
) -> float:
    """Mean seconds of a step; `memory`: bytes/s of a copy, read and written."""
    seconds = 0.0
    for kind in kinds:
        own = agreed(n, network)
        for update in kind.updates:
            weights = sum(size for size, _ in update.buckets) / 4
            moved = weights * (ADAM + (COPY if n > 1 else 0)) / memory
            own += ready(update, n, rate, network, slices) + moved
        seconds += kind.share * own
    return seconds


def images_per_second(preset: dict[str, Any], total: int, n: int, rate: str, gpu: dict, network):
    """Of all n GPUs, at a batch of `total`; None where it cannot be divided."""
    own, slices = total // n, 1
    if total % (2 * n):
        return None
    if own > preset["batch"]:
        own, slices = preset["batch"], own // preset["batch"]
    kinds = from_json(preset["costs"].get(f"{own} of {min(n, 2)}") or preset["costs"][str(own)])
    flops = gpu["rates"][rate] * (1.0 if preset["dtype"] == "bfloat16" else gpu["tf32"])
    return total / step_seconds(kinds, n, flops, gpu["memory"], network, slices)


def gpu_rates(path: Path = RESULTS / "h100.json") -> dict[str, Any]:
    """FLOP/s that our layers reached on the GPU, forward and backward, and a copy's bytes/s."""
    found = json.loads(path.read_text())
    rows = {**found["parts"]["headline"]["rows"], **found["parts"]["layers"]["rows"]}
    flops = {name: row["work"]["total"]["flops"] for name, row in rows.items()}
    seconds = lambda phase: {
        name: row["columns"]["ours"]["seconds"][phase]["median"] for name, row in rows.items()
    }
    rates = lambda phase: [flops[name] / s for name, s in seconds(phase).items()]
    ceilings = found["parts"]["ceilings"]["rows"]
    product = {k: ceilings[k]["seconds"]["product"]["median"] for k in ("bfloat16", "tf32")}
    copy = ceilings["copy"]
    return {
        "name": found["identity"]["name"],
        "rates": {
            "low": min(rates("eager total")),
            "middle": sum(flops.values()) / sum(seconds("eager total").values()),
            "high": max(rates("total")),
        },
        "tf32": product["bfloat16"] / product["tf32"],
        "memory": copy["bytes"] / copy["seconds"]["copy"]["median"],
    }
