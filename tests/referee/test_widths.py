"""What each bound is said to make of a claim: its status, its band in units of the rows, the theory's number of episodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gpsafe as gs
from gpsafe.confidence import ConvexProgram, Mixture
from gpsafe.confidence.registry import BOUNDS
from gpsafe.linalg import vector
from gpsafe.models import zero_prior
from gpsafe.referee import Ruling, arranged, widths
from gpsafe.referee.claim import Claim, claimed
from gpsafe.referee.consequences import of_widths
from gpsafe.referee.widths import Width
from gpsafe.rkhs import kernels
from gpsafe.systems.task import Task

DELTA = 0.1


def recorded(count: int = 60) -> gs.Transitions:
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(count, 2, dtype=torch.float64, generator=g) - 1
    y = x.sin() + vector(0.3, 3.0) * torch.randn(count, 2, dtype=torch.float64, generator=g)
    return gs.Transitions(x, x[:, :0], y)


ROWS = arranged(recorded(), None)
KERNELS = (kernels.rbf([0.3, 0.3], 0.5), kernels.rbf([0.6, 0.3], 2.0))


def claim(**changes: Any) -> Claim:
    stated = {"kernels": KERNELS, "rkhs_norm": (2.0, 30.0), "subgaussian": (0.3, 3.0), "prior": zero_prior}
    return claimed(ROWS, **(stated | changes))


def test_a_bound_is_a_theorem_where_it_accepts_the_model_and_what_is_missing_is_told_elsewhere():
    found = {w.name: w for w in widths.widths(ROWS, claim(), delta=DELTA)}
    assert list(found) == list(BOUNDS)
    status = {name: w.status for name, w in found.items()}
    assert {n for n, s in status.items() if s == "theorem"} == {
        "mixture",
        "abbasi-yadkori",
        "fiedler",
        "chowdhury-gopalan",
        "srinivas",
        "convex-program",
        "noise-energy",
    }  # fmt: skip  (that of Srinivas et al. where its β is no less than the mixture's)
    assert status["constant"] == "by hand: no theorem" and status["lederer"] == "theorem, for f drawn from the process"
    assert status["actsafe"].startswith("no theorem here: it needs ") and found["actsafe"].in_box > 0
    assert {n for n, w in found.items() if math.isnan(w.beta)} == {"convex-program", "noise-energy", "lederer"}
    assert all(math.isnan(w.episodes) for w in found.values())
    linear = {w.name: w.status for w in widths.widths(ROWS, claim(kernels=kernels.linear([1.0, 1.0])), delta=DELTA)}
    assert (
        "a stationary kernel, to be put in units of R" in linear["chowdhury-gopalan"] and linear["mixture"] == "theorem"
    )


def test_outputs_are_put_in_units_of_their_noise_where_a_theorem_wants_that():
    """Chowdhury & Gopalan at R = 1, of y/R with k/R² and λ = 1 + 2/n; widths are told in units of the rows all the same."""
    [found] = (w for w in widths.widths(ROWS, claim(), delta=DELTA) if w.name == "chowdhury-gopalan")
    noise, y, z = vector(0.3, 3.0), ROWS.data.x_next, ROWS.data.z
    scaled = [kernels.rbf([0.3, 0.3], 0.5 / 0.09), kernels.rbf([0.6, 0.3], 2.0 / 9.0)]
    model = gs.GP.create(scaled, 1 + 2 / 60, nx=2, nu=0, noise_std=1.0, mode="theory").condition_on(z, y / noise)
    bound = BOUNDS["chowdhury-gopalan"](rkhs_norm=(2.0, 30.0), subgaussian=1.0, delta=DELTA, max_data=60)
    low, high = bound.interval(model, z)
    expected = ((high - low) / 2 * noise / y.square().mean(0).sqrt()).median(0).values.max()
    assert found.at_rows == pytest.approx(float(expected)) and found.beta == pytest.approx(
        float(bound.beta(model).max())
    )


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.0, 0.0, "theorem"), (1e-11, 0.0, "theorem"), (1e-3, 0.0, widths.EMPTY), (math.nan, math.nan, widths.NO_NUMBER),
        (-math.inf, math.inf, "theorem"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["rows", "box"])
def test_a_band_that_is_empty_or_no_number_at_a_point_has_no_width(monkeypatch, low, high, status, place):
    """A band of NaN was "the narrowest theorem", and not vacuous."""
    interval, calls = Mixture.interval, []

    def struck(self: Mixture, model: gs.GP, z: torch.Tensor, **options: Any) -> Any:
        ends = [end.clone() for end in interval(self, model, z, **options)]
        calls.append(len(z))
        if len(calls) == (1 if place == "rows" else 2):
            ends[0][3, 1], ends[1][3, 1] = low, high
        return tuple(ends)

    monkeypatch.setattr(Mixture, "interval", struck)
    monkeypatch.setattr(widths, "BOUNDS", {"mixture": Mixture})
    [found] = widths.widths(ROWS, claim(), delta=DELTA)
    assert found.status == status and math.isnan(found.in_box) == (status != "theorem") and calls == [60, 200]


def test_a_point_is_saturated_where_hardly_less_than_the_norm_bound_is_said(monkeypatch):
    """0.9 B√k(z, z) in all outputs, of kernels whose variances are 0.5 and 2."""
    limit = 0.9 * vector(2.0 * 0.5**0.5, 30.0 * 2.0**0.5)

    def band(self: Mixture, model: gs.GP, z: torch.Tensor) -> Any:
        half = limit.expand(len(z), 2).clone()
        half[: len(z) // 4] *= vector(1.0, 0.999)  # a quarter in one output alone
        return -half * (1 + 1e-12), half * (1 + 1e-12)

    monkeypatch.setattr(Mixture, "interval", band)
    monkeypatch.setattr(widths, "BOUNDS", {"mixture": Mixture})
    [found] = widths.widths(ROWS, claim(), delta=DELTA)
    assert found.saturated == 0.75


def test_of_many_rows_some_are_looked_at_from_the_first_in_even_steps(monkeypatch):
    rows = arranged(recorded(430), None)
    seen, interval = [], Mixture.interval
    monkeypatch.setattr(Mixture, "interval", lambda self, model, z: seen.append(z) or interval(self, model, z))
    monkeypatch.setattr(widths, "BOUNDS", {"mixture": Mixture})
    widths.widths(rows, claim(), delta=DELTA)
    assert torch.equal(seen[0], rows.data.z[::2]) and len(rows.data) == 430
    z = seen[1]
    assert bool((z >= rows.data.z.amin(0)).all()) and bool((z <= rows.data.z.amax(0)).all())


def test_what_cannot_be_made_costs_one_bound_and_its_reason_is_told(monkeypatch):
    def broken(self: ConvexProgram, *args: Any) -> None:
        raise RuntimeError("no solver")

    monkeypatch.setattr(ConvexProgram, "interval", broken)
    monkeypatch.setattr(widths, "BOUNDS", {"convex-program": ConvexProgram, "mixture": Mixture})
    one, other = widths.widths(ROWS, claim(), delta=DELTA)
    assert one.status == "RuntimeError: no solver" and math.isnan(one.at_rows) and other.status == "theorem"


def test_a_theorem_that_refuses_the_rows_has_no_numbers(monkeypatch):
    """Rows told twice; of the forms that are shown without their theorem the numbers are."""
    data = recorded(30)
    twice = arranged(data + data, [0] * 30 + [1] * 30)
    monkeypatch.setattr(widths, "BOUNDS", {name: BOUNDS[name] for name in ("mixture", "actsafe")})
    stated = {"kernels": KERNELS, "rkhs_norm": (2.0, 30.0), "subgaussian": (0.3, 3.0), "prior": zero_prior}
    one, other = widths.widths(twice, claimed(twice, **stated), delta=DELTA)  # type: ignore[arg-type]
    assert (
        one.status.startswith("mixture: expected ") and one.status.endswith("got this model") and math.isnan(one.in_box)
    )
    assert other.status.startswith("no theorem here") and other.in_box > 0


def test_the_number_of_episodes_is_of_the_largest_kernel_and_the_smallest_noise(monkeypatch):
    """It was of the first output's kernel, and of σ at the first row."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(widths, "sufficient_episodes", lambda **options: asked.append(options) or 17.0)
    monkeypatch.setattr(widths, "BOUNDS", {name: BOUNDS[name] for name in ("mixture", "actsafe", "convex-program")})
    cost = gs.IndicatorCost([[1.0, 0.0]], [1.0])
    task = Task(vector(0.0, 0.0), 10, cost, 0.5, vector(0.3, 3.0))
    linear = kernels.linear([1.0, 1.0])
    mixed = claim(kernels=(KERNELS[0], linear))
    found = {w.name: w for w in widths.widths(ROWS, mixed, delta=DELTA, task=task)}
    assert found["mixture"].episodes == 17.0 and math.isnan(found["actsafe"].episodes) and len(asked) == 1
    assert math.isnan(found["convex-program"].episodes)
    [given], z = asked, ROWS.data.z
    assert given["beta_of"] == found["mixture"].beta and given["epsilon"] == 0.01 * 10 * 1.0
    assert (given["horizon"], given["ceiling"], given["outputs"]) == (10, 1.0, 2)
    assert given["noise_std"].tolist() == [0.3, 3.0] and given["regularizer"] == pytest.approx(0.09)
    assert given["prior_std"].tolist() == pytest.approx([0.5**0.5, float(z.norm(dim=-1).max())])
    each = [torch.linalg.eigvalsh(kernels.cross(k, z, z)) for k in (KERNELS[0], linear)]
    assert torch.allclose(given["domain_eigenvalues"], torch.maximum(*each).clamp_min(0.0))
    widths.widths(ROWS, claim(kernels=linear), delta=DELTA, task=task)
    assert float(torch.linalg.eigvalsh(kernels.cross(linear, z, z)).min()) < 0  # by rounding: of rank 2
    assert float(asked[1]["domain_eigenvalues"].min()) == 0.0


