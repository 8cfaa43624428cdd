"""The method: its terms, and who learns from which."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rwm_fast.ops.crop_patches import crop_patches, sample_boxes
from rwm_fast.training import step as step_module
from rwm_fast.training.step import neighbours, total

BASE = dict(
    edge=0.0,
    code_consistency=0.0,
    content_alignment=0.0,
    reconstruction=1.0,
    gan_reconstructed=0.5,
    gan_swapped=1.0,
    patch=1.0,
)


def gradients(loss, module):
    return torch.autograd.grad(
        loss, list(module.parameters()), retain_graph=True, allow_unused=True
    )


def has_gradient(loss, module) -> bool:
    return any(g is not None and g.abs().max() > 0 for g in gradients(loss, module))


def crops(image, config, random):
    boxes = sample_boxes(
        len(image), config.loss.num_patches, config.loss.patch_scale, generator=random
    )
    return crop_patches(image, boxes, config.model.patch_size)


@pytest.fixture
def base(tiny, make_trainer):
    config = tiny(BASE)
    return config, make_trainer(config)


def test_neighbours_exchange():
    assert neighbours(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_without_the_papers_losses_the_autoencoder_learns_as_in_a_swapping_autoencoder(
    base, image, random
):
    config, trainer = base
    nets, method = trainer.nets, trainer.method
    due = trainer.schedule.all()
    painted = method.paint(image, random(1), due)
    terms = method.autoencoder_terms(painted, random(2), due.autoencoder)
    assert set(terms) == {"reconstruction", "gan_reconstructed", "gan_swapped", "patch"}

    # The base objective, written out.
    draws = random(1)
    content, style = nets.encoder(image)
    noise = method.noise(torch.cat((content[:2], content)), draws, 6, range(6))
    reconstructed = nets.generator(content[:2], style[:2], noise=[maps[:2] for maps in noise])
    swapped = nets.generator(content[[1, 0, 3, 2]], style, noise=[maps[2:] for maps in noise])
    draws = random(2)
    reference = nets.patches.features(crops(image, config, draws)).detach()
    target = nets.patches.features(crops(swapped, config, draws))
    expected = (
        F.l1_loss(reconstructed, image[:2])
        + 0.5 * F.softplus(-nets.discriminator(reconstructed)).mean()
        + 1.0 * F.softplus(-nets.discriminator(swapped)).mean()
        + 1.0 * F.softplus(-nets.patches(reference, target)).mean()
    )

    torch.testing.assert_close(total(terms), expected)
    for module in (nets.encoder, nets.generator):
        for ours, theirs in zip(
            gradients(total(terms), module), gradients(expected, module), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


def test_without_the_papers_losses_discriminators_learn_as_in_a_swapping_autoencoder(
    base, image, random
):
    config, trainer = base
    nets = trainer.nets
    due = trainer.schedule.all()
    painted = trainer.method.paint(image, random(1), due)
    terms = trainer.method.discriminator_terms(painted, random(2), due.discriminators)

    draws = random(2)
    reference, same, fake = (
        nets.patches.features(crops(picture, config, draws))
        for picture in (image, image, painted.swapped.detach())
    )
    expected = (
        F.softplus(-nets.discriminator(image)).mean()
        + 0.5 * F.softplus(nets.discriminator(painted.reconstructed.detach())).mean()
        + 0.5 * F.softplus(nets.discriminator(painted.swapped.detach())).mean()
        + F.softplus(-nets.patches(reference, same)).mean()
        + F.softplus(nets.patches(reference, fake)).mean()
    )
    torch.testing.assert_close(total(terms), expected)
    for module in (nets.discriminator, nets.patches):
        for ours, theirs in zip(
            gradients(total(terms), module), gradients(expected, module), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    assert not has_gradient(total(terms), nets.generator)


def test_r1_is_the_squared_gradient_at_real_pictures(base, image, random):
    config, trainer = base
    nets, loss = trainer.nets, config.loss
    terms = trainer.method.r1_terms(image, random(), trainer.schedule.all().r1)
    x = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nets.discriminator(x).sum(), x)
    torch.testing.assert_close(terms["r1"].value, slope.square().sum((1, 2, 3)).mean())
    assert terms["r1"].weight == loss.r1_interval * loss.r1_gamma / 2
    draws = random()
    pair = [crops(image, config, draws).requires_grad_() for _ in range(2)]
    slopes = torch.autograd.grad(nets.patches(*map(nets.patches.features, pair)).sum(), pair)
    expected = sum(s.flatten(1).square().sum(1).mean() for s in slopes)
    torch.testing.assert_close(terms["r1_patch"].value, expected)
    assert has_gradient(total(terms), nets.discriminator)
    assert has_gradient(total(terms), nets.patches)


@pytest.mark.parametrize("trains", ["generator", "both"])
def test_code_consistency_trains_whom_it_should(tiny, make_trainer, image, random, trains):
    trainer = make_trainer(tiny(dict(consistency_trains=trains)))
    painted = trainer.method.paint(image, random(), trainer.schedule.all())
    distance = sum(trainer.method.consistency(painted))
    assert has_gradient(distance, trainer.nets.generator)
    assert has_gradient(distance, trainer.nets.encoder) == (trains == "both")
    assert all(p.requires_grad for p in trainer.nets.encoder.parameters())


def test_code_consistency_compares_with_the_codes_it_was_painted_from(
    tiny, make_trainer, image, random
):
    trainer = make_trainer(tiny())
    due = trainer.schedule.all()
    painted = trainer.method.paint(image, random(), due)
    terms = trainer.method.autoencoder_terms(painted, random(), due.autoencoder)
    content, style = trainer.nets.encoder(painted.swapped)
    code, code_style = trainer.nets.encoder(image)
    expected = (content - code[[1, 0, 3, 2]]).abs().mean()
    torch.testing.assert_close(terms["consistency_content"].value, expected)
    torch.testing.assert_close(terms["consistency_style"].value, (style - code_style).abs().mean())
    assert terms["consistency_style"].weight == trainer.config.loss.style_lambda


@pytest.mark.parametrize("detach", [True, False])
def test_the_swap_is_a_fixed_target_only_if_asked(tiny, make_trainer, image, random, detach):
    trainer = make_trainer(tiny(dict(detach_swapped=detach)))
    painted = trainer.method.paint(image, random(), trainer.schedule.all())
    distance = trainer.method.alignment(painted)
    (reaches,) = torch.autograd.grad(
        distance, painted.swapped, allow_unused=True, retain_graph=True
    )
    assert (reaches is None) == detach
    assert has_gradient(painted.hybrid.sum(), trainer.nets.encoder)


@pytest.mark.parametrize("share", [True, False])
def test_swap_and_hybrid_share_noise_only_if_asked(
    tiny, make_trainer, image, random, monkeypatch, share
):
    everywhere = lambda batch, size, config, **_: torch.ones(batch, 1, *size)
    monkeypatch.setattr(step_module, "sample_masks", everywhere)
    trainer = make_trainer(tiny(dict(share_noise=share)))
    painted = trainer.method.paint(image, random(), trainer.schedule.all())
    same = torch.allclose(painted.hybrid, painted.swapped[:2], atol=1e-5)
    assert same == share


def test_content_alignment_asks_for_the_swap_inside_and_the_picture_outside(
    tiny, make_trainer, image, random
):
    trainer = make_trainer(tiny())
    p = trainer.method.paint(image, random(), trainer.schedule.all())
    p = replace(p, swapped=p.swapped * 2 / p.swapped.abs().max())  # leaves the range of pictures
    inside = ((p.hybrid - p.swapped[:2].clamp(-1, 1)) * p.mask).abs().mean()
    outside = ((p.hybrid - image[[1, 0]]) * (1 - p.mask)).abs().mean()
    torch.testing.assert_close(trainer.method.alignment(p), inside + outside)


def test_content_alignment_can_start_with_the_first_part(tiny, make_trainer, image, random):
    first = dict(reconstruction_fraction=1.0)
    early = make_trainer(tiny(dict(alignment_from_start=True, alignment_interval=2), **first))
    due = early.schedule.due(4, 0.5, early.counts)
    assert set(due.autoencoder) == {"reconstruction", "edge"}
    due = early.schedule.due(8, 0.5, early.counts)
    painted = early.method.paint(image, random(), due)
    terms = early.method.autoencoder_terms(painted, random(), due.autoencoder)
    assert set(terms) == {"reconstruction", "edge", "content_alignment"}
    assert len(painted.reconstructed) == 4 and len(painted.swapped) == 2
    assert has_gradient(terms["content_alignment"].value, early.nets.generator)
    assert has_gradient(terms["content_alignment"].value, early.nets.encoder)
    late = make_trainer(tiny(**first))
    assert "content_alignment" not in late.step(image, 8, 0.5, random())


def test_an_adversarial_term_on_hybrids_is_optional(tiny, make_trainer, image, random):
    trainer = make_trainer(tiny(dict(gan_hybrid=0.3, content_alignment=0.0)))
    due = trainer.schedule.due(0, 0.5, trainer.counts)
    painted = trainer.method.paint(image, random(), due)
    terms = trainer.method.autoencoder_terms(painted, random(), due.autoencoder)
    assert terms["gan_hybrid"].weight == 0.3 and "content_alignment" not in terms
    judged = trainer.method.discriminator_terms(painted, random(), due.discriminators)
    assert judged["d_real"].weight == sum(
        judged[f"d_{kind}"].weight for kind in ("reconstructed", "swapped", "hybrid")
    )


def test_content_jitter_reaches_the_content_branch_alone(
    tiny, make_trainer, image, random, monkeypatch
):
    black = lambda images, *_, **__: torch.full_like(images, -1.0)
    monkeypatch.setattr(step_module, "color_jitter", black)
    trainer = make_trainer(tiny(dict(content_jitter=1.0)))
    content, style = trainer.method.encode(image, random())
    encoder = trainer.nets.encoder
    torch.testing.assert_close(content, encoder.content(torch.full_like(image, -1.0)))
    torch.testing.assert_close(style, encoder.style(image))


@pytest.mark.parametrize(
    ("weights", "absent"),
    [
        (dict(patch=0.0), {"patch", "d_patch_real", "d_patch_swapped", "r1_patch"}),
        (
            dict(gan_reconstructed=0.0, gan_swapped=0.0),
            {"gan_swapped", "d_real", "d_swapped", "r1"},
        ),
        (dict(patch=0.0, gan_reconstructed=0.0, gan_swapped=0.0), {"d_real", "d_patch_real", "r1"}),
        (dict(edge=0.0, r1_gamma=0.0), {"edge", "r1"}),
    ],
)
def test_a_term_without_weight_costs_nothing(tiny, make_trainer, image, random, weights, absent):
    full = set(make_trainer(tiny()).step(image, 0, 0.5, random()))
    assert absent <= full
    left = set(make_trainer(tiny(weights)).step(image, 0, 0.5, random()))
    assert left < full and not left & absent
