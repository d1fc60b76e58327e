"""Verdicts at their stated rates on functions of known norm: correct claims stand, each defect is caught, controls fail."""

import math
from functools import cache
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gpsafe.referee import power, trials
from gpsafe.referee.case import Output
from gpsafe.referee.trials import Design
from gpsafe.rkhs import kernels
from gpsafe.verdict import clopper_pearson_upper

DELTA, NOISE, NORM, ROWS = 0.05, 0.05, 1.0, 120
TRIALS = 100
THEOREMS = ("norm", "kernel", "time", "level", "tail", "held")


def design(rows=ROWS, dim=1, chained=True, **changes) -> Design:
    z = 2 * torch.rand(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    links = torch.arange(rows) - 1
    links[:: 20 if chained else 1] = -1
    own = {"kernel": kernels.rbf([0.4] * dim), "norm": NORM, "noise": NOISE, "delta": DELTA, "scale": 0.2}
    return Design(**{**own, "z": z, "first": rows // 3, "links": links, **changes})


def observed(given: Design, *, norm=NORM, noise=NOISE, kernel=None, rho=0.0, count=TRIALS, seed=1, heavy=False):
    generator = torch.Generator().manual_seed(seed)
    f = power.members(kernel or given.kernel, given.z, norm, count, generator)
    white = torch.randn(len(given.z), count, dtype=torch.float64, generator=generator)
    if heavy:  # one row in twenty
        rare = torch.rand(white.shape, dtype=torch.float64, generator=generator) < 0.05
        white = white * torch.where(rare, 12.0, 1.0)
    return f + noise * power.remembering(given.links, white, rho)


def test_made_up_functions_share_no_centres(monkeypatch):
    """Those that share them are refuted together: forty would be ten trials."""
    monkeypatch.setattr(power, "CENTRES", 1)
    given = design()
    f = power.members(given.kernel, given.z, NORM, 8, torch.Generator().manual_seed(2))
    assert len(f.abs().argmax(0).unique()) > 5


@cache
def unharmed() -> dict[str, float]:
    """Rates at which each test refutes where nothing is wrong."""
    given = design()
    return {test: float(v.double().mean()) for test, v in trials.judge(given, observed(given)).refuted(given).items()}


def share(given: Design, y: torch.Tensor, test: str) -> float:
    return float(trials.judge(given, y).refuted(given)[test].double().mean())


def test_what_is_true_is_hardly_ever_refuted():
    """Functions of the ball, noise of deviation R: each test refutes at a rate ≤ δ, by an exact upper 99 % limit."""
    given = design()
    tried = trials.judge(given, observed(given))
    for test, found in tried.refuted(given).items():
        if test in THEOREMS:
            assert clopper_pearson_upper(int(found.sum()), TRIALS, 0.01) <= DELTA, test
    assert {test for test in THEOREMS if test in tried.refuted(given)} == set(THEOREMS)
    above = int((tried.lower[trials.OWN] > NORM).sum())  # the lower bound is one
    assert clopper_pearson_upper(above, TRIALS, 0.01) <= DELTA
    assert float(tried.lower[trials.OWN].median()) > 0.8 * NORM  # and is worth something


def test_noise_alone_needs_no_norm():
    """The norm of an interpolant of noise is huge; the bound is 0."""
    given = design()
    y = NOISE * torch.randn(ROWS, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tried = trials.judge(given, y)
    assert float(tried.lower[trials.OWN].max()) == 0.0
    gram = kernels.cross(given.kernel, given.z, given.z) + 1e-9 * torch.eye(ROWS, dtype=torch.float64)
    assert float((y * torch.linalg.solve(gram, y)).sum(0).sqrt().min()) > 100 * NORM


CAUGHT = {
    "B too small": ("norm", {"norm": 1.5}, 0.9),
    "noise larger than R": ("level", {"noise": 2 * NOISE}, 0.9),
    "heavy tail": ("tail", {"heavy": True}, 0.7),
    "correlated noise, any f of the ball": ("time", {"rho": 0.9}, 0.8),
    "correlated noise": ("memory", {"rho": 0.9}, 0.9),
    "wrong kernel": ("kernel", {"kernel": kernels.rbf([0.08])}, 0.9),
    "wrong kernel, whatever B": ("shape", {"kernel": kernels.rbf([0.08])}, 0.9),
    "F_n of another norm": ("held", {"norm": 25.0, "kernel": kernels.rbf([0.08])}, 0.5),
}


@pytest.mark.parametrize("defect", CAUGHT)
def test_a_defect_is_caught(defect):
    test, changes, least = CAUGHT[defect]
    given = design()
    missed = round(TRIALS * (1 - share(given, observed(given, **changes), test)))
    assert 1 - clopper_pearson_upper(missed, TRIALS, 0.01) >= least  # the power, by an exact lower 99 % limit
    assert unharmed()[test] <= 0.05


def test_of_other_kinds_of_defect_the_bayesian_tests_do_not_accuse_the_wrong_one():
    """A wrong B or R is no memory and no wrong length-scale."""
    given = design()
    for changes in ({"norm": 3.0}, {"noise": 2 * NOISE}):
        tried = trials.judge(given, observed(given, **changes)).refuted(given)
        assert float(tried["memory"].double().mean()) <= 0.05 >= float(tried["shape"].double().mean())


def test_every_multiplier_gives_a_lower_bound_and_the_best_is_the_minimum_of_the_program():
    """L = min ‖h‖ s.t. ‖y − h(Z)‖² ≤ ρ²: the minimiser on the constraint has that norm (strong duality)."""
    given = design(rows=30)
    y = observed(given, count=1)[given.first :]
    values, vectors, error = trials.spectrum(given)
    turned, radius = (vectors.T @ y).square(), torch.tensor([0.05], dtype=torch.float64)
    found = float(trials.norm_lower(values, turned, radius, error)[0])
    low, high = -25.0, 10.0  # ln η of the ridge regression that leaves exactly ρ²
    for _ in range(100):
        eta = math.exp(0.5 * (low + high))
        left = float((turned[:, 0] * (eta / (values + eta)).square()).sum())
        low, high = (low, math.log(eta)) if left > 0.05 else (math.log(eta), high)
    best = float((turned[:, 0] * values / (values + eta).square()).sum().sqrt())
    assert best * 0.99 <= found <= best * (1 + 1e-6)


def test_rows_that_chose_the_claim_give_no_band_to_the_tail_test():
    """What was chosen from the first rows may fit their noise: the band of the test must not know them."""
    given, spent = design(), design(spent=True)
    y = observed(given, count=5)
    other = y.clone()
    other[: given.first] = 1e3
    a, b, c = (trials.judge(d, v) for d, v in ((spent, y), (spent, other), (given, other)))
    assert torch.equal(a.tails, b.tails) and not torch.equal(b.tails, c.tails)
    assert share(spent, observed(spent, heavy=True), "tail") > 0.5 and share(spent, observed(spent), "tail") <= 0.05


def test_other_amplitudes_are_those_of_the_rows_whatever_the_kernel():
    """In the mean over the rows, where k(z, z) is not one number."""
    given = design(kernel=kernels.linear([2.0]))
    own, *others = (float(signal.diagonal().mean()) for signal, _ in given.forecasters(trials.OWN))
    assert own == pytest.approx(float(kernels.diagonal(given.kernel, given.z).mean()))
    assert others == pytest.approx([given.scale, 10 * given.scale])


def test_no_norm_is_claimed_nothing_about_it_is_refuted():
    given = design(norm=math.inf)
    tried = trials.judge(given, observed(given, count=3))
    found = tried.refuted(given)
    assert not any(bool(found[test].any()) for test in ("norm", "kernel", "time", "level", "tail", "held"))


def told(**found: str) -> power.Power:
    """Test → which columns refute ("x"): the rows themselves, which do, two trials without a defect and two with one."""
    columns = {test: torch.tensor([mark == "x" for mark in "x" + marks]) for test, marks in found.items()}
    tried = cast(trials.Tried, SimpleNamespace(refuted=lambda design: columns))
    return power.counted(design(), tried, [power.NONE, "defect"], 2)


def test_trials_are_counted_by_defect_and_the_rows_themselves_are_none():
    one, other = told(norm="...x", tail="x.xx"), told(norm="..xx", tail="...x")
    assert one.hits == {power.NONE: {"norm": 0, "tail": 1}, "defect": {"norm": 1, "tail": 2}}
    assert power.weakest([one, other]).hits == {power.NONE: {"norm": 0, "tail": 1}, "defect": {"norm": 1, "tail": 1}}
    assert one.least("defect", "norm") == pytest.approx(
        1 - 0.95**0.5
    )  # P(one of two or more | p) = 1 − (1 − p)² = 0.05
    assert "defect: 1 of 2 trials (power ≥ 0.02). With nothing wrong: 0 of 2." in one.words("norm", "another", "defect")
    assert one.words("norm", "another") == ""


def test_made_up_noise_is_of_the_size_that_its_name_says():
    """Of a function of next to no norm only noise is left: root mean squares in R."""
    given, generator = design(norm=1e-9), torch.Generator().manual_seed(0)
    size = {name: float(y.square().mean().sqrt()) / NOISE for name, y in power.columns(given, 300, generator)}
    expected = {
        "every fiftieth row ten times as noisy": math.sqrt(0.98 + 0.02 * 100),
        "noise of 1.5 R": 1.5,
        "noise of 3 R": 3,
    }
    for name, found in size.items():
        assert found == pytest.approx(expected.pop(name, 1.0), rel=0.05), name
    assert not expected
    assert power.MEMORY in size and power.MEMORY not in dict(power.columns(design(chained=False), 2, generator))


def test_errors_far_below_the_stated_noise_are_quiet():
    """Root mean square of the rows' own forecast errors, the first column, below R/2."""
    for size, quiet in ((0.45, True), (0.55, False)):
        errors = torch.tensor([[size, 9.0], [-size, 9.0]]).double()
        given = {"tried": SimpleNamespace(errors=(errors, None)), "design": SimpleNamespace(noise=1.0)}
        assert Output.quiet(cast(Output, SimpleNamespace(**given))) == quiet


def test_correlations_are_those_of_the_noise_that_is_made_up():
    links = torch.tensor([-1, 0, 1, -1, 3])
    white = torch.randn(5, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = power.remembering(links, white, 0.7)
    assert torch.allclose(made @ made.T / 40_000, trials.correlation(links, 0.7), atol=0.03)
    assert float(torch.linalg.eigvalsh(trials.correlation(links, -0.5)).min()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_lower_bound_exceeds_the_norm_at_most_at_its_rate(dim, noise):
    """400 functions each; noise at the edge of what R allows: Gaussian, and two-point noise ±R."""
    given = design(rows=240, dim=dim, noise=noise, kernel=kernels.rbf([0.5] * dim))
    y = observed(given, noise=noise, count=400, seed=5)
    f = observed(given, noise=0.0, count=400, seed=6)
    signs = torch.randint(0, 2, f.shape, generator=torch.Generator().manual_seed(7)).double() * 2 - 1
    for columns in (y, f + noise * signs):
        tried = trials.judge(given, columns)
        for test in THEOREMS:
            bad = int(tried.refuted(given)[test].sum())
            assert clopper_pearson_upper(bad, 400, 0.01) <= DELTA, test


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.rbf([0.5, 2.0], 0.3), kernels.matern(0.5, 0.7), kernels.matern(1.5, [0.4], 2.0, dims=[1]),
        kernels.matern(2.5, [0.4, 3.0], 0.1),
    ],
)  # fmt: skip
def test_a_closed_form_gives_its_kernel_back(kernel):
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    again = trials.of_form(kernels.stationary(kernel))
    assert (
        torch.equal(kernels.cross(again, z, z), kernels.cross(kernel, z, z)) and kernels.stationary(again) is not None
    )
