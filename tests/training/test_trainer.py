"""Who learns when, and at which rate."""

import copy

import pytest
import torch

from rwm_fast.training.trainer import Trainer, build_networks


def weights(module):
    return copy.deepcopy(module.state_dict())


def changed(module, before) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_both_sides_take_turns_as_in_the_base(tiny, make_trainer, image, random):
    trainer = make_trainer(tiny(step_order="alternate"))
    nets = trainer.nets
    for turn in range(3):
        judged = turn % 2 == 0
        before = {name: weights(net) for name, net in nets.as_dict().items()}
        terms = trainer.step(image, 4 * turn, 0.5, random(turn))
        for name in ("discriminator", "patches"):
            assert changed(getattr(nets, name), before[name]) == judged, (turn, name)
        for name in ("encoder", "generator"):
            assert changed(getattr(nets, name), before[name]) != judged, (turn, name)
        assert ("d_real" in terms) == judged and ("reconstruction" in terms) != judged
    assert (trainer.counts.discriminator, trainer.counts.generator) == (2, 1)


def test_a_shared_step_paints_once_and_trains_both_sides(
    tiny, make_trainer, image, random, monkeypatch
):
    trainer = make_trainer(tiny(dict(code_consistency=0.0, content_alignment=0.0)))
    calls, forward = [], trainer.nets.generator.forward
    monkeypatch.setattr(
        trainer.nets.generator, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    before = {name: weights(net) for name, net in trainer.nets.as_dict().items()}
    trainer.step(image, 0, 0.5, random())
    assert len(calls) == 1  # reconstructions and swaps together
    assert all(changed(net, before[name]) for name, net in trainer.nets.as_dict().items())


def test_the_first_part_is_reconstruction_alone(tiny, make_trainer, image, random):
    trainer = make_trainer(tiny(reconstruction_fraction=0.5))
    before = weights(trainer.nets.discriminator)
    assert set(trainer.step(image, 0, 0.49, random())) == {"reconstruction", "edge"}
    assert not changed(trainer.nets.discriminator, before)
    assert "gan_swapped" in trainer.step(image, 4, 0.5, random())


def test_r1_moves_every_average_of_the_discriminators_alike(tiny, make_trainer, image, random):
    """Two updates, of which the second has no gradient of any bias."""
    trainer = make_trainer(tiny(dict(r1_interval=1)))
    trainer.step(image, 0, 0.5, random())
    steps = [state["step"].item() for state in trainer.discriminator_optimizer.state.values()]
    parameters = [p for net in trainer.discriminators.values() for p in net.parameters()]
    assert steps == [2.0] * len(parameters)


def test_r1_comes_every_so_many_discriminator_steps(tiny, make_trainer, image, random):
    trainer = make_trainer(tiny(dict(r1_interval=3)))
    due = ["r1" in trainer.step(image, 4 * k, 0.5, random(k)) for k in range(5)]
    assert due == [True, False, False, True, False]


def test_rates_follow_the_schedule(tiny, make_trainer, image, random):
    config = tiny(
        learning_rate=1e-3,
        second_part_gain=0.5,
        reconstruction_fraction=0.5,
        decay_fraction=0.2,
        decay_floor=0.1,
        lazy_r1_correction=False,
        discriminator_learning_rate=2e-3,
    )
    trainer = make_trainer(config)
    expected = {
        0.0: (1e-3, 2e-3),
        0.5: (5e-4, 2e-3),
        0.9: (5e-4 * 0.55, 2e-3 * 0.55),
        1.0: (5e-5, 2e-4),
    }
    for progress, (generator, discriminator) in expected.items():
        trainer.step(image, 0, progress, random())
        assert trainer.generator_optimizer.param_groups[0]["lr"] == pytest.approx(generator)
        assert trainer.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(discriminator)


def test_lazy_r1_slows_the_discriminators(tiny, make_trainer):
    config = tiny(dict(r1_interval=4), lazy_r1_correction=True, discriminator_betas=(0.5, 0.9))
    group = make_trainer(config).discriminator_optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(config.train.discriminator_learning_rate * 0.8)
    assert group["betas"] == pytest.approx((0.5**0.8, 0.9**0.8))


def test_the_seed_decides_the_first_weights(tiny):
    first, again, other = (build_networks(tiny(seed=seed)).encoder for seed in (3, 3, 4))
    assert not changed(first, weights(again))
    assert changed(first, weights(other))


def test_building_networks_leaves_the_global_random_state_alone(tiny):
    before = torch.get_rng_state()
    build_networks(tiny())
    assert torch.equal(before, torch.get_rng_state())


def test_a_broken_parameter_is_named(tiny, make_trainer):
    trainer = make_trainer(tiny())
    assert trainer.broken_parameter() is None
    name, parameter = next(iter(trainer.nets.generator.named_parameters()))
    with torch.no_grad():
        parameter.fill_(float("nan"))
    assert trainer.broken_parameter() == f"generator.{name}"


def test_bfloat16_keeps_float32_weights_and_trains(tiny, image, random):
    trainer = Trainer(tiny(), torch.device("cpu"), torch.bfloat16)
    terms = trainer.step(image, 0, 0.5, random())
    assert all(value.isfinite() for value in terms.values())
    assert {p.dtype for net in trainer.nets.as_dict().values() for p in net.parameters()} == {
        torch.float32
    }
    assert trainer.broken_parameter() is None
