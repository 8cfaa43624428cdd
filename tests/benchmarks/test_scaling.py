"""The model of many GPUs: its arithmetic, its bytes, and the committed tables."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from rwm_fast.config import PRESETS

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
scaling = importlib.import_module("benchmarks.scaling")
model = importlib.import_module("benchmarks.scaling_model")
step_cost = importlib.import_module("benchmarks.step_cost")
ddp = importlib.import_module("benchmarks.ddp")
loading = importlib.import_module("benchmarks.loading")
FOLDER = ROOT / "benchmarks/results/scaling"


@pytest.fixture(scope="module")
def demo():
    return scaling.paper(PRESETS["demo"])


def test_bytes_are_those_of_the_parameters(demo):
    count = demo["parameters"]
    sides = {
        "autoencoder": count["encoder"] + count["generator"],
        "discriminators": count["discriminator"] + count["patches"],
    }
    sides["R1"] = sides["discriminators"]
    kinds = step_cost.from_json(demo["costs"]["batch"])
    assert sum(kind.share for kind in kinds) == 1
    for update in (u for kind in kinds for u in kind.updates):
        assert sum(size for size, _ in update.buckets) == 4 * sides[update.side]
        left = [done for _, done in update.buckets]
        assert left == sorted(left) and left[-1] <= update.flops
        assert left[0] < update.flops  # something leaves while the backward pass goes on


def test_work_goes_with_the_pictures(demo):
    """A share without imbalance has its part; a pair that lies in the first half has more."""
    flops = {k: model.mean_flops(step_cost.from_json(v)) for k, v in demo["costs"].items()}
    assert flops["half"] / flops["batch"] == pytest.approx(1 / 2, rel=0.05)
    assert flops["pair"] / flops["batch"] > 1 / 4


def test_a_sum_over_processes():
    slow, fast = model.NETWORKS
    assert model.all_reduce(1e9, 1, slow) == 0.0
    link = model.NVLINK
    ring = model.BASE + 14 * link.alpha + 2 * 7 / 8 * 1e9 / link.bandwidth
    assert model.all_reduce(1e9, 8, slow) == pytest.approx(ring) == model.all_reduce(1e9, 8, fast)
    more = 2 * 63 / 64 * 1e9 * (1 / 12.5e9 - 1 / 50e9)  # the hops are the same
    assert model.all_reduce(1e9, 64, slow) - model.all_reduce(1e9, 64, fast) == pytest.approx(more)
    assert model.all_reduce(1e3, 512, fast) > model.all_reduce(1e3, 64, fast)


def test_one_gpu_sends_nothing_and_a_faster_network_is_never_slower(demo):
    gpu = model.gpu_rates()
    assert gpu["rates"]["low"] < gpu["rates"]["middle"] < gpu["rates"]["high"]
    kinds = step_cost.from_json(demo["costs"]["batch"])
    rate = gpu["rates"]["middle"]
    computed = model.mean_flops(kinds) / rate
    assert model.step_seconds(kinds, 1, rate, float("inf"), model.NETWORKS[0]) == pytest.approx(
        computed
    )
    for n in (8, 64, 512):
        slow, fast = (
            model.images_per_second(demo, 8 * n, n, "middle", gpu, net) for net in model.NETWORKS
        )
        assert (
            0
            < slow
            <= fast
            < n * model.images_per_second(demo, 8, 1, "middle", gpu, model.NETWORKS[0])
        )
    assert model.images_per_second(demo, 8, 8, "middle", gpu, model.NETWORKS[0]) is None


def test_a_bucket_waits_for_the_one_before_it():
    update = step_cost.Update("autoencoder", 100, 50, [(10**9, 60), (10**9, 90)])
    once = model.all_reduce(10**9, 8, model.NETWORKS[0])
    assert model.ready(update, 8, 1e9, model.NETWORKS[0]) == pytest.approx(60e-9 + 2 * once)
    assert model.ready(update, 8, 1.0, model.NETWORKS[0]) == 100.0  # hidden behind the rest
    assert model.ready(update, 8, 1.0, model.NETWORKS[0], slices=3) == 300.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_committed_tables_are_what_their_json_says(path):
    found = json.loads(path.read_text())
    text = ddp.table(found["rows"]) if path.stem.startswith("ddp") else scaling.table(found)
    assert text == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "loading").glob("*.json")))
def test_committed_loading_is_its_table(path):
    found = json.loads(path.read_text())
    assert loading.table(found) == path.with_suffix(".md").read_text()
    assert {row["preset"] for row in found["trained"]} == set(PRESETS)
    assert all(row["share"] < 0.02 for row in found["trained"])
