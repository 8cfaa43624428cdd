"""NVIDIA's `torch_utils.ops` against plain torch: every argument, to second order in float64."""

import formulas
import pytest
import torch
import torch.nn.functional as F
from formulas import F64, along, assert_same, normal

from rwm_fast.dropin import nvidia

FOUR = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
UNEVEN = torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.375, -0.75]])
X = normal(2, 3, 6, 5)


@pytest.mark.parametrize("f", [None, FOUR, UNEVEN], ids=["none", "separable", "uneven"])
@pytest.mark.parametrize("flip_filter", [False, True])
@pytest.mark.parametrize(
    ("up", "down", "padding", "all_padding"),
    [
        (1, 1, 3, (3, 3, 3, 3)),
        (1, 1, [6, 5, 4, 7], (6, 5, 4, 7)),
        (2, 1, [2, 3], (2, 2, 3, 3)),
        (1, 2, (2, 1, 3, 0), (2, 1, 3, 0)),
        ([1, 3], (2, 1), [-1, 2, 4, -2], (-1, 2, 4, -2)),
    ],
)
def test_upfirdn2d(f, flip_filter, up, down, padding, all_padding):
    pair = lambda v: (v, v) if isinstance(v, int) else tuple(v)
    theirs = lambda x: formulas.upfirdn2d(x, f, pair(up), pair(down), all_padding, flip_filter, 1.5)
    positional = lambda x: nvidia.upfirdn2d(x, f, up, down, padding, flip_filter, 1.5, "ref")
    named = lambda x: nvidia.upfirdn2d(
        x=x, f=f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=1.5, impl="cuda"
    )
    assert_same(positional, theirs, X)
    assert torch.equal(named(X), positional(X))


def test_upfirdn2d_defaults():
    assert_same(lambda x: nvidia.upfirdn2d(x, FOUR), lambda x: formulas.upfirdn2d(x, FOUR), X)


@pytest.mark.parametrize("f", [FOUR, UNEVEN, None], ids=["separable", "uneven", "none"])
@pytest.mark.parametrize("padding", [0, [1, 2], [1, 0, 2, -1]])
def test_filter_upsample_downsample(f, padding):
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    a, b, c, d = nvidia._parse_padding(padding)
    about = {"flip_filter": True, "gain": 3}
    at = (a + fw // 2, b + (fw - 1) // 2, c + fh // 2, d + (fh - 1) // 2)
    assert_same(
        lambda x: nvidia.filter2d(x, f, padding, True, 3, "cuda"),
        lambda x: formulas.upfirdn2d(x, f, padding=at, **about),
        X,
    )
    at = (a + (fw + 1) // 2, b + (fw - 2) // 2, c + (fh + 2) // 2, d + (fh - 3) // 2)
    assert_same(
        lambda x: nvidia.upsample2d(x, f, (2, 3), padding, True, 3, "cuda"),
        lambda x: formulas.upfirdn2d(x, f, (2, 3), (1, 1), at, True, 3 * 6),
        X,
    )
    at = (a + (fw - 1) // 2, b + (fw - 2) // 2, c + (fh - 2) // 2, d + (fh - 3) // 2)
    assert_same(
        lambda x: nvidia.downsample2d(x, f, (2, 3), padding, True, 3, "cuda"),
        lambda x: formulas.upfirdn2d(x, f, (1, 1), (2, 3), at, True, 3),
        X,
    )


def test_the_defaults_double_and_halve():
    assert nvidia.upsample2d(X, FOUR).shape == (2, 3, 12, 10)
    assert nvidia.downsample2d(X, FOUR).shape == (2, 3, 3, 2)
    assert nvidia.filter2d(X, FOUR).shape == X.shape
    flat = torch.ones(1, 1, 8, 8, dtype=F64)
    inside = nvidia.upsample2d(flat, FOUR)[:, :, 3:-3, 3:-3]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_setup_filter():
    make = nvidia.setup_filter
    taps = torch.tensor([1.0, 2.0, 5.0])
    assert torch.equal(make(None), torch.ones(1, 1)) and torch.equal(make(3.0), torch.ones(1, 1))
    torch.testing.assert_close(make([1, 2, 5]), taps.outer(taps) / 64)
    torch.testing.assert_close(make([1, 2, 5], separable=True), taps / 8)
    assert make(range(1, 9)).shape == (8,) and make(range(1, 9), separable=False).shape == (8, 8)
    raw = make([[1, 2], [3, 4]], torch.device("cpu"), False, True, 5)
    assert torch.equal(raw, torch.tensor([[20.0, 15.0], [10.0, 5.0]]))
    torch.testing.assert_close(make([1, 2, 5], gain=4, separable=True), taps / 4)
    with pytest.raises(ValueError, match=r"must be a number, \[F\] or \[FH, FW\], got \[1, 1, 1\]"):
        make([[[1.0]]])
    with pytest.raises(ValueError, match="cannot be made separable"):
        make([[1.0, 2.0]], separable=True)


# what the table of activations says, written out: function, own alpha, own gain
ROOT = 2**0.5
ACTIVATIONS = {
    "linear": (lambda x, a: x, 0.0, 1.0),
    "relu": (lambda x, a: x.clamp(min=0), 0.0, ROOT),
    "lrelu": (lambda x, a: torch.where(x > 0, x, a * x), 0.2, ROOT),
    "tanh": (lambda x, a: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()), 0.0, 1.0),
    "sigmoid": (lambda x, a: 1 / (1 + (-x).exp()), 0.0, 1.0),
    "elu": (lambda x, a: torch.where(x > 0, x, x.exp() - 1), 0.0, 1.0),
    "selu": (
        lambda x, a: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1)),
        0.0,
        1.0,
    ),
    "softplus": (lambda x, a: (1 + x.exp()).log(), 0.0, 1.0),
    "swish": (lambda x, a: x / (1 + (-x).exp()), 0.0, ROOT),
}


