"""Small networks of the demo's layout as ONNX files, written once for all tests that run them."""

import pytest
import torch

from rwm_fast import export
from rwm_fast.models import Encoder, Generator, RegionEditor


def editor_of(config):
    torch.manual_seed(0)
    return RegionEditor(Encoder(config), Generator(config)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(editor, folder)"""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="extra onnx is not installed")
    from tests.models.tiny_networks import DEMO

    editor, folder = editor_of(DEMO), tmp_path_factory.mktemp("onnx") / "exported"
    export.export(editor, folder)
    return editor, folder
