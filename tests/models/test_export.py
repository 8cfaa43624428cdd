"""What `rwm_fast.export` writes: run elsewhere, at any size, it gives what the networks give."""

import json
import zipfile
from pathlib import Path

import pytest
import repository as repo
import torch
from exported import editor_of

from rwm_fast import export
from rwm_fast.errors import UserError
from tests.models.tiny_networks import DEMO, PAPER


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The layout of the paper's presets, in torch.export's form."""
    folder, editor = tmp_path_factory.mktemp("torch"), editor_of(PAPER)
    return folder, editor, export.export(editor, folder, "torch", regions=3)


def agree(editor, folder, read, suffix, regions, sizes):
    """Read anew and run at other sizes, as somebody else would."""
    encoder, generator = export.parts(editor.encoder, editor.generator, regions)
    for part in (encoder, generator):
        run = read(folder / f"{part.name}{suffix}")
        for size in sizes:
            inputs = part.example(*size)
            for ours, theirs in zip(part.run(inputs), run(inputs), strict=True):
                torch.testing.assert_close(theirs, ours, atol=export.TOLERANCE, rtol=0)


def test_torch(paper):
    folder, editor, written = paper
    assert set(written) == {folder / "encoder.pt2", folder / "generator.pt2"}
    least = export.least_size(editor.encoder)
    agree(editor, folder, export.read_torch, ".pt2", 3, [(1, least, least), (4, least + 7, least)])


def test_what_is_written_needs_nothing_of_this_package(paper):
    for path in paper[2]:
        graph = torch.export.load(path).graph
        assert not any("rwm_fast" in str(node.target) for node in graph.nodes)
        with zipfile.ZipFile(path) as file:
            name = next(n for n in file.namelist() if n.endswith("about.json"))
            assert json.loads(file.read(name))["regions"] == "3"


def test_onnx(exported, monkeypatch):
    import onnx

    editor, folder = exported
    least = export.least_size(editor.encoder)
    agree(editor, folder, export.read_onnx, ".onnx", 2, [(1, least, least + 9), (2, 30, 17)])
    model = onnx.load(folder / "generator.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["stride"] == str(DEMO.stride) and about["regions"] == "2"
    assert not {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    the_document_runs(folder.parent, monkeypatch)


def the_document_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (_, line, block), *more = repo.blocks(Path("docs/export.md"), "python")
    assert not more
    names = {}
    exec(compile("\n" * (line - 1) + block, "docs/export.md", "exec"), names)
    assert names["edited"].shape == (1, 3, 128, 192)


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "error", lambda *_: float("nan"))
    monkeypatch.setattr(export, "program", lambda *_: None)
    monkeypatch.setitem(
        export.FORMATS, "torch", (lambda *a: a[2].write_bytes(b"spoiled"), lambda path: None)
    )
    with pytest.raises(UserError, match="encoder.pt2: expected to be within 0.0001 .* nan"):
        export.export(editor_of(DEMO), tmp_path, "torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--regions", "0"], "--regions: expected at least 1, got 0"),
        (["--regions", "3", "--format", "browser"], "--regions: expected 2 with --format browser"),
        (["--format", "torch"], "nowhere"),
    ],
)
def test_complaints(given, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        export.main(["--checkpoint", "nowhere", "--out", str(tmp_path), *given])
    assert end.value.code == 2 and sentence in capsys.readouterr().err
