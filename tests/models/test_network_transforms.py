"""What torch does to functions, through whole networks: torch.func, autocast, changing sizes."""

import pytest
import torch
import torch._dynamo.testing
from tiny_networks import (
    DEMO,
    F64,
    PAPER,
    encoder,
    generator,
    image_discriminator,
    patch_discriminator,
    picture,
)
from torch.func import functional_call, grad, jvp, vmap

# raised by torch's own imports
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Whole(torch.nn.Module):
    """A network with all that it does as one call."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, *inputs):
        return self.call(self.net, *inputs)


def _encode(net, image):
    content, style = net(image)
    return torch.cat((content.flatten(1), style), 1)


def _judge_patches(net, patches):
    features = net.features(patches)
    return net(features, features.flip(1))


def _codes(config, n, size):
    source = torch.Generator().manual_seed(n)
    side = size // config.code_stride
    content = torch.randn(n, config.content_channels, side, side, generator=source, dtype=F64)
    return content, torch.randn(n, config.style_dim, generator=source, dtype=F64)


def _patches(config, n, size):
    side = config.patch_size
    return (picture(3 * n, side, side).unflatten(0, (n, 3)),)


# network, all that it does, and inputs for n pictures of a size
NETWORKS = {
    "encoder": (encoder, _encode, lambda config, n, size: (picture(n, size, size),)),
    "generator": (generator, lambda net, c, s: net(c, s, None, "none"), _codes),
    "image": (image_discriminator, lambda net, x: net(x), lambda config, n, size: (picture(n),)),
    "patch": (patch_discriminator, _judge_patches, _patches),
}
by_network = pytest.mark.parametrize("name", NETWORKS)
by_kind = pytest.mark.parametrize("config", [PAPER, DEMO], ids=["paper", "demo"])


def _made(name, config, n=2, size=32):
    make, call, inputs = NETWORKS[name]
    return Whole(make(config), call), inputs(config, n, size)


def _near(found, wanted, within):
    assert (found - wanted).abs().max() <= within * wanted.abs().max()


@by_kind
@by_network
def test_torch_func(name, config):
    """Gradients of each picture apart, tangents, and second derivatives along a direction: by plain
    backward passes."""
    net, inputs = _made(name, config)
    names, values = zip(*net.named_parameters(), strict=True)
    count = len(values)

    def loss(*tensors):  # all parameters, then the inputs
        parameters = dict(zip(names, tensors[:count], strict=True))
        result = functional_call(net, parameters, tensors[count:])
        result = result.reshape(len(result), -1)
        weights = torch.linspace(1, 2, result.shape[1], dtype=F64)  # codes are of unit length
        return (weights * result.square()).mean()

    # without noise its strengths have no gradient
    options = {"allow_unused": True, "materialize_grads": True}

    def plain(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(loss(*leaves), leaves, **options)

    every = tuple(range(count + len(inputs)))
    one = lambda *tensors: grad(loss, every)(*tensors[:count], *(t[None] for t in tensors[count:]))
    found = vmap(one, (None,) * count + (0,) * len(inputs))(*values, *inputs)
    for i in range(len(inputs[0])):
        alone = plain(*values, *(t[i : i + 1] for t in inputs))
        for all_found, wanted in zip(found, alone, strict=True):
            _near(all_found[i].view_as(wanted), wanted, 1e-9)

    at = (*values, *inputs)
    source = torch.Generator().manual_seed(1)
    ways = tuple(torch.randn(t.shape, generator=source, dtype=F64) for t in at)
    leaves = [t.detach().requires_grad_() for t in at]
    grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True, **options)
    along = sum((g * w).sum() for g, w in zip(grads, ways, strict=True))
    _near(jvp(loss, at, ways)[1], along, 1e-9)
    seconds = torch.autograd.grad(along, leaves, **options)
    for found, wanted in zip(jvp(grad(loss, every), at, ways)[1], seconds, strict=True):
        _near(found, wanted, 1e-8)


@by_kind
@by_network
def test_autocast(name, config):
    """Near float64; parameters and their gradients stay float32."""
    net, inputs = _made(name, config)
    truth = net(*inputs)
    net = net.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = net(*(t.float() for t in inputs))
    _near(result, truth, 0.1)  # eight bits, through some ten layers
    leaves = list(net.parameters())
    options = {"allow_unused": True, "materialize_grads": True}  # strengths of noise
    grads = torch.autograd.grad(result.float().square().mean(), leaves, **options)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", ["encoder", "generator"])
def test_two_graphs_for_all_sizes(name):
    """The first and a dynamic one, equal to plain calls."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    net, _ = _made(name, DEMO)
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for n, size in ((2, 32), (3, 48), (5, 64)):
        inputs = NETWORKS[name][2](DEMO, n, size)
        torch.testing.assert_close(compiled(*inputs), net(*inputs))
    assert counter.frame_count == 2
