"""What an edit costs: `python -m benchmarks.latency`.

`RegionEditor.edit` of one picture of 256 px, one region in the style of another picture, with the
weights of the package and with networks of paper-256. *total* encodes both pictures and paints;
*kept codes* is a new mask or strength on codes that are kept, which runs the generator alone.
Columns beside ours: `eager`, the same networks on the backend of that name, plain torch;
`compiled`, torch.compile of networks on the best plain operators we know; `ours compiled`,
torch.compile of ours; `onnxruntime`, what `rwm_fast.export` writes, in the editor in the place of
the networks. All must agree with float64 first and then run by turns (`benchmarks.measure`).

With `--out`, a JSON file, every finished row is kept there, with the table beside it, and the same
command goes on where it stopped; after `--minutes` no further row is begun.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import device, machine, measure, report
from benchmarks.rows import columns, networks
from benchmarks.rows import row as rows_
from benchmarks.rows.row import DTYPES, OURS, Built, Step, stopwatch
from benchmarks.store import Progress, Store
from rwm_fast import export
from rwm_fast.config import preset
from rwm_fast.models import RegionEditor
from rwm_fast.testing.cases import Work
from rwm_fast.training.trainer import build_networks

PART, KEPT = "latency", "kept codes"
# Our columns, and the operators that each runs on.
OPERATORS = {OURS: OURS, "eager": "fallback", "compiled": "rewritten", "ours compiled": OURS}
OPERATORS |= {"onnxruntime": OURS, "rewritten": "rewritten"}
SPREAD = 4  # times a random walk of roundings, which the largest of few pictures may be


class OnnxEncoder(nn.Module):
    """The exported encoder as an editor calls it: what the heads are asked for is there already."""

    def __init__(self, path: Path, threads: int, like: nn.Module) -> None:
        super().__init__()
        self.config, self.run = like.config, session(path, threads)

    def features(self, image: Tensor) -> list[Tensor]:
        return self.run([image])

    def heads(self, codes: list[Tensor]) -> list[Tensor]:
        return codes

    def style_of(self, codes: list[Tensor], mask: None) -> Tensor:
        return codes[1]


class OnnxGenerator(nn.Module):
    """The exported generator."""

    parameter_dtype = torch.float32

    def __init__(self, path: Path, threads: int, stride: int) -> None:
        super().__init__()
        self.run, self.stride = session(path, threads), stride
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # an editor asks where

    def forward(self, content: Tensor, style: Tensor, regions: Tensor | None, noise: str) -> Tensor:
        if regions is None:  # what is exported takes two: the first is everywhere
            n, _, h, w = content.shape
            regions = content.new_zeros(n, 2, h * self.stride, w * self.stride)
            regions[:, 0] = 1
            style = style[:, None].repeat(1, 2, 1)
        return self.run([content, style, regions])[0]


def session(path: Path, threads: int) -> Callable[[list[Tensor]], list[Tensor]]:
    """An exported network that runs on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in found.get_inputs()]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(y) for y in found.run(None, given)]

    return run


def editor_of(weights: str, dtype: torch.dtype) -> RegionEditor:
    """With the package's weights of that name, or networks of that preset; noise inputs get none,
    for what is exported has none."""
    if weights == "photos":
        found = RegionEditor.load(weights)
        encoder, generator = found.encoder, found.generator
    else:
        nets = build_networks(preset(weights))
        encoder, generator = nets.encoder, nets.generator
    for network in (encoder, generator):
        network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        network.to_compute(dtype if dtype == torch.bfloat16 else None)
        if dtype == torch.float64:
            network.double()
    return RegionEditor(encoder, generator, noise_seed=None)


@functools.cache
def exported(weights: str) -> tempfile.TemporaryDirectory:
    """A folder with encoder.onnx and generator.onnx, kept while the process lives."""
    folder = tempfile.TemporaryDirectory()
    export.export(editor_of(weights, torch.float32), Path(folder.name))
    return folder


def compile_editor(editor: RegionEditor) -> None:
    """What an editor calls of its networks becomes compiled functions."""
    for network, names in (
        (editor.encoder, ("features", "heads", "style_of")),
        (editor.generator, ("forward",)),
    ):
        for name in names:
            setattr(network, name, rows_.compiled(getattr(network, name)))


