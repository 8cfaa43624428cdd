"""What skips steps, takes them back, and sees a run go wrong."""

import pytest
import torch

from rwm_fast.training.guard import (
    LOOK_STEPS,
    PATIENCE,
    DivergedError,
    Guard,
    NotFiniteError,
    Undo,
    step_if_finite,
)


def adam():
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    return torch.optim.Adam(parameters, lr=0.1, fused=True), parameters


def learn(optimizer, parameters, value=1.0):
    for p in parameters:
        p.grad = torch.full_like(p, 1.0)
    parameters[1].grad[0, 0] = value
    return step_if_finite(optimizer).item()


def held(optimizer, parameters) -> list[torch.Tensor]:
    averages = [t for p in parameters for t in optimizer.state.get(p, {}).values()]
    return [t.detach().clone() for t in (*parameters, *averages)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_gradient_changes_no_weight_and_no_average(value):
    (optimizer, parameters), (plain, others) = adam(), adam()
    for value_now in (1.0, value, 1.0):
        before = held(optimizer, parameters)
        skipped = learn(optimizer, parameters, value_now)
        same = all(map(torch.equal, before, held(optimizer, parameters)))
        assert skipped == same == (value_now == value or value_now != value_now)
    for _ in range(2):
        learn(plain, others)
    assert all(map(torch.equal, held(optimizer, parameters), held(plain, others)))


@pytest.mark.parametrize("steps", [0, 2])
def test_what_was_learned_can_be_taken_back(steps):
    (optimizer, parameters), (plain, others) = adam(), adam()
    undo = Undo(optimizer)
    for _ in range(steps):
        undo.remember()
        learn(optimizer, parameters)
        learn(plain, others)
    undo.remember()
    for _ in range(3):
        learn(optimizer, parameters, 5.0)
    undo.bring_back()
    for _ in range(2):
        learn(optimizer, parameters, 2.0)
        learn(plain, others, 2.0)
    assert all(map(torch.equal, held(optimizer, parameters), held(plain, others)))


def feed(guard, steps=LOOK_STEPS, skipped=0.0, **terms):
    for _ in range(steps):
        guard.add({k: torch.tensor(v) for k, v in terms.items()}, torch.tensor(skipped))
    guard.look()


def test_bad_steps_in_a_row_end_a_run_and_others_are_counted():
    guard = Guard(limit=0, most=10)
    nan = float("nan")
    feed(guard, 9, patch=nan)
    feed(guard, 1, patch=1.0)
    feed(guard, 9, patch=1.0, skipped=1.0)
    assert guard.skipped == 18
    with pytest.raises(NotFiniteError, match="10 steps in a row were not finite .gradients"):
        feed(guard, 1, patch=1.0, skipped=1.0)
    with pytest.raises(NotFiniteError, match="12 steps in a row were not finite .edge, patch"):
        feed(guard, 2, patch=nan, edge=nan)


def test_a_loss_out_of_bounds_is_seen_and_a_spike_is_forgiven():
    guard = Guard(limit=50, most=10)
    feed(guard, reconstruction=60.0)  # its scale is known before there is a history
    assert guard.beyond == {"reconstruction": 1}
    feed(guard, reconstruction=40.0)
    assert not guard.beyond
    guard = Guard(limit=50, most=10)
    for _ in range(PATIENCE + 2):
        feed(guard, r1=900.0, reconstruction=0.3)  # large, but usual
    assert not guard.beyond
    for _ in range(PATIENCE - 1):
        feed(guard, r1=50_000.0, reconstruction=0.3)
    with pytest.raises(DivergedError, match=r"r1 = 5e\+04 is more than 50 times its usual 900"):
        feed(guard, r1=50_000.0, reconstruction=0.3)


def test_no_limit_sees_nothing():
    guard = Guard(limit=0, most=0)
    for _ in range(PATIENCE):
        feed(guard, reconstruction=1e9, edge=float("nan"))
    assert not guard.beyond and guard.skipped == PATIENCE * LOOK_STEPS
