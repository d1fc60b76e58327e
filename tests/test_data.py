"""Recorded transitions: concatenation, refusal of bad data, independence of the caller's tensors."""

import math

import pytest
import torch

from gpsafe.data import Transitions


def transitions(n: int = 3) -> Transitions:
    x = torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2)
    return Transitions(x, x[:, :1], x + 1)


def test_concatenation_keeps_order():
    both = transitions(2) + transitions(3)
    assert len(both) == 5
    assert torch.equal(both.z[2:], transitions(3).z)
    assert both.z.shape == (5, 3)


def test_what_was_recorded_cannot_be_changed_from_outside():
    x = torch.zeros(2, 2, dtype=torch.float64)
    data = Transitions(x, x, x)
    x += 1
    assert float(data.x.abs().max()) == 0.0


def test_no_gradient_is_recorded():
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    assert not Transitions(x, x, x).x.requires_grad


def test_autonomous_systems_have_no_input():
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert Transitions(x, torch.zeros(2, 0), x).z.shape == (2, 2)


def test_integers_and_float32_become_float64():
    x = torch.ones(2, 1)
    assert Transitions(x, x, x).x.dtype == torch.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["x", "u", "x_next"])
def test_non_finite_data_are_refused(bad, field):
    fields = {name: torch.ones(2, 1, dtype=torch.float64) for name in ("x", "u", "x_next")}
    fields[field] = torch.tensor([[1.0], [bad]], dtype=torch.float64)
    with pytest.raises(ValueError, match=f"Transitions: expected finite {field}"):
        Transitions(**fields)


@pytest.mark.parametrize(
    ("x", "u", "x_next"),
    [((0, 1), (0, 1), (0, 1)), ((2, 1), (3, 1), (2, 1)), ((2, 1), (2, 1), (2, 2)), ((2,), (2, 1), (2,))],
)
def test_wrong_shapes_and_empty_data_are_refused(x, u, x_next):
    with pytest.raises(ValueError, match="Transitions: expected"):
        Transitions(torch.ones(x), torch.ones(u), torch.ones(x_next))


def test_sums_of_different_systems_are_refused():
    other = Transitions(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="same nx"):
        transitions() + other


def test_some_rows_are_chosen_by_numbers_mask_or_slice():
    data = transitions(5)
    for rows in (torch.tensor([3, 0]), torch.arange(5) % 2 == 0, slice(1, 4)):
        some = data.select(rows)
        assert torch.equal(some.z, data.z[rows]) and torch.equal(some.x_next, data.x_next[rows])
    with pytest.raises(ValueError, match="Transitions"):
        data.select(slice(0))
