"""The model behind `scaling.py`: seconds of a step in n processes, from what it computes and sends.

A process computes at a fixed rate; a bucket goes when `step_cost.py` saw it go, one after the
other; an update waits for its last bucket, then moves its weights' bytes at the rate of a copy.
A sum over n processes on m machines takes the shorter of NCCL's own two forms, with its constants:

    ring: base + 2 (n - m) L1 + 2 (m - 1) L2 + 2 (n - 1) / n bytes / bandwidth
    tree: base + 2 (n / m - 1) L1 + 2 log2(m) L2 + 2 bytes / bandwidth

where the bandwidth is that of the slowest link on the way, and L1 and L2 are the latencies of a hop
within a machine and between two.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step_cost import Kind, Update, from_json

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


# NCCL 2.30, tuning.cc (protocol "Simple": base 8.4 µs; a hop of the ring 3.4 µs over NVLink and
# 14 µs over the network; 4 and 14 µs in the tree); 20.6 GB/s for each of an H100's 18 links.
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


def images_per_second(
    preset: dict[str, Any], batch: int, n: int, rate: str, gpu: dict[str, Any], network: Network
) -> float | None:
    """Of all n GPUs, at a batch of so many; None where that is not whole pairs for each. A GPU has
    as many in work as the preset's own batch has, more in slices."""
    if batch % (LEAST * n):
        return None
    own = batch // n
    slices = max(1, own // preset["batch"])
    kinds = from_json(preset["costs"]["pair" if own == LEAST else "batch"])
    flops = gpu["rates"][rate] * (1.0 if preset["dtype"] == "bfloat16" else gpu["tf32"])
    return batch / step_seconds(kinds, n, flops, gpu["memory"], network, slices)


def mean_flops(kinds: list[Kind]) -> float:
    """Of a step."""
    return sum(kind.share * sum(u.flops for u in kind.updates) for kind in kinds)


def on_cores(measured: dict[str, Any], demo: dict[str, Any]) -> dict[str, Any]:
    """The measured points of this machine's cores, and what the model says of them.

    From one process: its rate. From bare sums in two: latency and bandwidth. A core does both, so
    nothing overlaps, and where processes outnumber the cores each has its part of one.
    """
    seconds = {(s["processes"], s["bytes"]): s["seconds"] for s in measured["sums"]}
    alpha = seconds[2, min(size for _, size in seconds)] / 2
    largest = max(size for _, size in seconds)
    bandwidth = largest / (seconds[2, largest] - 2 * alpha)
    costs = {name: from_json(kinds) for name, kinds in demo["costs"].items()}
    alone = next(p for p in measured["points"] if p["processes"] == 1)
    rate = mean_flops(costs["batch"]) / alone["seconds"]

    def summed(size: float, n: int) -> float:
        crowd = max(1.0, n / measured["cores"])
        return crowd * (2 * (n - 1) * alpha + 2 * (n - 1) / n * size / bandwidth)

    def step(n: int, own: int) -> float:
        kinds = costs[{demo["batch"]: "batch", LEAST: "pair"}.get(own, "half")]
        sums = 0.0
        if n > 1:
            once = sum(
                k.share * sum(summed(s, n) for u in k.updates for s, _ in u.buckets) for k in kinds
            )
            sums = once + 2 * summed(0, n)  # all agree before a step, and sum its losses after it
        return mean_flops(kinds) / rate * max(1.0, n / measured["cores"]) + sums

    points = [p | {"model": step(p["processes"], p["images"])} for p in measured["points"]]
    sums = [s | {"model": summed(s["bytes"], s["processes"])} for s in measured["sums"]]
    return {"alpha": alpha, "bandwidth": bandwidth, "points": points, "sums": sums}


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
