"""What follows from a claim, in words: rulings and sentences of numbers that are made up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.distributions import MultivariateNormal

from gpsafe.confidence import Mixture
from gpsafe.cost import ScenarioTube
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP, views, zero_prior
from gpsafe.referee import Ruling, arranged, reach
from gpsafe.referee.case import Case
from gpsafe.referee.claim import claimed
from gpsafe.referee.consequences import of_policies, of_refit, of_region
from gpsafe.referee.finding import Finding, shown
from gpsafe.referee.judgements import _tested
from gpsafe.referee.power import NONE, Power
from gpsafe.referee.reach import PATHS, Policies, Region, _bound, about_start
from gpsafe.referee.refit import Refit, refits
from gpsafe.referee.widths import POINTS, SATURATED, _normalised, widths
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.point_goal import DiscCost
from gpsafe.systems.task import Task
from gpsafe.tube import lqr_gain


def test_numbers_are_shown_with_three_digits_and_signs_of_their_own():
    told = [shown(v) for v in (0.012345, -2.0, 1e-9, math.inf, -math.inf, math.nan)]
    assert told == ["0.0123", "−2", "1e−09", "∞", "−∞", "–"]


def test_a_refit_is_compared_by_the_density_of_rows_that_neither_saw(monkeypatch):
    """ln p(last | rest) of both, norms, deviations and ratios, by their definitions; the "refit" is given here."""
    n, cut, frozen_noise, noise = 30, 20, 0.1, 0.2  # ten choose; of twenty that judge the last ten are compared
    g = torch.Generator().manual_seed(0)
    z, y = torch.rand(n, 2, dtype=torch.float64, generator=g), torch.randn(n, dtype=torch.float64, generator=g)
    frozen, new = kernels.rbf([0.5, 1.0]), kernels.rbf([1.0, 1.0], 4.0)
    again = GP.create(new, noise**2, nx=2, nu=0, noise_std=noise, outputs=[0], mode="practical")
    monkeypatch.setattr(views, "fit_hyperparameters", lambda model: again)
    rows = arranged(Transitions(z[:, :1], z[:, 1:], y.unsqueeze(-1)), None)
    z, y = rows.data.z, rows.data.x_next[:, 0]
    [found] = refits(rows, claimed(rows, kernels=frozen, rkhs_norm=1.0, subgaussian=frozen_noise, prior=zero_prior))

    def judged(kernel, noise: float) -> tuple[float, float, float]:
        gram = kernels.cross(kernel, z, z)
        noisy = gram + noise**2 * torch.eye(n).double()
        density = [float(MultivariateNormal(torch.zeros(m).double(), noisy[:m, :m]).log_prob(y[:m])) for m in (n, cut)]
        weights, cross = torch.linalg.solve(noisy, y), gram[:cut, cut:]
        variance = gram[cut:, cut:] - cross.mT @ torch.linalg.solve(noisy[:cut, :cut], cross)
        return (
            density[0] - density[1],
            float((weights @ gram @ weights).sqrt()),
            float(variance.diagonal().sqrt().median()),
        )

    (p0, norm0, width0), (p1, norm1, width1) = judged(frozen, frozen_noise), judged(new, noise)
    assert (found.log_ratio, found.width) == pytest.approx((p1 - p0, width1 / width0), rel=1e-6)
    assert found.norms == pytest.approx((norm0, norm1), rel=1e-6)
    assert (found.tested, found.scales) == (n - cut, (1.0, 2.0))
    assert (found.amplitude, found.noise) == pytest.approx((2.0, noise / frozen_noise))


def test_widths_are_medians_in_units_of_what_each_output_moves_by():
    """Of the output in which they are the widest; a point is saturated where hardly less than B√k is said in all outputs."""
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(60, 2, dtype=torch.float64, generator=g) - 1
    moved = torch.randn(60, 2, dtype=torch.float64, generator=g) * vector(0.3, 3.0)
    rows = arranged(Transitions(x, x[:, :0], moved), None)
    norms, noise = (1.0, 30.0), (0.3, 3.0)
    claim = claimed(rows, kernels=kernels.rbf([0.3, 0.3]), rkhs_norm=norms, subgaussian=noise, prior=zero_prior)
    data = claim.unspent(rows)
    model, spread = claim.model(data), data.x_next.square().mean(0).sqrt()
    bound = Mixture(rkhs_norm=norms, subgaussian=noise, delta=0.1)

    def half(z: torch.Tensor) -> torch.Tensor:
        low, high = bound.interval(model, z)
        return (high - low) / 2

    low, high = data.z.amin(0), data.z.amax(0)
    inside = low + (high - low) * torch.rand(POINTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    [found] = (width for width in widths(rows, claim, delta=0.1) if width.name == "mixture")
    assert found.status == "theorem" and found.beta == float(bound.beta(model).max())
    assert found.at_rows == pytest.approx(float((half(data.z) / spread).median(0).values.max()))
    assert found.in_box == pytest.approx(float((half(inside) / spread).median(0).values.max()))
    most = (half(inside) >= SATURATED * vector(*norms)).all(-1).double().mean()
    assert found.saturated == float(most) and 0 < float(most) < 1
    units = _normalised(claim, data.z, data.x_next)  # of R, with the λ of Chowdhury and Gopalan
    assert units.regularizer.tolist() == [1 + 2 / 60] * 2 and units.targets is not None
    assert torch.equal(units.targets, data.x_next / vector(*noise))
    variances = [float(kernels.diagonal(k, data.z[:1])) for k in units.kernels]
    assert variances == pytest.approx([1 / r**2 for r in noise])


def test_paths_are_as_many_as_half_of_the_budget_needs_within_limits():
    """n ≥ 2 T C ln(P/δ)/d paths, at least 200 and at most `PATHS`."""
    disc, counts = DiscCost(torch.zeros(1, 2).double(), vector(1.0)), []
    for share in (0.99, 0.02, 1e-6):
        task = Task(vector(2.0, 0.0), 10, disc, share * 10, vector(0.1, 0.1))
        bound = _bound(task, 40, 0.01, 10.0)
        assert isinstance(bound, ScenarioTube)
        counts.append(bound.samples)
    assert counts == [200, int(2 / 0.02 * math.log(40 / 0.01)), PATHS]


def test_of_several_outputs_the_worst_is_told_and_those_that_are_refuted_are_named():
    def output(name: str, value: float) -> SimpleNamespace:
        hits = Power(10, {NONE: {"norm": 0}})
        return SimpleNamespace(name=name, value=value, refuted=lambda test: value > 1, power=hits)

    def told(*outputs: SimpleNamespace) -> Finding:
        case = cast(Case, SimpleNamespace(outputs=outputs, power=outputs[0].power, share=0.01))
        return _tested(
            case, "norm", "", lambda o: cast(Any, o).value, lambda o: 1.0, "{state}: {statistic}{which}", "{state} stands.",
            assumes=(), head=("value", "B"), joint=False,
        )  # fmt: skip

    assert told(output("a", 0.5), output("b", 3.0)).statement == "b: 3 (refuted for b)"
    assert told(output("a", 2.0), output("b", 3.0)).statement == "b: 3 (refuted for a and b)"
    assert told(output("b", 3.0)).statement == "b: 3"
    stands = told(output("a", 0.9), output("b", 0.5))
    assert stands.statement == "a stands. That does not make it true." and stands.level == 0.02


def test_costs_that_rest_on_sampled_paths_share_the_probability_with_them():
    """It was 1 − δ of F_n alone."""
    task = cast(Task, SimpleNamespace(budget=0.5, horizon=7, total_ceiling=7.0))
    some = Policies(
        4, 1, "scenario tubes", "a class", (0.4, 0.7, 2.0, 7.0), Counter({"σ": 2, "β": 1}), ((1, TOLD),) * 3, 0.01
    )
    found = of_policies(some, task, 0.1)
    assert "an event of probability 1 − 0.11" in found.assumes and found.ruling is Ruling.STANDS
    assert "1 of 4 policies (a class) cost at most 0.5 in expectation over 7 steps" in found.statement
    assert "by scenario tubes; the best proved cost is 0.4 of at most 7." in found.statement
    assert "Of the 3 nearest to it, not certified because of: σ (2 of 3) and β (1 of 3)." in found.statement
    assert found.statistic == 0.25 and found.rows == (("policy 1", 0.2, 3, "more rows"),) * 3
    none = of_policies(replace(some, certified=0, delta=0.0, causes=Counter()), task, 0.1)
    assert none.ruling is Ruling.VACUOUS and "an event of probability 1 − 0.1" in none.assumes
    assert "nearest" not in none.statement


def test_policies_count_as_certified_where_their_bound_says_so(monkeypatch):
    """A bound of NaN was within the budget."""
    upper = vector(0.9, 0.5, math.nan, 0.6, 0.2)
    bound = SimpleNamespace(name="a bound", evaluate=lambda F, given: SimpleNamespace(upper=upper))
    asked: list[Any] = []

    def explained(cost: Any, F: Any, policy: Any, members: Any, *, crowd: int) -> Any:
        asked.append((policy, members, crowd))
        return SimpleNamespace(causes=("σ",))

    monkeypatch.setattr(reach, "_bound", lambda *args: asked.append(args) or bound)
    monkeypatch.setattr(reach, "explain_cost", explained)
    monkeypatch.setattr(reach, "selected", lambda given, rows, x: rows.tolist())
    task = cast(Task, SimpleNamespace(budget=0.5, initial_state=None))
    given, box = cast(Any, SimpleNamespace(num=5)), Box([-1.0, -3.0], [1.0, 3.0])
    found = reach.policies(cast(Any, None), task, box, box, given=given, delta=0.02)
    assert (found.num, found.certified, found.origin, found.delta) == (5, 2, "the class given", 0.0)
    assert asked[0] == (task, 5, 0.02, 30.0) and [i for i, _ in found.told] == [3, 0, 2]
    assert asked[1] == ([3], [1, 4], 5) and found.causes == Counter({"σ": 3})


def test_policies_about_the_start_are_lqr_laws_with_set_points():
    """The plant is known: x⁺ = Ax + Bu. At its set-point each law gives the middle of the inputs."""
    a, b = torch.tensor([[1.1, 0.1], [0.0, 0.9]]).double(), torch.tensor([[0.0], [0.5]]).double()
    inputs, box = Box([-1.0], [3.0]), Box([-2.0, -1.0], [2.0, 1.0])
    task = cast(Task, SimpleNamespace(initial_state=vector(0.1, 0.2)))

    def about(push: torch.Tensor):
        known = AffineKnown(a, push, torch.zeros(2).double())
        model = GP.create(kernels.rbf([1.0] * 3), 0.01, nx=2, nu=1, noise_std=0.1, prior=known)
        return about_start(model, task, inputs, box)

    policies, told = about(b)
    weight, effort = torch.diag(vector(0.25, 1.0)), 0.25 * torch.eye(1).double()
    laws = [lqr_gain(a, b, state_weight=weight, input_weight=e * effort) for e in (0.1, 1.0, 10.0)]
    gains = [torch.zeros(1, 2).double(), *laws]
    each = policies.num // 4
    assert told.startswith("linear feedback of three efforts and none") and f"{each} set-points" in told
    for i, gain in enumerate(policies.gain):
        assert torch.allclose(gain, gains[i // each])
    at_start = policies(torch.stack([vector(0.1, 0.2)] * policies.num).unsqueeze(1))
    assert torch.equal(at_start[::each], torch.ones(4, 1, 1).double())
    alone, told = about(torch.zeros(2, 1).double())
    assert told.startswith("no feedback") and bool((alone.gain == 0).all()) and alone.num == each


TOLD = cast(Any, SimpleNamespace(excess=0.2, steps=3, advice="more rows"))
ALIKE = Refit(0.0, 20, (0.5, 2.0), 1.0, 1.1, (3.0, 4.0), 0.9)


@pytest.mark.parametrize(("ratio", "ruling"), [(4.7, Ruling.REFUTED), (4.5, Ruling.STANDS)])  # ln(1/0.01) = 4.61
def test_frozen_hyperparameters_are_refuted_by_a_ratio_above_one_over_the_level(ratio, ruling):
    case = cast(Case, SimpleNamespace(share=0.01, outputs=[SimpleNamespace(name=name) for name in ("a", "b")]))
    found = of_refit(case, [ALIKE, replace(ALIKE, log_ratio=ratio)])
    assert found.ruling is ruling and (found.statistic, found.threshold) == (ratio, math.log(100))
    assert found.level == 0.02 and [row[0] for row in found.rows] == ["a", "b"]
    assert "of b become 0.5 to 2 times" in found.statement
    assert ("refuted for b" in found.statement) == (ruling is Ruling.REFUTED)
    assert ("do not prefer the refitted ones" in found.statement) == (ruling is Ruling.STANDS)


def test_a_region_of_which_nothing_is_proved_is_vacuous_and_one_that_is_proved_has_no_rest():
    none, some, every = (Region(9, yes, *rest, (0.1, 0.2)) for yes, *rest in ((0, 4, 3, 2), (2, 4, 2, 1), (9, 0, 0, 0)))
    told = [of_region(region, 30, 0.05) for region in (none, some, every)]
    assert [found.ruling for found in told] == [Ruling.VACUOUS, Ruling.STANDS, Ruling.STANDS]
    assert told[1].statistic == 2 / 9 and "In 2 of 9 cells" in told[1].statement
    assert "within 0.1 and 0.2 of the mean of 30 rows" in told[1].statement
    assert "2 have no row near, in 1 β is too large for the σ that the rows leave, 4 are undecided" in told[1].statement
    assert "Of the rest" not in told[2].statement
