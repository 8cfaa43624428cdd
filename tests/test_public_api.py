"""What `import rwm_fast` offers, and what it must not do."""

import importlib
import inspect
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import rwm_fast

NAMES = {
    "modulated_conv2d", "masked_l1", "crop_patches", "sample_boxes", "bias_act", "upfirdn2d",
    "conv2d_bias_act", "conv2d_resample", "use_backend", "explain", "Encoder", "Generator",
    "ImageDiscriminator", "PatchDiscriminator", "RegionEditor", "Config", "build_info",
    "absent_gradients", "__version__",
}  # fmt: skip

# The signatures are the contract with callers: names, order, defaults, what is keyword-only.
SIGNATURES = {
    "modulated_conv2d": (
        "(x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,"
        " demodulate=True, flip_weight=True, fused_modconv=True, *, regions=None,"
        " noise_strength=None, bias=None, activation='linear', negative_slope=0.2, gain=None,"
        " clamp=None, eps=1e-08)"
    ),
    "masked_l1": "(hybrid, inside, outside, mask)",
    "crop_patches": "(image, boxes, size)",
    "sample_boxes": (
        "(batch, num_patches, scale=(0.125, 0.25), *, flip=True, generator=None, device=None)"
    ),
    "conv2d_bias_act": (
        "(x, weight, bias=None, *, padding=0, down=1, resample_filter=None, weight_gain=1.0,"
        " activation='linear', negative_slope=0.2, gain=None, clamp=None)"
    ),
    "conv2d_resample": (
        "(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False)"
    ),
    "bias_act": (
        "(x, bias=None, *, activation='linear', negative_slope=0.2, gain=None, clamp=None)"
    ),
    "upfirdn2d": "(x, filter, *, up=1, down=1, padding=0, flip_filter=False, gain=1.0)",
    "use_backend": "(name)",
    "absent_gradients": "(kind)",
    "explain": "(op, *args, **kwargs)",
}


def python(code):
    """What a fresh interpreter prints, as JSON; warnings are errors there."""
    command = [sys.executable, "-W", "error", "-c", f"import json, sys\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_all_is_the_written_list():
    assert set(rwm_fast.__all__) == NAMES
    assert set(dir(rwm_fast)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_imports(name):
    assert getattr(rwm_fast, name) is not None
    exec(f"from rwm_fast import {name}", {})


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures(name):
    signature = inspect.signature(getattr(rwm_fast, name))
    bare = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    assert str(bare) == SIGNATURES[name]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rwm_fast' has no attribute 'nonsense'"):
        rwm_fast.nonsense  # noqa: B018


def test_train_is_the_command_and_nothing_else():
    """The function is `rwm_fast.training.run.train`."""
    module = importlib.import_module("rwm_fast.train")
    assert rwm_fast.train is module and "train" not in rwm_fast.__all__


def test_import_brings_nothing_in():
    heavy = python(
        "before = set(sys.modules); import rwm_fast\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    assert not set(heavy) - set(sys.stdlib_module_names) - {"rwm_fast"}


def test_operators_bring_in_torch_and_no_optional_package():
    new = python(
        "import torch; before = set(sys.modules)\n"
        "from rwm_fast import modulated_conv2d, masked_l1, crop_patches, bias_act, upfirdn2d\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    assert not set(new) - set(sys.stdlib_module_names) - {"rwm_fast", "torch"}


def test_import_costs_little_beyond_torch():
    """No package but safetensors, and 38,000 function calls, which take an eighth of a second:
    counted, for a busy machine must not decide."""
    new, calls = python(
        "import torch; before, calls = set(sys.modules), 0\n"
        "def count(frame, event, argument):\n"
        "    global calls; calls += event in ('call', 'c_call')\n"
        "sys.setprofile(count)\nfrom rwm_fast import *\nsys.setprofile(None)\n"
        "print(json.dumps([sorted({m.split('.')[0] for m in set(sys.modules) - before}), calls]))"
    )
    assert not set(new) - set(sys.stdlib_module_names) - {"rwm_fast", "safetensors", "torch"}
    assert calls < 60_000


def test_import_builds_downloads_and_writes_nothing(tmp_path):
    """With no network, no compiler and a read-only home: still the same names."""
    assert python(
        "import os, socket, subprocess\n"
        "def refuse(*a, **k): raise AssertionError('import reached outside')\n"
        "import torch; socket.socket.connect = subprocess.Popen.__init__ = os.mkdir = refuse\n"
        "from rwm_fast import *\n"
        "import rwm_fast.ops._extension as e; e.load_cpu()\n"
        "print(json.dumps(True))"
    )


def test_version_is_the_installed_one():
    try:
        installed = metadata.version("rwm_fast")
    except metadata.PackageNotFoundError:
        pytest.skip("rwm_fast runs from a source tree that is not installed")
    assert rwm_fast.__version__ == installed


def test_the_package_is_typed():
    assert (Path(rwm_fast.__file__).parent / "py.typed").exists()


def test_build_info_says_what_was_built_or_why_not():
    info = rwm_fast.build_info()
    assert info["version"] == rwm_fast.__version__
    for part in ("cpu", "cuda"):
        assert info[part].startswith(("built with ", "not built: ")), info