@dataclass
class LatencyRow(networks.NetworkRow):
    """An edit at `side` px; the networks work at that size, or at `work_size`."""

    preset: str = "photos"
    batch: int = 1
    side: int = 256
    work_size: int = 0
    threads: int = 1
    least_rounds: int = 3
    columns: tuple[str, ...] = (OURS, "eager", "compiled", "ours compiled", "onnxruntime")
    group: str = PART

    def __post_init__(self) -> None:
        at = f", networks at {self.work_size} px" if self.work_size else ""
        self.name = f"edit {self.side} px, {self.preset}{at} {self.dtype}"
        name = "demo" if self.preset == "photos" else self.preset
        self.config, self.ceiling, self.flops = preset(name), "", {}

    def work(self) -> dict[str, Work]:
        return {phase: Work(0, flops) for phase, flops in self.flops.items()}

    def missing(self, full: bool) -> dict[str, str]:
        if self.dtype == "float32":
            return {}
        return {"onnxruntime": "what is exported computes in float32"}

    def truth_of(self, column: str) -> str:
        return networks.BLENDED

    def bounds(self, column: str, plain: object) -> dict[str, float]:
        """A random walk of roundings over the sums and layers that a number passes."""
        eps = torch.finfo(DTYPES[self.dtype]).eps / torch.finfo(torch.float32).eps
        return dict.fromkeys(("total", KEPT), SPREAD * eps * self.walk())

    def editor(self, column: str, dtype: torch.dtype) -> RegionEditor:
        editor = editor_of(self.preset, dtype)
        if column in ("compiled", "ours compiled"):
            compile_editor(editor)
        if column == "onnxruntime":
            folder = Path(exported(self.preset).name)
            encoder = OnnxEncoder(folder / "encoder.onnx", self.threads, editor.encoder)
            stride = editor.generator.config.code_stride
            generator = OnnxGenerator(folder / "generator.onnx", self.threads, stride)
            return RegionEditor(encoder, generator, noise_seed=None)
        return editor

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> networks.Calls:
        editor, side = self.editor(column, dtype), self.side
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        content, style = networks.pictures(2, side).to(wide).split(1)
        masks = torch.zeros(2, 1, side, side)
        masks[0, :, side // 4 : side // 2, side // 3 :] = 1
        masks[1, :, side // 3 :, : side // 2] = 1
        size = {"work_size": self.work_size}
        inside = functools.partial(columns.inside, OPERATORS[column])
        kept = inside(
            lambda: [
                editor.encode(x, picture=p, **size) for x, p in ((content, True), (style, False))
            ]
        )()
        edit = inside(lambda: editor.edit(content, style, masks[0], **size))
        again = inside(lambda: editor.edit(*kept, masks[1]))
        answers = lambda: {"total": edit(), KEPT: again()}
        return [Step({"total": edit, KEPT: again})], answers

    def build(self, column: str, cache: int = 0) -> Built:
        facts: dict = {}
        with stopwatch(facts):
            steps, answers = self.calls(column, DTYPES[self.dtype], 1)
            answers()
        if "compiled" not in column:
            facts.clear()
        if not self.flops:
            calls = self.calls("rewritten", torch.float32, 1)[0][0].calls
            self.flops = {phase: columns.operations(call) for phase, call in calls.items()}
        return Built(steps, answers, networks.BLENDED, None, None, facts)


def rows(tiny: bool = False) -> list[LatencyRow]:
    """What is measured; tiny: small pictures, and the demo's networks for large ones."""
    if tiny:
        return [LatencyRow("photos", side=64), LatencyRow("demo", side=64)]
    found = []
    for dtype in ("float32", "bfloat16"):
        for threads in (1, 2):
            kinds = (("photos", 0), ("photos", 64), ("paper-256", 0))
            found += [
                LatencyRow(weights, work_size=work, dtype=dtype, threads=threads)
                for weights, work in kinds
            ]
    return found


def begin(store: Store) -> None:
    facts, versions = machine.cpu(), machine.software()
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    run = {"started": now, "commit": machine.commit(machine.package_folder())}
    store.begin({**versions, "name": facts["name"]}, run | {"device": facts, "software": versions})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--out", type=Path, help="results, NAME.json; the table goes beside it")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which no row is begun")
    parser.add_argument("--only", default="", help="rows with this in their names")
    text = "every row once, small, nothing compiled: a check, its times mean nothing"
    parser.add_argument("--once", action="store_true", help=text)
    arguments = parser.parse_args(argv)
    deadline = time.time() + 60 * arguments.minutes
    rows_.COMPILE = not arguments.once
    brief = dict(seconds=0.0, least_rounds=1, most_rounds=1) if arguments.once else {}
    plan = measure.Plan(
        full=True, **{"seconds": 12.0, "least_rounds": 3, "most_rounds": 15, **brief}
    )
    store = Store(arguments.out)
    begin(store)
    wanted = {report.named(row.name, row.threads): row for row in rows(arguments.once)}
    store.plan(PART, list(wanted))
    for name, row in wanted.items():
        if store.has(PART, name) or arguments.only not in name or time.time() > deadline:
            continue
        print(name, flush=True)
        reason = row.skip()
        if reason:
            result = {"dtype": row.dtype, "threads": row.threads, "skipped": reason}
        else:
            progress = Progress(store, PART, name)
            result = measure.measure(row, plan, device.Cpu(row.threads), progress)
        store.put(PART, name, result)
        torch.compiler.reset()
    text = report.markdown(report.checked(store.data))
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(bool(report.problems(store.data)))


if __name__ == "__main__":
    raise SystemExit(main())
