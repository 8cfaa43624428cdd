"""Synthetic packages, laid out as each family lays out its files, imported under the drop-in.

Their operators start with an error in the place of a CUDA build: an import that goes through has
not touched them.
"""

import importlib
import logging
import sys
import textwrap

import formulas
import pytest
import torch

from rwm_fast import dropin
from rwm_fast.dropin import _calls, _finder

BUILD = 'raise RuntimeError("a CUDA build starts")\n'
UP = "up=1, down=1, padding=0, flip_filter=False, gain=1, impl='cuda'"
NVIDIA = {
    "dnnlib.py": "",
    "torch_utils/__init__.py": "",
    "torch_utils/misc.py": "here = 'theirs'\n",
    "torch_utils/ops/__init__.py": "",
    "torch_utils/ops/upfirdn2d.py": f"""
        import numpy as np
        import torch
        def _init(): return True
        def setup_filter(f, device=torch.device('cpu'), normalize=True, flip_filter=False,
                         gain=1, separable=None): pass
        def upfirdn2d(x: torch.Tensor, f, {UP}): pass
        def _upfirdn2d_ref(x, f): pass
        """,
    "torch_utils/ops/bias_act.py": """
        def bias_act(x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None,
                     impl='cuda'): pass
        """,
    "torch_utils/ops/filtered_lrelu.py": """
        def filtered_lrelu(x, fu=None, fd=None, b=None, up=1, down=1, padding=0,
                           gain=np.sqrt(2), slope=0.2, clamp=None, flip_filter=False,
                           impl='cuda'): pass
        """,
    "torch_utils/ops/conv2d_resample.py": """
        def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True,
                            flip_filter=False): pass
        """,
    "torch_utils/ops/fma.py": """
        class _FusedMultiplyAdd(torch.autograd.Function): pass
        def fma(a, b, c): return _FusedMultiplyAdd.apply(a, b, c)
        """,
    "torch_utils/ops/conv2d_gradfix.py": """
        def no_weight_gradients(): yield
        def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): pass
        """,
    "torch_utils/ops/grid_sample_gradfix.py": "def grid_sample(input, grid): pass",
    "training/networks.py": """
        import torch
        from torch_utils import misc
        from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma
        from torch_utils.ops import filtered_lrelu, grid_sample_gradfix, upfirdn2d
        from torch_utils.ops.upfirdn2d import _get_filter_size, _parse_padding
        def layer(x, w, b):
            f = upfirdn2d.setup_filter([1, 3, 3, 1])
            gain = bias_act.activation_funcs['lrelu'].def_gain
            with conv2d_gradfix.no_weight_gradients():
                x = conv2d_resample.conv2d_resample(x=x, w=w, f=f, down=2, padding=1)
            return fma.fma(bias_act.bias_act(x, b, act='lrelu', gain=gain), x, x)
        """,
}
SLOPE = "negative_slope=0.2, scale=2 ** 0.5"
FUSED = f"""
class FusedLeakyReLUFunction(Function): pass
class FusedLeakyReLU(nn.Module):
    def __init__(self, channel, bias=True, {SLOPE}):
        self.bias = nn.Parameter(torch.zeros(channel))
def fused_leaky_relu(input, bias=None, {SLOPE}): pass
"""
OLD_FUSED = FUSED.replace("bias=True, ", "").replace("bias=None", "bias")
UPFIRDN = """
class UpFirDn2d(Function): pass
def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)): pass
def upfirdn2d_native(input, kernel, up_x, up_y, down_x, down_y,
                     pad_x0, pad_x1, pad_y0, pad_y1): pass
"""
GRADFIX = """
def no_weight_gradients(): yield
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): pass
def could_use_op(input): pass
def ensure_tuple(xs, ndim): pass
def conv2d_gradfix(transpose, weight_shape, stride): pass
"""
PORT = "from .fused_act import FusedLeakyReLU, fused_leaky_relu\nfrom .upfirdn2d import upfirdn2d\n"
MMCV_FUSED = (
    FUSED.replace("channel, bias=True", "num_channels")
    .replace("bias=None", "bias")
    .replace("FusedLeakyReLU", "FusedBiasLeakyReLU")
    .replace("fused_leaky_relu", "fused_bias_leakyrelu")
    .replace("zeros(channel)", "zeros(num_channels)")
)
MMCV_UP = """
def upfirdn2d(input: torch.Tensor, filter: torch.Tensor, up: int = 1, down: int = 1,
              padding: Union[int, List[int]] = 0, flip_filter: bool = False,
              gain: Union[float, int] = 1, use_custom_op: bool = True): pass
"""
MMCV_2 = {
    "mmcv/ops/bias_act.py": """
        class EasyDict(dict): pass
        def bias_act(input, bias=None, dim=1, act='linear', alpha=None, gain=None, clamp=None,
                     use_custom_op=True): pass
        """,
    "mmcv/ops/filtered_lrelu.py": """
        def filtered_lrelu(input, filter_up=None, filter_down=None, bias=None, up=1, down=1,
                           padding=0, gain=np.sqrt(2), slope=0.2, clamp=None, flip_filter=False,
                           use_custom_op=True): pass
        """,
    "mmcv/ops/conv2d_gradfix.py": """
        def no_weight_gradients(disable=True): yield
        def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): pass
        """,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes files into a folder on the path; what they import is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    for record in (_finder.replaced, _finder.left, _calls.calls):
        record.clear()
    dropin.install()

    def write(files, build=BUILD):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            operator = "def " in text and "training" not in name and "import" not in text[:7]
            path.write_text((build if operator else "") + textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module

    yield write
    for name in set(sys.modules) - before:
        if not name.startswith(("rwm_fast", "torch.")):  # loaded late, to stay
            del sys.modules[name]
    dropin.uninstall()


def packages(path):
    """`__init__.py` for every folder above a file."""
    parts = path.split("/")[:-1]
    return {"/".join((*parts[: i + 1], "__init__.py")): "" for i in range(len(parts))}


def test_nvidia(project, caplog):
    load = project(NVIDIA)
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        networks = load("training.networks")
    assert networks.misc.here == "theirs"
    assert sorted(dropin.report().replaced) == sorted(
        f"torch_utils.ops.{name.split('/')[-1].removesuffix('.py')}"
        for name in NVIDIA
        if name.startswith("torch_utils/ops/") and "__init__" not in name
    )
    assert len([r for r in caplog.records if "runs on rwm_fast" in r.message]) == 7
    x, w, b = formulas.normal(2, 3, 6, 6), formulas.normal(4, 3, 3, 3), formulas.normal(4)
    f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8

    def theirs(x, w, b):
        x = formulas.conv2d_resample(x, w, f, 1, 2, (1, 1, 1, 1))
        return formulas.leaky(x, b) * x + x

    formulas.assert_same(networks.layer, theirs, x, w, b)
    assert networks.grid_sample_gradfix.enabled is False
    assert networks._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert networks._get_filter_size(torch.zeros(2, 3)) == (3, 2)
    assert networks.filtered_lrelu._init() and networks.upfirdn2d._init()


def test_report_says_what_ran(project):
    load = project(NVIDIA)
    bias_act = load("torch_utils.ops.bias_act").bias_act
    for _ in range(3):
        bias_act(torch.ones(1, 2, 3, 3), act="lrelu")
    bias_act(torch.ones(1, 2), act="tanh")
    calls = {(c.function, c.operator): (c.backend, n) for c, n in dropin.report().calls.items()}
    assert calls["nvidia.bias_act", "bias_act"][1] == 3
    assert calls["nvidia.bias_act", "bias_act"][0] in ("native", "eager")
    assert calls["nvidia.bias_act", "torch"] == ("torch", 1)
    lines = str(dropin.report()).splitlines()
    assert lines[0] == "torch_utils.ops.bias_act: NVIDIA"
    assert lines[1].startswith("nvidia.bias_act -> bias_act (cpu, float32): ")
    assert lines[1].endswith(", 3 x")


@pytest.mark.parametrize(
    "package", ["op", "stylegan2.op", "models.stylegan2.op", "models.networks.stylegan2_op"]
)
def test_port(project, package):
    folder = package.replace(".", "/")
    files = {"fused_act.py": FUSED, "upfirdn2d.py": UPFIRDN, "conv2d_gradfix.py": GRADFIX}
    load = project(
        packages(f"{folder}/x")
        | {f"{folder}/__init__.py": PORT + "theirs = 1\n"}
        | {f"{folder}/{name}": text for name, text in files.items()}
    )
    op, gradfix = load(package), load(f"{package}.conv2d_gradfix")
    assert op.theirs == 1 and op.__file__.endswith("__init__.py")
    assert op.FusedLeakyReLU(4, True, 0.3).negative_slope == 0.3
    x = torch.ones(1, 1, 4, 4)
    assert op.upfirdn2d(x, torch.ones(2, 2), pad=(1, 0)).shape == (1, 1, 4, 4)
    assert gradfix.conv2d(x, torch.ones(1, 1, 3, 3)).shape == (1, 1, 2, 2)
    assert set(dropin.report().replaced) == {
        f"{package}.{name}" for name in ("fused_act", "upfirdn2d", "conv2d_gradfix")
    }


def test_the_older_port_has_its_own_arguments(project):
    """The slope is the second argument of the layer, not the third."""
    load = project(
        {"op/__init__.py": PORT, "op/fused_act.py": OLD_FUSED, "op/upfirdn2d.py": UPFIRDN}
    )
    layer = load("op").FusedLeakyReLU(4, 0.3)
    assert layer.negative_slope == 0.3 and layer.bias.shape == (4,)


def test_basicsr(project):
    files = {
        "basicsr/__init__.py": "",
        "basicsr/ops/__init__.py": "",
        "basicsr/ops/fused_act/__init__.py": PORT.split("\n")[0],
        "basicsr/ops/upfirdn2d/__init__.py": PORT.split("\n")[1],
        "basicsr/ops/fused_act/fused_act.py": OLD_FUSED,
        "basicsr/ops/upfirdn2d/upfirdn2d.py": UPFIRDN,
    }
    load = project(files)
    fused, up = load("basicsr.ops.fused_act"), load("basicsr.ops.upfirdn2d")
    assert fused.FusedLeakyReLU(channel=2, negative_slope=0.1, scale=1).scale == 1
    assert up.upfirdn2d(torch.ones(1, 1, 4, 4), torch.ones(2, 2), up=2).shape == (1, 1, 7, 7)
    assert fused.__file__.endswith("__init__.py")  # the folders stay theirs


@pytest.mark.parametrize(("source", "size"), [(MMCV_UP, (5, 7)), (UPFIRDN, (6, 6))])
def test_mmcv_of_both_ages(project, source, size):
    """A padding (1, 2) is [x, y] in the newer, and (before, after) in the older."""
    names = "from .upfirdn2d import upfirdn2d\n"
    names += "from .fused_bias_leakyrelu import FusedBiasLeakyReLU, fused_bias_leakyrelu\n"
    files = {"mmcv/__init__.py": "", "mmcv/ops/__init__.py": names}
    files |= {"mmcv/ops/upfirdn2d.py": source, "mmcv/ops/fused_bias_leakyrelu.py": MMCV_FUSED}
    load = project(files | (MMCV_2 if source == MMCV_UP else {}))
    ops = load("mmcv.ops")
    y = ops.upfirdn2d(torch.ones(1, 1, 4, 4), torch.ones(2, 2), 1, 1, (1, 2))
    assert tuple(y.shape[2:])[::-1] == size
    assert ops.FusedBiasLeakyReLU(num_channels=2)(torch.ones(1, 2)).shape == (1, 2)
    if source == MMCV_UP:
        assert load("mmcv.ops.bias_act").activation_funcs["lrelu"].def_alpha == 0.2
        assert load("mmcv.ops.filtered_lrelu")._get_filter_size(None) == (1, 1)
        assert load("mmcv.ops.conv2d_gradfix").enabled is False
        assert len(dropin.report().replaced) == 5


def test_mmgeneration(project):
    """NVIDIA's files in another folder, with a class of their own."""
    folder = "mmgen/ops/stylegan3/ops"
    files = packages(f"{folder}/x")
    for name in ("upfirdn2d", "bias_act", "filtered_lrelu"):
        files[f"{folder}/{name}.py"] = NVIDIA[f"torch_utils/ops/{name}.py"]
    files[f"{folder}/bias_act.py"] += "class EasyDict(dict): pass\n"
    files["mmgen/ops/conv2d_gradfix.py"] = MMCV_2["mmcv/ops/conv2d_gradfix.py"]
    load = project(files)
    assert load("mmgen.ops.stylegan3.ops.bias_act").activation_funcs["relu"].def_alpha == 0
    for name in ("stylegan3.ops.upfirdn2d", "stylegan3.ops.filtered_lrelu", "conv2d_gradfix"):
        load(f"mmgen.ops.{name}")
    assert set(dropin.report().replaced.values()) == {"mmgeneration"}
    assert len(dropin.report().replaced) == 4


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def bias_act(x, b=None, dim=1, act='lrelu'): pass", "its bias_act(x, b=None, dim=1, "),
        ("def bias_act(x): pass", "its bias_act(x) is not the known bias_act(x, b=None, "),
        ("def another(x): pass", "it defines another, which is not known"),
    ],
)
def test_an_unknown_file_is_left_as_it_is(project, caplog, source, why):
    files = NVIDIA | {"torch_utils/ops/bias_act.py": f"mark = 1\n{source}"}
    load = project(files, build="")
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        assert load("torch_utils.ops.bias_act").mark == 1
    assert "torch_utils.ops.bias_act" not in dropin.report().replaced
    assert dropin.report().left["torch_utils.ops.bias_act"].startswith(why)
    assert [r.message for r in caplog.records if "is left as it is: " + why in r.message]
    assert f"torch_utils.ops.bias_act: left as it is: {why}" in str(dropin.report())


def test_a_bias_of_another_shape_is_left(project):
    shaped = FUSED.replace("zeros(channel)", "zeros(1, channel, 1, 1)")
    load = project({"op/__init__.py": "", "op/fused_act.py": "mark = 1\n" + shaped}, build="")
    with pytest.raises(NameError):  # theirs runs, which here has no torch
        load("op.fused_act")
    assert dropin.report().left == {
        "op.fused_act": "its FusedLeakyReLU keeps a bias of several dimensions"
    }


def test_what_was_imported_before_stays_and_is_named(project):
    load = project({"op/__init__.py": "", "op/upfirdn2d.py": "mark = 1\n"})
    dropin.uninstall()
    theirs = load("op.upfirdn2d")
    dropin.install()
    assert load("op.upfirdn2d") is theirs and theirs.mark == 1
    assert dropin.report().left == {"op.upfirdn2d": "it was imported before rwm_fast.dropin"}


def test_nothing_else_is_touched(project):
    """Other modules of these packages, a package of the name `op` with other files, no file."""
    load = project({"op/__init__.py": "", "op/other.py": "x = 1\n", "torch_utils/__init__.py": ""})
    assert load("op.other").x == 1
    for absent in ("op.fused_act", "torch_utils.ops.bias_act"):
        with pytest.raises(ModuleNotFoundError):
            load(absent)
    assert not dropin.report().replaced and not dropin.report().left
    assert str(dropin.report()) == "nothing was replaced"


def test_installing_twice_is_installing_once(project):
    count = len(sys.meta_path)
    dropin.install()
    assert len(sys.meta_path) == count
