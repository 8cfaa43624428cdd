"""The base presets train as the official Swapping Autoencoder does: whole steps of both sides, R1
included, against its formulas in plain torch, in float64."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from official_formulas import MODEL, Official
from tiny_networks import F64, picture

from rwm_fast.config import preset
from rwm_fast.models import official
from rwm_fast.models.official_names import RULES, names
from rwm_fast.ops.crop_patches import sample_boxes
from rwm_fast.training import step as step_module
from rwm_fast.training import trainer as trainer_module
from rwm_fast.training.trainer import Trainer

# All networks' sizes; what is no size comes from the preset.
SIZES = re.compile(r".*_(channels|dim|size|hidden)")
PARTS = {"encoder": "encoder", "generator": "generator"}
PARTS |= {"discriminator": "discriminator", "patches": "patch"}
# our terms as their losses: name there, weight there
LOSSES = {
    "d_real": ("D_real", 1.0),
    "d_reconstructed": ("D_rec", 0.5),
    "d_swapped": ("D_mix", 0.5),
    "d_patch_real": ("PatchD_real", 1.0),
    "d_patch_swapped": ("PatchD_mix", 1.0),
    "r1": ("D_R1", 10 / 2),
    "r1_patch": ("D_R1", 1 / 4),
    "reconstruction": ("G_L1", 1.0),
    "gan_reconstructed": ("G_GAN_rec", 0.5),
    "gan_swapped": ("G_GAN_mix", 1.0),
    "patch": ("G_mix", 1.0),
}


class TheirTrainer:
    """Their model and optimizer, with their default options but for R1 on every second step."""

    def __init__(self, state, aggregate, our_eps):
        learned = [n for n, t in state.items() if t.is_floating_point() and "kernel" not in n]
        self.state = {n: t.double().clone().requires_grad_(n in learned) for n, t in state.items()}
        self.nets, self.aggregate = Official(self.state, our_eps), aggregate
        self.autoencoder, self.discriminators = (
            [n for n in learned if n[0] in side] for side in ("EG", "D")
        )
        values = lambda side: [self.state[n] for n in side]
        self.every, self.iterations = 2, 0
        c = self.every / (1 + self.every)
        self.adam_g = torch.optim.Adam(values(self.autoencoder), 0.002, (0.0, 0.99))
        betas = (0.0**c, 0.99**c)
        self.adam_d = torch.optim.Adam(values(self.discriminators), 0.002 * c, betas)
        self.updates = []  # gradients by name

    def step(self, image, random, discriminators):
        if not discriminators:
            losses = self.generator_losses(image, random)
            self.update(self.adam_g, self.autoencoder, losses)
            return losses
        self.iterations += 1
        losses = self.discriminator_losses(image, random)
        self.update(self.adam_d, self.discriminators, losses)
        if self.iterations % self.every == 0:
            penalty = {"D_R1": self.r1_loss(image, random)}
            self.update(self.adam_d, self.discriminators, {"": penalty["D_R1"] * self.every})
            losses |= penalty
        return losses

    def update(self, adam, learned, losses):
        values = [self.state[n] for n in learned]
        # torch 1.7.1, which they ask for, gives zeros where there is no gradient
        gradients = torch.autograd.grad(sum(losses.values()), values, materialize_grads=True)
        for value, gradient in zip(values, gradients, strict=True):
            value.grad = gradient
        self.updates.append(dict(zip(learned, gradients, strict=True)))
        adam.step()

    def codes_and_paintings(self, image, random):
        """Noise of both calls of the generator comes from one draw, as ours does."""
        half = len(image) // 2
        content, style = self.nets.encode(image)
        sizes = (8, 8, 8, 8, 16, 16, 32, 32)
        noise = [torch.randn(3 * half, 1, s, s, generator=random, dtype=F64) for s in sizes]
        swapped = content.view(half, 2, *content.shape[1:]).flip([1]).view(content.shape)
        rec = self.nets.paint(content[:half], style[:half], [maps[:half] for maps in noise])
        return rec, self.nets.paint(swapped, style, [maps[half:] for maps in noise])

    def crops(self, image, random, count=3, size=16):
        """[N, P, 3, S, S]: a grid from edge to edge, scaled, mirrored and moved."""
        boxes = sample_boxes(len(image), count, generator=random).double().flatten(0, 1)
        line = torch.linspace(-1, 1, size, dtype=F64).expand(len(boxes), size, size)
        grid = torch.stack([line, line.mT], 3)  # [N·P, S, S, 2]: x, y
        grid = grid * boxes[:, None, None, 2:] + boxes[:, None, None, :2]
        images = image.repeat_interleave(count, 0)
        patches = F.grid_sample(images, grid, align_corners=False)
        return patches.reshape(len(image), count, 3, size, size)

    def pair(self, first, second):
        features = self.nets.patch_features
        return self.nets.compare(features(first), features(second), self.aggregate)

    def discriminator_losses(self, image, random):
        rec, mix = self.codes_and_paintings(image, random)
        judge = self.nets.judge
        real, same, fake = (self.crops(x, random) for x in (image, image, mix))
        return {
            "D_real": F.softplus(-judge(image)).mean(),
            "D_rec": F.softplus(judge(rec)).mean() * 0.5,
            "D_mix": F.softplus(judge(mix)).mean() * 0.5,
            "PatchD_real": F.softplus(-self.pair(real, same)).mean(),
            "PatchD_mix": F.softplus(self.pair(real, fake)).mean(),
        }

    def r1_loss(self, image, random):
        image = image.clone().requires_grad_()
        slope = torch.autograd.grad(self.nets.judge(image).sum(), image, create_graph=True)[0]
        penalty = slope.square().sum((1, 2, 3)) * (10 * 0.5)
        patches = [self.crops(image, random).detach().requires_grad_() for _ in range(2)]
        slopes = torch.autograd.grad(self.pair(*patches).sum(), patches, create_graph=True)
        squares = sum(slope.square().sum((1, 2, 3, 4)) for slope in slopes)
        return (penalty + squares * (0.5 * 1 * 0.5)).mean()

    def generator_losses(self, image, random):
        rec, mix = self.codes_and_paintings(image, random)
        real, fake = (self.crops(x, random) for x in (image, mix))
        return {
            "G_L1": F.l1_loss(rec, image[: len(rec)]),
            "G_GAN_rec": F.softplus(-self.nets.judge(rec)).mean() * 0.5,
            "G_GAN_mix": F.softplus(-self.nets.judge(mix)).mean(),
            "G_mix": F.softplus(-self.pair(real, fake)).mean(),
        }


def tiny(name, loss=None, **model):
    """A base preset with tiny networks, three crops a picture and R1 on every second step."""
    config = preset(name)
    sizes = {f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL)}
    model = {n: size for n, size in sizes.items() if SIZES.fullmatch(n)} | model
    settings = {"num_patches": 3, "r1_interval": 2, "r1_patch_gamma": 1.0} | (loss or {})
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        loss=dataclasses.replace(config.loss, **settings),
    )


def our_trainer(config):
    """In float64, with everything that starts at a constant moved away from it."""
    trainer = Trainer(config, torch.device("cpu"), torch.float32)
    source = torch.Generator().manual_seed(0)
    for network in (*trainer.nets.as_dict().values(), *trainer.ema.modules.values()):
        network.double()
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=source, dtype=F64)
    return trainer


def by_their_names(config, trainer, what):
    """What a function makes of our parameters, under their names."""
    found = {}
    for part, network in trainer.nets.as_dict().items():
        held = dict(network.named_parameters())
        for theirs, ours, rule in names(PARTS[part], config.model):
            if (value := what(held[ours])) is not None:
                found[theirs] = RULES[rule][1](value.detach()).clone()
    return found


@pytest.fixture
def errors(monkeypatch):
    """Runs both trainers for some steps on the same draws and gives relative errors: of losses, of
    the gradients of each update together and of the worst tensor, and of the parameters after."""

    def run(config, aggregate, our_eps=False, steps=4):
        draw = lambda *a, **k: sample_boxes(*a, **k).double()
        monkeypatch.setattr(step_module, "sample_boxes", draw)
        one_draw = lambda method, content, random, *_: method.nets.generator.make_noise(
            content, random
        )
        monkeypatch.setattr(step_module.Method, "noise", one_draw)
        trainer, updates = our_trainer(config), []
        step = trainer_module.step_if_finite

        def recorded(optimizer):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            mine = lambda p: p.grad if id(p) in held else None
            updates.append(by_their_names(config, trainer, mine))
            return step(optimizer)

        monkeypatch.setattr(trainer_module, "step_if_finite", recorded)
        nets = {PARTS[part]: network for part, network in trainer.nets.as_dict().items()}
        theirs = dataclasses.replace(config.model, demodulation="weight")  # whatever ours is
        theirs = TheirTrainer(official.state_of(theirs, nets), aggregate, our_eps)
        losses = []
        for k in range(steps):
            image, seed = picture(4, seed=k), lambda k=k: torch.Generator().manual_seed(k)
            found = trainer.step(image, 4 * k, 0.0, seed())
            expected = theirs.step(image, seed(), discriminators=k % 2 == 0)
            total = dict.fromkeys((LOSSES[name][0] for name in found), 0.0)
            for name, value in found.items():
                total[LOSSES[name][0]] += value * LOSSES[name][1]
            assert total.keys() == expected.keys()
            losses += [abs(float(total[n] / expected[n].detach()) - 1) for n in total]
        monkeypatch.setattr(trainer_module, "step_if_finite", step)
        after = by_their_names(config, trainer, lambda p: p)
        for average, learned in trainer.ema.parameters:
            assert torch.equal(average, learned)  # no averages
        gradients = [differences(*pair) for pair in zip(updates, theirs.updates, strict=True)]
        return losses, gradients, differences(after, {n: theirs.state[n] for n in after})

    return run


def differences(found, expected):
    """Relative, of all tensors together and of the worst one."""
    assert found.keys() == expected.keys()
    expected = {name: t.detach() for name, t in expected.items()}
    flat = lambda tensors: torch.cat([tensors[n].flatten() for n in expected])
    length = flat(expected).norm()
    each = [float((found[n] - t).norm() / t.norm()) for n, t in expected.items() if t.any()]
    return float((flat(found) - flat(expected)).norm() / length), max(each)


@pytest.mark.parametrize(
    ("name", "aggregate", "our_eps", "allowed"),
    # rounding, in sums of at most some thousands; and two ε of 1e-8 that stand elsewhere
    [("base-256", False, True, 1e-12), ("base-512", True, False, 5e-8)],
)
def test_steps_are_theirs(errors, name, aggregate, our_eps, allowed):
    losses, gradients, parameters = errors(tiny(name), aggregate, our_eps)
    assert len(gradients) == 5  # D, G, D, its R1, G
    together, worst = zip(*gradients, parameters, strict=True)
    assert max(losses) < allowed and max(together) < allowed
    assert max(worst) < 10 * allowed  # a noise strength is one number


@pytest.mark.parametrize(
    "other",
    [
        tiny("base-256", patch_aggregate=True),
        tiny("base-256", demodulation="style"),
        tiny("base-256", {"patch_grid": "centres"}),
    ],
    ids=["aggregation", "demodulation", "grid"],
)
def test_no_setting_of_the_preset_can_be_left_out(errors, other):
    """The phase of R1 is looked at in test_schedule."""
    losses, gradients, _ = errors(other, False, steps=2)
    assert max(losses) > 1e-3 and max(together for together, _ in gradients) > 1e-3
