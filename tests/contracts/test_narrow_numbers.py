"""Numbers of less width: of float32 and integers a believed function says what it says of the same numbers in float64, or raises.

Rounding outwards is meant for 16 digits, so that 7 of them would move a bound inwards in silence.
"""

from collections.abc import Callable

import pytest
import torch
from test_poison import CASES
from torch import Tensor

from gpsafe.confidence.functionals import taylor_modulus
from gpsafe.cost.monte_carlo import kl_upper, mean_lower, mean_upper
from gpsafe.cost.total_variation import simulation_gap
from gpsafe.rkhs import kernels

WIDTHS: dict[str, Callable[[Tensor], Tensor]] = {"float32": Tensor.float, "int64": lambda value: value.round().long()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_believed_functions(name: str, width: str):
    case = CASES[name]
    arguments = case.arguments()
    for narrow in [*([key] for key in arguments), list(arguments)]:
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
