"""Numbers of less width: of float32 and integers a believed function says what it says of them in float64, or raises.

Rounding outwards is meant for 16 digits, so that 7 of them would move a bound inwards in silence.
"""

from collections.abc import Callable

import pytest
import torch
from test_poison import CASES
from torch import Tensor

from gpsafe.confidence import Mixture
from gpsafe.confidence.functionals import taylor_modulus
from gpsafe.cost.monte_carlo import kl_upper, mean_lower, mean_upper
from gpsafe.cost.total_variation import simulation_gap
from gpsafe.models import GP
from gpsafe.policies.parametric import set_point_family
from gpsafe.rkhs import kernels
from gpsafe.safety.safe_parameters import SafeParameters, admit
from gpsafe.safety.safe_set import SafePolicySet, reachable
from gpsafe.safety.safeopt import Beliefs, SafeOptRule, confident_safe, lipschitz_safe
from gpsafe.sets import Box

WIDTHS: dict[str, Callable[[Tensor], Tensor]] = {"float32": Tensor.float, "int64": lambda value: value.round().long()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_believed_functions(name: str, width: str):
    case = CASES[name]
    arguments = case.arguments()
    for narrow in dict.fromkeys([*((key,) for key in arguments), tuple(arguments)]):
        given = {key: WIDTHS[width](value) if key in narrow else value for key, value in arguments.items()}
        try:
            with torch.no_grad():
                found = case.run(**{key: value.clone() for key, value in given.items()})
        except (ValueError, RuntimeError, TypeError, IndexError):
            continue
        expected = case.run(**{key: value.double() for key, value in given.items()})
        for own, wide in zip(found, expected, strict=True):
            torch.testing.assert_close(own.double(), wide.double(), rtol=0, atol=0, equal_nan=True, msg=f"{narrow}")


def test_limits_of_means():
    """1 − q has quanta of 6e-8 in float32: 2.7e-7 for 10⁷ samples without a 1, where 1 − δ^{1/n} is 3.0e-7."""
    none = torch.zeros((), dtype=torch.float32)
    assert float(kl_upper(none, 10**7, 0.05)) >= 1 - 0.05**1e-7
    costs = (torch.arange(1000) < 3).long()
    for limit in (mean_upper, mean_lower):
        assert torch.equal(limit(costs, 1.0, 0.05), limit(costs.double(), 1.0, 0.05))


@pytest.mark.parametrize("kernel", [kernels.rbf([1.0]), kernels.matern(2.5, [1.0])])
def test_small_cells(kernel):
    """Differences of numbers near 1 cancelled to 1.2e-11, where the modulus is 8.7e-9 and 2.5e-8."""
    form, r = kernels.stationary(kernel), torch.tensor(1e-4)
    assert form is not None and torch.equal(taylor_modulus(form, r), taylor_modulus(form, r.double()))


def test_sums_of_many_rates():
    rates = torch.full((10_000,), 1e-5)
    assert torch.equal(simulation_gap(rates, 1.0), simulation_gap(rates.double(), 1.0))


def test_policies_that_others_vouch_for():
    """0.3 + 0.1 is 0.40000001341 of the float32 numbers, and 0.40000000596 in float32."""
    safe = SafePolicySet.initial(2, [0], budget=0.40000001)
    distance = torch.tensor([[0.0, 0.1], [0.1, 0.0]])
    assert 1 not in safe.expand(torch.tensor([0.3, torch.inf]), episode=1, bound="any", distance=distance)
    assert reachable([0], torch.tensor([0.3, 1.0]), distance, budget=0.40000001, epsilon=0.0) == {0}


def test_sets_of_safeopt():
    """0.5 − 0.1 is 0.39999999851 and 0.4 is 0.40000000596 in float32, where their differences are equal."""
    rule, distance = SafeOptRule(torch.tensor([0.0]), torch.tensor([1.0])), torch.tensor([[0.0, 0.4], [0.4, 0.0]])
    half, one = torch.tensor([[0.1], [0.1]]), torch.ones(1)
    beliefs = Beliefs(torch.tensor([[0.5], [0.5]]), half, one, one)
    found = rule.step(rule.start(2, [0]), beliefs, distance)
    assert found.safe.tolist() == [True, False]
    among, lower = torch.tensor([True, False]), torch.tensor([[0.3], [-9.0]])
    for lipschitz in (0.29999999, 0.30000001, 0.30000002):
        given = [lower, distance.gt(0).float(), torch.tensor([lipschitz]), torch.zeros(1)]
        assert torch.equal(lipschitz_safe(among, *given), lipschitz_safe(among, *(v.double() for v in given)))
    # A float64 number of no dimension does not widen a float32 table.
    slope, level = lower.double().new_tensor([0.29999999]), lower.double().new_tensor([[0.299999985], [-9.0]])
    assert not bool(lipschitz_safe(among, level, torch.ones(2, 2), slope, torch.zeros(1)).any())
    assert torch.equal(confident_safe(lower, one * 0.3), confident_safe(lower.double(), (one * 0.3).double()))


def test_beliefs_are_no_narrower_than_the_interval():
    """Middle and half-width are rounded, too."""
    model = GP.regression(kernels.rbf([1.0]), dim=1, noise_std=0.1)
    model = model.condition_on(torch.linspace(-1, 1, 5).unsqueeze(-1), 1e3 + torch.linspace(0, 1, 5).unsqueeze(-1))
    bound, points = (
        Mixture(rkhs_norm=1e4, subgaussian=0.1, delta=0.1),
        torch.linspace(-1, 1, 400).unsqueeze(-1).double(),
    )
    (low, high), found = bound.interval(model, points), Beliefs.of([model], [bound], points, covariance=False)
    assert bool((found.mean - found.half <= low).all() and (found.mean + found.half >= high).all())


def test_nobody_is_admitted_by_the_width_of_a_budget():
    """float32(0.2) is 0.2 + 3e-9, and no more than 0.2 in float32: it was a witness above its own budget."""
    values = torch.tensor([0.2, 0.1], dtype=torch.float32)
    assert SafePolicySet.initial(2, [1], budget=0.2).expand(values, episode=1, bound="x").members.tolist() == [1]
    safe = SafeParameters.initial(torch.zeros(1, 1).double(), budget=0.2)
    with pytest.raises(ValueError, match="above -inf"):
        safe.add(torch.ones(2, 1).double(), values, episode=1, bound="x", rule="bound")
    family = set_point_family((-1.0, 1.0), (1.0, 2.0), input_box=Box([-1.0], [1.0]))
    start = SafeParameters.initial(torch.tensor([[0.0, 1.5]]).double(), budget=0.2)
    proposal, upper = torch.tensor([[0.5, 1.5]]).double(), lambda theta: torch.full((len(theta),), 0.2)
    grown, _ = admit(start, proposal, upper, family=family, episode=1, bound="x")
    assert len(grown) == 1
