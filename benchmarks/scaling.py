"""Training on many GPUs, on paper: bytes, buckets, operations, and a model of images/s.

    python -m benchmarks.scaling --out FILE

writes the JSON and a table beside it, in 5 minutes of a quiet machine. What a step computes and
sends is found by `step_cost.py`, the points on this machine's cores are measured by `several.py`
(`--measured FILE` takes them from an earlier JSON instead), and the model is `scaling_model.py`. No
GPU is needed and none is measured: every number of one is modelled, from the rate that layers
reached on it (`benchmarks/results/h100.json`). `--table FILE` draws a table anew, with what
`loading.py` has measured of readers where that is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import several
from benchmarks.machine import cpu
from benchmarks.scaling_model import (
    GPUS,
    LEAST,
    NETWORKS,
    RESULTS,
    STRONG,
    gpu_rates,
    images_per_second,
    mean_flops,
    on_cores,
)
from benchmarks.step_cost import as_json, cost, from_json
from rwm_fast.config import PRESETS, Config
from rwm_fast.training.plan import meta_networks

SIDES = ("autoencoder", "discriminators", "R1")


def paper(config: Config) -> dict[str, Any]:
    """What a preset computes and sends: a GPU with its batch, and one with a pair of a batch."""
    import torch

    nets = meta_networks(config, torch.float32).as_dict()
    batch = config.train.batch
    sizes = {"batch": (batch, 1), "pair": (LEAST, 2)}
    if config.preset == "demo":  # it is measured so
        sizes["half"] = (batch // 2, 2)
    return {
        "px": config.model.image_size,
        "resize": config.data.resize,
        "batch": batch,
        "dtype": "float32" if config.train.precision == "fp32" else "bfloat16",
        "turns": config.train.step_order == "alternate",
        "parameters": {k: sum(p.numel() for p in net.parameters()) for k, net in nets.items()},
        "costs": {name: as_json(cost(config, *size)) for name, size in sizes.items()},
    }


def sent_table(presets: dict[str, Any]) -> list[str]:
    lines = [
        "| preset | batch | autoencoder, MB | discriminators, MB | buckets | GFLOP an image | "
        "sent in the backward pass: autoencoder | discriminators | R1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, preset in presets.items():
        kinds = from_json(preset["costs"]["batch"])
        updates = {u.side: u for kind in kinds[::-1] for u in kind.updates}
        megabytes = {s: sum(size for size, _ in updates[s].buckets) / 1e6 for s in SIDES}
        early = []
        for side in SIDES:
            update = updates[side]
            part = sum(size for size, left in update.buckets if left < update.flops)
            early.append(f"{part / 1e6 / megabytes[side]:.0%}")
            if part:
                first = next(left for _, left in update.buckets)
                early[-1] += f" in its last {(update.flops - first) / update.backward:.0%}"
        lines.append(
            f"| {name} | {preset['batch']} | {megabytes['autoencoder']:.1f} "
            f"| {megabytes['discriminators']:.1f} | {len(updates['autoencoder'].buckets)} and "
            f"{len(updates['discriminators'].buckets)} "
            f"| {mean_flops(kinds) / preset['batch'] / 1e9:,.1f} | {' | '.join(early)} |"
        )
    return lines


def shown(rate: float | None, whole: float) -> str:
    """images/s, and the share of as many GPUs that need not talk."""
    return "–" if rate is None else f"{rate:.0f} ({rate / whole:.0%})"


def rate_table(found: dict[str, Any], rate: str, names: list[str], strong: bool) -> list[str]:
    """Columns: numbers of GPUs, from the second machine on by network."""
    columns = [(n, net) for n in GPUS for net in NETWORKS[: 1 if n <= 8 else 2]]
    heads = [f"{n}" + (f", {net.name}" if n > 8 else "") for n, net in columns]
    lines = [f"| preset | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        preset, row = found["presets"][name], []
        one = images_per_second(preset, preset["batch"], 1, rate, found["gpu"], NETWORKS[0])
        for n, net in columns:
            batch = STRONG if strong else preset["batch"] * n
            speed = images_per_second(preset, batch, n, rate, found["gpu"], net)
            row.append(shown(speed, (one or 0.0) * n))
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def own_batch_line(found: dict[str, Any], names: list[str]) -> str:
    parts = []
    for name in names:
        preset = found["presets"][name]
        n = preset["batch"] // LEAST
        rate = lambda k, p=preset: images_per_second(
            p, p["batch"], k, "middle", found["gpu"], NETWORKS[0]
        )
        one, many = rate(1), rate(n)
        parts.append(f"{name} {many:.0f} ({many / one / n:.0%})")
    return ", ".join(parts)


def measured_tables(found: dict[str, Any]) -> list[str]:
    measured = found["measured"]
    model = on_cores(measured, found["presets"]["demo"])
    lines = [
        f"{found['machine']['name']}, {measured['cores']} cores, a process a core while there are, "
        f"one thread each, gloo; demo, float32. Load of the machine while this was measured: "
        f"{measured['load']:.1f}{measured.get('beside', '')}. From bare sums in two processes: "
        f"{1e6 * model['alpha']:.0f} µs a hop, {model['bandwidth'] / 1e9:.2f} GB/s.\n",
        "| processes | images each | images/s **measured** | modelled | measured ms a step "
        "| modelled | of these in sums, measured | MB summed a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in model["points"]:
        rate = p["processes"] * p["images"]
        lines.append(
            f"| {p['processes']} | {p['images']} | {rate / p['seconds']:.1f} "
            f"| {rate / p['model']:.1f} | {1000 * p['seconds']:.0f} | {1000 * p['model']:.0f} "
            f"| {1000 * p['waited']:.1f} | {p['bytes'] / 1e6:.2f} |"
        )
    lines += ["", "| processes | bytes | ms **measured** | modelled |", "|---|---|---|---|"]
    lines += [
        f"| {s['processes']} | {s['bytes']} | {1000 * s['seconds']:.3g} | {1000 * s['model']:.3g} |"
        for s in model["sums"]
    ]
    return lines


def loading_table(found: dict[str, Any]) -> list[str]:
    """How many cores must read for a GPU."""
    rows = [row for row in found["loading"] if row["workers"]]
    sizes = {row["px"] for row in rows}
    lines = [
        "| preset | images/s of a GPU | source | images/s of a core | cores |",
        "|---" * 5 + "|",
    ]
    for name, preset in found["presets"].items():
        one = images_per_second(preset, preset["batch"], 1, "middle", found["gpu"], NETWORKS[0])
        if one is None or name == "demo" or preset["resize"] not in sizes:
            continue
        for row in rows:
            if row["px"] == preset["resize"]:
                lines.append(
                    f"| {name} | {one:.0f} | {row['source']} | {row['per_core']:.0f} "
                    f"| {one / row['per_core']:.2g} |"
                )
    return lines


def table(found: dict[str, Any]) -> str:
    """Markdown of everything in the JSON."""
    gpu, names = found["gpu"], [name for name in found["presets"] if name != "demo"]  # of CPUs
    teraflops = {name: rate / 1e12 for name, rate in gpu["rates"].items()}
    turns = [name for name in names if found["presets"][name]["turns"]]
    sensitive = [
        f"| {rate}: {teraflops[rate]:.0f} TFLOP/s {row.removeprefix('| paper-256')}"
        for rate in gpu["rates"]
        for row in rate_table(found, rate, ["paper-256"], False)[2:]
    ]
    head = rate_table(found, "middle", ["paper-256"], False)[:2]
    blocks = [
        ["## What a step computes and sends\n", *sent_table(found["presets"])],
        [
            f"## Modelled: images/s of {gpu['name']}, the preset's batch on every GPU\n",
            f"At {teraflops['middle']:.0f} TFLOP/s a GPU in bfloat16.\n",
            *rate_table(found, "middle", names, False),
        ],
        ["The same of paper-256 at other rates of a GPU:\n", *head, *sensitive],
        [
            f"## Modelled: images/s, {STRONG} images in every step\n",
            *rate_table(found, "middle", turns, True),
            "",
            "The preset's own batch, two images on each of half as many GPUs, within a machine: "
            f"{own_batch_line(found, names)}.",
        ],
    ]
    if found.get("measured"):
        blocks.append(["## Measured: the model on cores\n", *measured_tables(found)])
    if found.get("loading"):
        blocks.append(["## Readers\n", *loading_table(found)])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="results as JSON, and a table beside it")
    parser.add_argument("--measured", type=Path, help="a JSON that has the measured points")
    parser.add_argument("--beside", default="", help="what else runs, to be said in the table")
    parser.add_argument(
        "--table", type=Path, help="draw this JSON's table anew, with readers as measured"
    )
    arguments = parser.parse_args()
    loading = sorted((RESULTS / "loading").glob("*.json"))
    rows = json.loads(loading[0].read_text())["rows"] if loading else []
    if arguments.table:
        write(json.loads(arguments.table.read_text()) | {"loading": rows}, arguments.table)
        return
    if arguments.measured:
        measured = json.loads(arguments.measured.read_text())["measured"]
    else:
        measured = several.measure(turns=3, cycles=1)
        measured["beside"] = f", beside {arguments.beside}" if arguments.beside else ""
    found = {
        "machine": cpu(),
        "gpu": gpu_rates(),
        "presets": {name: paper(config) for name, config in PRESETS.items()},
        "measured": measured,
        "loading": rows,
    }
    print(table(found))
    if arguments.out:
        write(found, arguments.out)


def write(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found) + "\n")
    path.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    main()