def test_sets_behind_costs_are_of_the_default_bound_on_rows_taken_evenly():
    found = widths.sets_of(ROWS, claim(), delta=0.2, most=20)
    bound = found.bound
    assert isinstance(bound, Mixture) and bound.delta == 0.2
    assert tuple(bound.norms(2)) == (2.0, 30.0) and tuple(bound.noise(2)) == (0.3, 3.0)
    keep = torch.linspace(0, 59, 20, dtype=torch.float64).long()
    assert torch.equal(found.model.inputs, ROWS.data.z[keep])
    spent = claimed(ROWS, kernels=KERNELS, subgaussian=(0.3, 3.0), prior=zero_prior)
    assert torch.equal(widths.sets_of(ROWS, spent, delta=0.2, most=100).model.inputs, ROWS.data.z[20:])


def width(name: str, in_box: float, status: str = "theorem") -> Width:
    return Width(name, status, 2.0, 0.4, in_box, 0.25, math.nan)


def test_the_narrowest_theorem_is_told_and_what_is_wider_than_the_rows_is_vacuous():
    found = [width("a", 0.9), width("b", 0.6), width("c", 0.1, "by hand: no theorem")]
    told = of_widths(found, DELTA, None)
    assert told.ruling is Ruling.STANDS and (told.statistic, told.threshold) == (0.6, 1.0)
    assert "narrowest theorem is b: half-width 0.4 at the rows and 0.6 in their box" in told.statement
    assert "in 25% of the box" in told.statement and "n*" not in told.statement and len(told.rows) == 3
    assert told.rows[0] == ("a", "theorem", 2.0, 0.4, 0.9, 0.25, pytest.approx(math.nan, nan_ok=True))
    for wide in (1.0, 7.0, math.nan):
        found = of_widths([width("b", wide)], DELTA, None)
        assert found.ruling is Ruling.VACUOUS and "vacuous in the box as a whole" in found.statement
    assert "n*" in of_widths(found_ := [width("b", 0.6)], DELTA, Task(
        vector(0.0), 1, gs.IndicatorCost([[1.0]], [1.0]), 0.5, vector(0.1))).statement and found_  # fmt: skip
    empty = of_widths([width("a", 0.5), Width("d", widths.EMPTY)], DELTA, None)
    assert empty.ruling is Ruling.VACUOUS and "The band of d is empty" in empty.statement
    none = of_widths([Width("d", widths.EMPTY), width("c", 0.1, "by hand: no theorem")], DELTA, None)
    assert none.ruling is Ruling.NOT_APPLICABLE and "The band of d is empty" in none.statement
    assert "The band of" not in of_widths([width("c", 0.1, "no")], DELTA, None).statement