def activated(x, b, dim, act, alpha=None, gain=None, clamp=None):
    function, own_alpha, own_gain = ACTIVATIONS[act]
    x = x if b is None else x + along(b, dim, x)
    y = function(x, own_alpha if alpha is None else alpha)
    y = y * (own_gain if gain is None else gain)
    return y if clamp is None else y.clamp(-clamp, clamp)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act):
    b = normal(3, seed=1)
    assert_same(
        lambda x, b: nvidia.bias_act(x, b, act=act), lambda x, b: activated(x, b, 1, act), X, b
    )
    assert_same(lambda x: nvidia.bias_act(x, act=act), lambda x: activated(x, None, 1, act), X)
    assert_same(
        lambda x, b: nvidia.bias_act(x, b, 1, act, 0.3, 1.7, 0.8, "ref"),
        lambda x, b: activated(x, b, 1, act, 0.3, 1.7, 0.8),
        X,
        b,
    )
    own = nvidia.activation_funcs[act]
    assert (own.def_alpha, own.def_gain) == pytest.approx(ACTIVATIONS[act][1:])
    torch.testing.assert_close(own.func(X, alpha=0.4), ACTIVATIONS[act][0](X, 0.4))


@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh"])
@pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((4, 7), 1), ((7, 4), 0), ((2, 3, 7), 2)])
def test_bias_act_along_another_dimension(act, shape, dim):
    ours = lambda x, b: nvidia.bias_act(x, b, dim=dim, act=act)
    assert_same(ours, lambda x, b: activated(x, b, dim, act), normal(*shape), normal(7, seed=1))


@pytest.mark.parametrize("settings", [{"gain": 0}, {"gain": -2}, {"alpha": -0.5}, {"clamp": 0}])
def test_bias_act_where_our_operator_refuses(settings):
    ours = lambda x: nvidia.bias_act(x, act="lrelu", **settings)
    assert_same(ours, lambda x: activated(x, None, 1, "lrelu", **settings), X)


def test_bias_act_adds_the_bias_and_nothing_else_by_default():
    b = normal(3, seed=1)
    torch.testing.assert_close(nvidia.bias_act(X, b), X + along(b, 1, X))
    torch.testing.assert_close(
        nvidia.bias_act(X, b, clamp=0.5), (X + along(b, 1, X)).clamp(-0.5, 0.5)
    )


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_in_half_precision_rounds_once(act):
    """float16 holds no e^12; in float32 the sums stay finite, and the result is rounded once."""
    x = torch.linspace(-14, 14, 58).reshape(1, 2, 29).half()
    expected = nvidia.bias_act(x.float(), act=act, clamp=256).half()
    found = nvidia.bias_act(x, act=act, clamp=256)
    assert found.dtype == torch.float16 and found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


def test_bias_act_refuses():
    with pytest.raises(ValueError, match="act must be one of linear, relu, .*, got 'gelu'"):
        nvidia.bias_act(X, act="gelu")
    with pytest.raises(ValueError, match=r"b \[3\] and dim 2 for x \[2, 3, 6, 5\]"):
        nvidia.bias_act(X, normal(3), dim=2)
    with pytest.raises(ValueError, match="clamp must be None or at least 0, got -1"):
        nvidia.bias_act(X, clamp=-1)
    with pytest.raises(ValueError, match="impl must be 'cuda' or 'ref', got 'fast'"):
        nvidia.bias_act(X, impl="fast")


