"""A function that is another one now is noticed, whatever the units of what it gives."""

import pytest
import torch

from gpsafe._pinned import pinned_prior


@pytest.mark.parametrize("unit", [1.0, 1e-15, 1e15])
def test_a_number_in_a_dictionary_that_moves_is_noticed_by_the_values(unit):
    """Dictionaries are not looked at: functions log in them."""
    held = {"gain": unit}
    pinned = pinned_prior(lambda x, u: held["gain"] * (x + torch.tensor([0.0, 1.0]).double()), 2, 1)
    assert not pinned.moved
    held["gain"] *= 1 + 1e-9
    assert pinned.moved
    held["gain"] = unit * (1 + 1e-15)
    assert not pinned.moved


def test_what_is_not_finite_moves_only_where_it_changes():
    held = {"end": float("inf")}
    pinned = pinned_prior(lambda x, u: torch.where(x > 0, held["end"], x.sqrt()), 2, 1)
    assert not pinned.moved
    held["end"] = 1e300
    assert pinned.moved
