"""What is no number, and what nobody looked at, lets no claim hold."""

import math
from functools import cache
from typing import Any

import pytest
import torch

from gpsafe.testbed import store
from gpsafe.testbed.check import Evidence, discover
from gpsafe.tube import EnsembleTube
from gpsafe.verdict import Outcome, Verdict, worst_of
from proofs_checks import _coverage, actsafe_expansion, noise_energy, xmpsc, xmpsc_assumptions

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


def test_every_plan_has_a_calibration_of_its_own(monkeypatch):
    made, plans, calibrated = [], 3, EnsembleTube.calibrated
    monkeypatch.setitem(xmpsc.PLANS, "quick", plans)
    monkeypatch.setattr(
        EnsembleTube, "calibrated", staticmethod(lambda *a, **k: made.append(calibrated(*a, **k)) or made[-1])
    )
    assert xmpsc._sample_coverage(0, "quick", False)["trials"] == plans
    assert len({tube.radius for tube in made}) == plans


@pytest.mark.parametrize(("sample", "states"), [(xmpsc_assumptions.strays, 1), (xmpsc_assumptions.moves, 2)])
def test_trials_are_of_blocks_of_their_own(sample, states, monkeypatch):
    """Rows of one block are one episode's: as many trials as there are of them would be too many."""
    blocks, recorded = [], xmpsc_assumptions.warm_up_data
    monkeypatch.setattr(xmpsc_assumptions, "EPISODES", 20)

    def counted(plant: Any, transitions: int, seed: int) -> Any:
        blocks.append(transitions // plant.horizon)
        return recorded(plant, transitions, seed)

    monkeypatch.setattr(xmpsc_assumptions, "warm_up_data", counted)
    assert sample(0, "quick", False)["trials"] * states == blocks[-1]
    chosen = xmpsc_assumptions.one_each(50, 7, torch.Generator().manual_seed(0))
    assert (chosen // 7).tolist() == list(range(50)) and len((chosen % 7).unique()) > 3


def test_a_case_that_fails_is_not_thinned_by_the_others():
    failed = {"failures": [60, 0, 0, 0, 0], "trials": [200] * 5, "about": ""}
    assert actsafe_expansion.judge_rate([failed], False).verdict.outcome is Outcome.VIOLATED
    none = failed | {"failures": [0] * 5}
    assert actsafe_expansion.judge_rate([none], False).verdict.outcome is Outcome.HOLDS


def test_ends_that_once_miss_what_their_set_holds_refute():
    names = {"energy": 18000, "ends": 144}
    cells = [{"name": f"tied: {k}", "delta": 0.1, "trials": n, "failures": 0} for k, n in names.items()]
    sample = {"cells": cells, "band": None, "short": 0.0}
    assert noise_energy.judge([sample], False).verdict.outcome is Outcome.HOLDS
    cells[1]["failures"] = 1
    assert noise_energy.judge([sample], False).verdict.outcome is Outcome.VIOLATED
