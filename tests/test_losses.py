"""Loss values against numbers worked by hand or by a few lines of NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch

from karat import losses


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_worked_numbers():
    assert losses.bradley_terry(t(1, 0), t(0, 0)).mean().item() == pytest.approx(0.503204, abs=1e-6)
    assert losses.bradley_terry(t(2, 0.5), t(1, 1)).mean().item() == pytest.approx(0.643669, abs=1e-6)
    assert losses.bradley_terry(t(2, 0.5), t(1, 1), margin_B=t(0.5, 0)).mean().item() == pytest.approx(
        0.724077, abs=1e-6
    )
    assert losses.bradley_terry(t(1), t(0), margin_B=t(0.5)).item() == pytest.approx(0.474077, abs=1e-6)
    assert losses.bradley_terry(t(3), t(3)).item() == pytest.approx(math.log(2))


def test_bradley_terry_gradient_and_shift():
    chosen, rejected = t(2, 0.5).requires_grad_(), t(1, 1).requires_grad_()
    losses.bradley_terry(chosen, rejected).mean().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.134471, -0.311230], abs=1e-6)
    assert (chosen.grad + rejected.grad).abs().max().item() < 1e-12
    shifted = losses.bradley_terry(t(2, 0.5) + 7, t(1, 1) + 7)
    assert shifted.tolist() == pytest.approx(losses.bradley_terry(t(2, 0.5), t(1, 1)).tolist())


def test_soft_labels_and_ties():
    def reference(delta, p):
        return p * math.log1p(math.exp(-delta)) + (1 - p) * math.log1p(math.exp(delta))

    for delta, p in itertools.product([-3.0, 0.0, 1.5], [0.0, 0.3, 0.5, 1.0]):
        got = losses.bradley_terry(t(delta), t(0), preference_B=t(p)).item()
        assert got == pytest.approx(reference(delta, p), abs=1e-12)
    far = losses.bradley_terry(t(1e4), t(-1e4), preference_B=t(0.5)).item()
    assert far == pytest.approx(1e4)


def test_centering_worked_numbers():
    rows = torch.stack([t(2, 0.5), t(1, 1)], dim=1)
    present = torch.ones_like(rows, dtype=torch.bool)
    loss = losses.bradley_terry(t(2, 0.5), t(1, 1)) + 0.01 * losses.centering(rows, present)
    assert loss.mean().item() == pytest.approx(0.699919, abs=1e-6)
    rows = t(1.2, -0.2)[None]
    loss = losses.bradley_terry(t(1.2), t(-0.2)) + 0.01 * losses.centering(
        rows, torch.ones_like(rows, dtype=torch.bool)
    )
    assert loss.item() == pytest.approx(0.230417, abs=1e-6)


def test_plackett_luce_of_two_is_bradley_terry():
    ranks = torch.tensor([[1, 2], [2, 1]])
    rewards = torch.tensor([[1.0, -0.5], [1.0, -0.5]], dtype=torch.float64)
    expected = losses.bradley_terry(t(1, -0.5), t(-0.5, 1))
    assert losses.plackett_luce(rewards, ranks).tolist() == pytest.approx(expected.tolist())


def test_plackett_luce_is_a_distribution_over_orders():
    rewards = np.array([0.3, -1.2, 2.0])
    total = 0.0
    for order in itertools.permutations(range(3)):
        left, likelihood = list(order), 1.0
        while left:
            likelihood *= math.exp(rewards[left[0]]) / sum(math.exp(rewards[i]) for i in left)
            left.pop(0)
        ranks = torch.tensor([[order.index(i) + 1 for i in range(3)] + [0]])
        padded = torch.tensor([[*rewards, 99.0]], dtype=torch.float64)
        got = losses.plackett_luce(padded, ranks).item()
        assert got == pytest.approx(-math.log(likelihood))
        total += math.exp(-got)
    assert total == pytest.approx(1.0)


def test_plackett_luce_ties_and_gradients_stay_finite():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 5.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.plackett_luce(rewards, torch.tensor([[1, 2, 2, 0]]))
    # The winner out of all three, then each of the tie out of the two.
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)) + 2 * math.log(2))
    loss.sum().backward()
    assert rewards.grad.isfinite().all() and rewards.grad[0, 3] == 0


def test_outcome_bce_does_not_saturate():
    logit = torch.tensor([7.0], dtype=torch.float32, requires_grad=True)
    loss = losses.outcome_bce(logit, torch.zeros(1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(7.000911, abs=1e-5)
    assert logit.grad.item() == pytest.approx(0.999, abs=1e-3)
    # Negative control: the sigmoid in bfloat16 rounds to 1, and the gradient is gone.
    bad = torch.tensor([7.0], dtype=torch.bfloat16, requires_grad=True)
    (-torch.log(1 - torch.sigmoid(bad) + 1e-10)).sum().backward()
    assert bad.grad.item() == 0.0
