"""What is no number, and what nobody looked at, lets no claim hold."""

import math
from functools import cache
from typing import Any

import pytest
import torch

from gpsafe.testbed import store
from gpsafe.testbed.check import Evidence, discover
from gpsafe.verdict import Outcome, Verdict, worst_of
from proofs_checks import _coverage, xmpsc_assumptions

CHECKS = discover()
# A piece of these takes less than a second, and its statistic is a number, no count.
NUMBERS = (
    "xmpsc-outer-sum",
    "xmpsc-tube-linear",
    "info-gain-linear",
    "info-gain-gram",
    "actsafe-cost-width",
    "actsafe-optimism",
    "safeopt-reaches",
)
NUMBERS += (
    "scenario-tubes",
    "gaussian-tubes",
    "cost-bounds-sound",
    "xmpsc-filter",
    "width-fiedler-below-one",
)


def spoilt(value: Any) -> Any:
    """The same with NaN for every float."""
    if isinstance(value, float):
        return math.nan
    if isinstance(value, dict):
        return {key: spoilt(part) for key, part in value.items()}
    return [spoilt(part) for part in value] if isinstance(value, list) else value


@cache
def piece(name: str) -> Any:
    return store.plain(CHECKS[name].sample(0, "quick", False))


def outcome(name: str, samples: list[Any]) -> Outcome | None:
    """None if it is refused, as `verify` makes an ERROR of it."""
    try:
        return CHECKS[name].judge(samples, False).verdict.outcome
    except (ValueError, IndexError, KeyError, ZeroDivisionError, TypeError):
        return None


@pytest.mark.parametrize("name", CHECKS)
def test_no_claim_holds_where_nothing_was_looked_at(name):
    assert outcome(name, []) is not Outcome.HOLDS
    with pytest.raises(ValueError, match="Evidence: expected integer n"):
        Evidence(0, 0.0, Verdict(0.0, 0.0, 1.0))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_claim_holds_where_a_piece_is_no_number(name, place):
    samples = [piece(name)] * 3
    assert outcome(name, samples) is Outcome.HOLDS  # control
    samples[place] = spoilt(piece(name))
    assert outcome(name, samples) is not Outcome.HOLDS


def test_a_width_that_is_no_number_covers_nothing():
    class Seen:
        setting = type("Setting", (), {"norm": 1.0, "noise_std": 0.1})

        def beta(self, bound, delta):
            return torch.tensor([math.nan, 1.0])

        def ratio(self, beta):
            return 0.5 * beta

    failed, _ = _coverage.closed(lambda **_: None, Seen(), 0.1)  # type: ignore[arg-type]
    assert failed.tolist() == [True, False]


def test_the_worst_of_some_is_the_one_that_is_no_number():
    for values in ((math.nan, 1.0), (1.0, math.nan), (math.inf, math.nan, 2.0), ([0.0, math.nan],)):
        assert math.isnan(worst_of(*values))
    assert worst_of(1.0, 3.0, 2.0) == 3.0 and worst_of(x for x in (0, 7)) == 7 and worst_of([-math.inf, 0.0]) == 0.0
    assert worst_of([(1.0, "a"), (math.nan, "b"), (2.0, "c")], key=lambda pair: pair[0])[1] == "b"
    with pytest.raises(ValueError, match="empty"):
        worst_of([])


def test_a_step_that_is_no_number_is_above_its_bound(monkeypatch):
    """It was a step of 0."""
    plant = xmpsc_assumptions._plant(0)
    mean, calm = type(plant).mean, xmpsc_assumptions.moves(0, "quick", False)

    def struck(self, x, u):
        found = mean(self, x, u)
        return torch.where(torch.arange(len(x)).unsqueeze(-1) == 7, math.nan, found) if x.ndim == 2 else found

    monkeypatch.setattr(type(plant), "mean", struck)
    assert (calm["failures"], xmpsc_assumptions.moves(0, "quick", False)["failures"]) == (0, 1)
