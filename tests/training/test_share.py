"""Shares of a batch: their terms and gradients add up to those of the whole."""

import copy

import pytest
import torch

from rwm_fast.training import step as step_module
from rwm_fast.training.processes import Processes
from rwm_fast.training.share import WHOLE, Share
from rwm_fast.training.step import total

F64 = torch.float64


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Masks and boxes in float64, for networks in it."""
    for name in ("sample_masks", "sample_boxes"):
        draw = getattr(step_module, name)
        wide = lambda *a, draw=draw, **k: draw(*a, **k).double()
        monkeypatch.setattr(step_module, name, wide)


def pictures(n):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=F64) * 2 - 1


def test_shares_are_whole_pairs_and_cover_the_batch():
    assert Share(1, 3).rows(12) == (2, 3, 8, 9)
    assert [Share(k, 3).first(4) for k in range(3)] == [2, 2, 2]
    assert [Share(k, 2).first(2) for k in range(2)] == [2, 0]
    assert [Share(k, 3).first(2) for k in range(3)] == [2, 1, 0]
    parts = [part for k in range(2) for part in Share(k, 2).split(3)]
    assert sorted(row for part in parts for row in part.rows(24)) == list(range(24))
    assert WHOLE.rows(4) == (0, 1, 2, 3) and WHOLE.first(4) == 2
    with pytest.raises(ValueError, match="6 pictures do not divide into pairs for 2"):
        Share(0, 2).rows(6)


def test_slices_of_a_share_are_its_rows():
    """The k-th slice of a process's pictures is what a job of more processes would give one."""
    share = Share(1, 2)
    own = share.rows(24)
    for part, inner in zip(share.split(3), [Share(k, 3).rows(12) for k in range(3)], strict=True):
        assert part.rows(24) == tuple(own[row] for row in inner)


@pytest.mark.parametrize("batch, count", [(8, 2), (4, 2), (6, 3)])
@pytest.mark.parametrize("first_part", [False, True])
def test_terms_and_gradients_add_up(tiny, make_trainer, random, batch, count, first_part):
    """Also where a share has nothing of the first half, so no reconstruction and no hybrid."""
    loss = dict(content_jitter=1.0, gan_hybrid=0.3, share_noise=False, alignment_from_start=True)
    config = tiny(loss, reconstruction_fraction=float(first_part))
    trainer = make_trainer(config)
    for net in trainer.nets.as_dict().values():
        net.double()
    due = trainer.schedule.due(0, 0.5, trainer.counts)

    def learn(share):
        """All three updates' terms and gradients."""
        image, source, method = pictures(batch)[list(share.rows(batch))], random(3), trainer.method
        for net in trainer.nets.as_dict().values():
            net.zero_grad()
        painted = method.paint(image, source, due, share)
        found = []
        if due.discriminators:
            found.append(method.discriminator_terms(painted, source, due.discriminators))
            found.append(method.r1_terms(image, source, due.r1, share))
        found.append(method.autoencoder_terms(painted, source, due.autoencoder))
        for terms in found:
            total(terms).backward(retain_graph=True)
        values = {name: t.value.detach() for terms in found for name, t in terms.items()}
        gradients = {
            f"{network}.{name}": p.grad
            for network, net in trainer.nets.as_dict().items()
            for name, p in net.named_parameters()
            if p.grad is not None
        }
        return values, gradients

    values, gradients = learn(WHOLE)
    parts = [learn(Share(k, count)) for k in range(count)]
    assert all(part[0].keys() == values.keys() for part in parts)
    assert all(part[1].keys() == gradients.keys() for part in parts)
    for whole, which in ((values, 0), (gradients, 1)):
        for name, value in whole.items():
            found = sum(part[which][name] for part in parts)
            # rounding of float64 in sums of some thousands, twice differentiated
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("step_order", ["shared", "alternate"])
def test_accumulated_steps_are_those_of_the_larger_batch(tiny, make_trainer, random, step_order):
    loss = dict(content_jitter=1.0, r1_interval=1)
    states = []
    for accumulate in (1, 2):
        trainer = make_trainer(tiny(loss, step_order=step_order, accumulate=accumulate, batch=4))
        for net in (*trainer.nets.as_dict().values(), *trainer.ema.modules.values()):
            net.double()
        terms = [trainer.step(pictures(4), 4 * k, 0.5, random(k)) for k in range(3)]
        states.append(
            (terms, {n: copy.deepcopy(o.state_dict()) for n, o in trainer.nets.as_dict().items()})
        )
    for a, b in zip(*(terms for terms, _ in states), strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-9)
    one, two = (state for _, state in states)
    for network in one:
        for name, tensor in one[network].items():
            torch.testing.assert_close(tensor, two[network][name], rtol=1e-6, atol=1e-9)


def test_who_is_alone_needs_no_others():
    job = Processes()
    assert job.first and job.agree(0.25, True) == (0.25, True)
    assert job.sum({"a": torch.ones(())})["a"] == 1


def test_blocks_that_keep_their_inputs_only_learn_the_same(tiny, make_trainer, random):
    """Through R1's and consistency's second order, to the bit."""
    loss = dict(r1_interval=1, consistency_interval=1)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks
    for checkpoint in (False, True):
        trainer = make_trainer(tiny(loss, checkpoint_activations=checkpoint))
        for net in (*trainer.nets.as_dict().values(), *trainer.ema.modules.values()):
            net.double()
        trainer.step(pictures(4), 0, 0.5, random())
        count = []
        with hooks(lambda t, count=count: count.append(0) or t, lambda t: t):
            trainer.nets.generator(torch.rand(2, 4, 8, 8), torch.rand(2, 8), noise="none")
        kept.append(
            (len(count), [p for net in trainer.nets.as_dict().values() for p in net.parameters()])
        )
    (all_of_them, first), (inputs, second) = kept
    assert inputs < all_of_them / 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
