"""The modules of benchmarks.gpu, and a store and a worker with a CPU in the GPU's place."""

import importlib
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
main = importlib.import_module("benchmarks.gpu.__main__")
checks = importlib.import_module("benchmarks.gpu.checks")
device = importlib.import_module("benchmarks.device")
measure = importlib.import_module("benchmarks.measure")
networks = importlib.import_module("benchmarks.rows.networks")
operators = importlib.import_module("benchmarks.rows.operators")
outside = importlib.import_module("benchmarks.gpu.outside")
report = importlib.import_module("benchmarks.report")
row_module = importlib.import_module("benchmarks.rows.row")
rows = importlib.import_module("benchmarks.rows")
store = importlib.import_module("benchmarks.store")
supervise = importlib.import_module("benchmarks.gpu.supervise")
tally = importlib.import_module("benchmarks.gpu.tally")
worker = importlib.import_module("benchmarks.worker")

CPU = torch.device("cpu")


def new_store(folder):
    found = store.Store(folder / "results.json")
    found.begin({"name": "a CPU"}, {"device": {}, "software": {}, "commit": "", "started": ""})
    return found


def new_worker(folder, **more):
    more = {"deadline": time.time() + 1000, "tiny": True, **more}
    return worker.Worker(new_store(folder), device.StandIn(), **more)