@pytest.mark.parametrize("flip_filter", [False, True])
@pytest.mark.parametrize(
    ("up", "down", "padding"), [(1, 1, 2), (2, 1, [3, 4]), (4, 2, [5, 6, 7, 4])]
)
def test_filtered_lrelu(up, down, padding, flip_filter):
    def theirs(x, b):
        at = nvidia._parse_padding(padding)
        x = formulas.upfirdn2d(
            x + along(b, 1, x), FOUR, (up, up), padding=at, flip_filter=flip_filter, gain=up**2
        )
        x = (torch.where(x > 0, x, 0.1 * x) * 1.2).clamp(-0.9, 0.9)
        return formulas.upfirdn2d(x, UNEVEN, down=(down, down), flip_filter=flip_filter)

    positional = lambda x, b: nvidia.filtered_lrelu(
        x, FOUR, UNEVEN, b, up, down, padding, 1.2, 0.1, 0.9, flip_filter, "cuda"
    )
    assert_same(positional, theirs, X, normal(3, seed=1))


def test_filtered_lrelu_defaults():
    expected = torch.where(X > 0, X, 0.2 * X) * ROOT
    torch.testing.assert_close(nvidia.filtered_lrelu(X), expected)


W = normal(4, 3, 3, 3, seed=1)


@pytest.mark.parametrize("f", [None, FOUR, UNEVEN], ids=["none", "separable", "uneven"])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [1, [2, 1], [2, 1, 3, 0]])
def test_conv2d_resample(f, up, down, padding):
    theirs = lambda x, w: formulas.conv2d_resample(
        x, w, f, up, down, nvidia._parse_padding(padding), 1, False, True
    )
    ours = lambda x, w: nvidia.conv2d_resample(x, w, f, up, down, padding, 1, False, True)
    assert_same(ours, theirs, X, W)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("padding", [1, [2, 1, 3, -1]])
def test_conv2d_resample_in_groups(up, down, flip_weight, kernel, padding):
    x, w = normal(2, 6, 6, 5), normal(4, 3, kernel, kernel, seed=1)
    at = nvidia._parse_padding(padding)
    theirs = lambda x, w: formulas.conv2d_resample(x, w, UNEVEN, up, down, at, 2, flip_weight)
    ours = lambda x, w: nvidia.conv2d_resample(
        x=x, w=w, f=UNEVEN, up=up, down=down, padding=padding, groups=2, flip_weight=flip_weight
    )
    assert_same(ours, theirs, x, w)


def test_conv2d_resample_defaults():
    assert_same(nvidia.conv2d_resample, lambda x, w: F.conv2d(x, w), X, W)


def test_fma():
    a, b, c = normal(2, 3, 4, 4), normal(2, 3, 1, 1, seed=1), normal(4, 4, seed=2)
    assert_same(nvidia.fma, lambda a, b, c: a * b + c, a, b, c)


def sampled(x, grid):
    """Bilinear sampling by sums over all pixels: tents around them."""
    n, c, h, w = x.shape
    tent = lambda at, size: (1 - (at[..., None] - torch.arange(size)).abs()).clamp(min=0)
    columns = tent((grid[..., 0] + 1) * w / 2 - 0.5, w)  # [N, h', w', W]
    rows = tent((grid[..., 1] + 1) * h / 2 - 0.5, h)
    return torch.einsum("nchw,nijh,nijw->ncij", x, rows, columns)


def test_grid_sample():
    grid = normal(2, 4, 3, 2, seed=1) * 0.8  # some of it outside
    assert_same(lambda x: nvidia.grid_sample(x, grid), lambda x: sampled(x, grid), X)
    assert_same(nvidia.grid_sample, sampled, X, grid)
    expected = F.grid_sample(X, grid, align_corners=False)
    torch.testing.assert_close(nvidia.grid_sample(X, grid), expected)
    torch.testing.assert_close(nvidia.grid_sample(X, grid.clone().requires_grad_()), expected)


def test_gradfix_convolutions():
    b = normal(4, seed=2)
    assert_same(
        lambda x, w, b: nvidia.gradfix.conv2d(x, w, b, (2, 1), (1, 2), 1, 1),
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 2)),
        X, W, b,
    )  # fmt: skip
    w = normal(3, 4, 3, 3, seed=1)
    assert_same(
        lambda x, w, b: nvidia.gradfix.conv_transpose2d(x, w, b, 2, 1, 1, 1, 1),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
        X, w, b,
    )  # fmt: skip
    with nvidia.gradfix.no_weight_gradients():
        assert_same(nvidia.gradfix.conv2d, F.conv2d, X, W)
