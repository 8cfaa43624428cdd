"""The modules of benchmarks.gpu, and a store and a worker with a CPU in the GPU's place."""

import importlib
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
schema = importlib.import_module("benchmarks.report")
main = importlib.import_module("benchmarks.gpu.__main__")
checks = importlib.import_module("benchmarks.gpu.checks")
device = importlib.import_module("benchmarks.gpu.device")
measure = importlib.import_module("benchmarks.gpu.measure")
networks = importlib.import_module("benchmarks.gpu.networks")
outside = importlib.import_module("benchmarks.gpu.outside")
report = importlib.import_module("benchmarks.gpu.report")
rows = importlib.import_module("benchmarks.gpu.rows")
store = importlib.import_module("benchmarks.gpu.store")
supervise = importlib.import_module("benchmarks.gpu.supervise")
tally = importlib.import_module("benchmarks.gpu.tally")
worker = importlib.import_module("benchmarks.gpu.worker")

QUICK = measure.Plan(0.001, 2, 2)
CPU = torch.device("cpu")


def new_store(folder):
    found = store.Store(folder / "results.json")
    found.begin({"name": "a CPU"}, {"device": {}, "software": {}, "commit": "", "started": ""})
    return found


def new_worker(folder, **more):
    more = {"deadline": time.time() + 100, "tiny": True, "plan": QUICK, **more}
    return worker.Worker(new_store(folder), device.Cpu(), **more)
