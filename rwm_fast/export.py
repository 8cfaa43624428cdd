"""The networks for other runtimes: `python -m rwm_fast.export --checkpoint RUN --out FOLDER` writes
encoder.onnx and generator.onnx (with --format torch: .pt2), which need nothing of this package;
with --format browser: a page that edits pictures in the browser, for any web server to serve.

Batch, height and width stay open. What was written is run at two sizes and batches, and kept if it
gives what the networks give."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rwm_fast.app import browser
from rwm_fast.app.command_line import parse_into
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import Encoder, Generator, RegionEditor
from rwm_fast.models.pretrained import DEFAULT
from rwm_fast.ops._registry import TRUTHS

TOLERANCE = 1e-4  # of codes of unit length, and of images in [−1, 1]
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: Path  # the folder to write into; made if there is none
    checkpoint: str = DEFAULT  # a name of the package's own weights, a run folder, a weights file
    format: Literal["onnx", "torch", "browser"] = "onnx"  # ONNX, torch.export's own, or a web page
    regions: int = 2  # how many the generator takes: the picture's own style, and one or more

    def __post_init__(self) -> None:
        if self.regions < 1:
            raise ValueError(f"--regions: expected at least 1, got {self.regions}")
        if self.format == "browser" and self.regions != 2:
            raise ValueError(f"--regions: expected 2 with --format browser, got {self.regions}")


class Painter(nn.Module):
    """The generator as it is exported: content [N, C, h, w], styles [N, K, D], regions
    [N, K, H, W], r ≥ 0 of sum 1 over K → image [N, 3, H, W]. Models with noise inputs get none.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, content: Tensor, styles: Tensor, regions: Tensor) -> Tensor:
        image: Tensor = self.generator(content, styles, regions, "none")
        return image


@dataclass(frozen=True)
class Part:
    """A network, the names of what goes in and out, and an example of what goes in."""

    name: str
    module: nn.Module
    inputs: dict[str, dict[int, Any]]  # name -> its open dimensions
    outputs: tuple[str, ...]
    example: Callable[[int, int, int], tuple[Tensor, ...]]  # batch; height, width in strides

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The network's own results."""
        with torch.no_grad():
            results = self.module(*inputs)
        return results if isinstance(results, tuple) else (results,)


def least_size(encoder: Encoder) -> int:
    """Least height and width in strides: two pixels where the style head averages, for torch takes
    a size of 1 for a constant."""
    config, least = encoder.config, 2
    for _ in config.style_channels:
        least = 2 * least + (config.style_blocks == "valid")
    strides: int = -(-least * config.code_stride // config.stride)
    return max(strides, 2)


def parts(encoder: Encoder, generator: Generator, count: int) -> tuple[Part, Part]:
    """What is exported; the generator for `count` regions."""
    config, least, draw = encoder.config, least_size(encoder), torch.Generator().manual_seed(0)
    stride, fold, n = config.stride, config.content_fold, Dim("batch")
    rows, columns = Dim("rows", min=least), Dim("columns", min=least)
    image = {0: n, 2: stride * rows, 3: stride * columns}
    code = {0: n, 2: fold * rows, 3: fold * columns}

    def images(batch: int, h: int, w: int) -> tuple[Tensor]:
        return (torch.rand(batch, 3, h * stride, w * stride, generator=draw) * 2 - 1,)

    def codes(batch: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        planes = torch.rand(batch, count, h * stride, w * stride, generator=draw)
        content = torch.randn(batch, config.content_channels, h * fold, w * fold, generator=draw)
        styles = torch.randn(batch, count, config.style_dim, generator=draw)
        return content, styles, planes / planes.sum(1, keepdim=True)

    inputs = {"content": code, "styles": {0: n}, "regions": image}
    return (
        Part("encoder", encoder, {"image": image}, ("content", "style"), images),
        Part("generator", Painter(generator), inputs, ("image",), codes),
    )


def program(part: Part, least: int) -> ExportedProgram:
    """The part as a graph of torch's own operators: each of ours is replaced by its reference."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
        example, open_sizes = part.example(2, least + 2, least + 4), list(part.inputs.values())
        graph: Any = torch.export.export(
            part.module, example, dynamic_shapes=open_sizes, strict=False
        )
        traced: ExportedProgram = graph.run_decompositions(
            {**torch.export.default_decompositions(), **TRUTHS}
        )
        return traced


def write_torch(graph: ExportedProgram, part: Part, path: Path, about: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of itself
        torch.export.save(graph, path, extra_files={"about.json": json.dumps(about)})


def read_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            results = module(*inputs)
        return results if isinstance(results, (tuple, list)) else (results,)

    return run


def write_onnx(graph: ExportedProgram, part: Part, path: Path, about: dict[str, str]) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of itself
        onnx = torch.onnx.export(
            graph,
            dynamo=True,
            verbose=False,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
        )
    assert onnx is not None  # as with dynamo=True
    onnx.model.metadata_props.update(about)
    onnx.save(path)


def read_onnx(path: Path) -> Run:
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, given)]

    return run


FORMATS = {"onnx": (write_onnx, read_onnx), "torch": (write_torch, read_torch)}


def error(part: Part, run: Run, least: int) -> float:
    """The largest difference between what was written and the network, at two sizes and batches."""
    worst = 0.0
    for size in ((1, least, least + 3), (3, least + 5, least + 1)):
        inputs = part.example(*size)
        for ours, theirs in zip(part.run(inputs), run(inputs), strict=True):
            worst = max(worst, (ours - theirs).abs().max().item())
    return worst


def export(
    editor: RegionEditor, out: Path, format: str = "onnx", regions: int = 2
) -> dict[Path, float]:
    """Writes both networks of a float32 editor on the CPU into a folder: path -> largest error.

    UserError if a file would differ from its network by more than `TOLERANCE`: then it is not kept.
    """
    write, read = FORMATS[format]
    config, least = editor.encoder.config, least_size(editor.encoder)
    facts = (config.stride, config.image_size, least, regions)
    names = ("stride", "image_size", "least_strides", "regions")
    about = {name: str(fact) for name, fact in zip(names, facts, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for part in parts(editor.encoder, editor.generator, regions):
        path = out / f"{part.name}{SUFFIX[format]}"
        partial = out / f".partial-{path.name}"
        try:
            write(program(part, least), part, partial, about)
            written[path] = error(part, read(partial), least)
            if not written[path] <= TOLERANCE:
                rule = f"{path}: expected to be within {TOLERANCE:g} of the network"
                raise UserError(f"{rule}, got {written[path]:.1e}; it is not kept")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return written


def page(editor: RegionEditor, out: Path) -> None:
    """Makes a folder with a page that edits by these networks, and says how to look at it."""
    config = editor.encoder.config
    facts = (config.stride, least_size(editor.encoder), config.image_size)
    size = browser.build(out, lambda folder: export(editor, folder), *facts)
    print(f"{out}: {size / 1e6:.1f} MB; to look at it: python -m http.server --directory {out}")


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_into(Arguments, given, "export", __doc__)
    if arguments.format != "torch":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"--format {arguments.format} needs {name}: pip install 'rwm_fast[onnx]'"
                )
    editor = RegionEditor.load(arguments.checkpoint)
    if arguments.format == "browser":
        page(editor, arguments.out)
        return 0
    written = export(editor, arguments.out, arguments.format, arguments.regions)
    for path, difference in written.items():
        size = path.stat().st_size / 1e6
        print(f"{path}: {size:.1f} MB, within {difference:.1e} of the network at two sizes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
