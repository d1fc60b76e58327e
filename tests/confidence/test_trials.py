"""The batched trials behind the coverage checks agree with the library's own posterior, and the checks can
fail.
"""

import json
import math
from functools import partial

import pytest
import torch
from matplotlib.figure import Figure

from gpsafe.confidence import AbbasiYadkori, ConvexProgram, Lederer, Mixture
from gpsafe.models.gp import GP
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.verdict import Outcome
from proofs_checks import _coverage, coverage, falsification, info_gain, widths
from proofs_checks._defects import scaled_argument
from proofs_checks._regression import MODES, Run, Setting, functions, generator, rate_verdict, simulate

SETTINGS = (
    Setting(steps=25),
    Setting(nu=1.5, lengthscale=0.3, noise="rademacher", regularizer=1.7, steps=25),
    Setting(nu=2.5, noise="uniform", steps=25, prior="gp"),
)


def model_of(run: Run, trial: int, count: int) -> GP:
    setting = run.setting
    model = GP.create(setting.kernel(), setting.regularizer, nx=1, nu=0, noise_std=setting.noise_std)
    if count == 0:
        return model
    z = setting.candidates()[run.picks[trial, :count]]
    return model.condition_on(z, run.y[trial, :count].unsqueeze(-1))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mode", MODES)
def test_batched_trials_agree_with_the_model(setting, mode):
    run = simulate(setting, 3, mode, generator(7))
    grid = setting.candidates()
    for trial in range(3):
        for count in (0, 1, 7, 25):
            model = model_of(run, trial, count)
            mean, std = model.posterior(grid)
            assert float((mean[:, 0] - run.mean[trial, count]).abs().max()) <= 1e-10
            assert float((std[:, 0].square() - run.std[trial, count].square()).abs().max()) <= 1e-10
            assert abs(float(model.info_gain()) - float(run.info_gain[trial, count])) <= 1e-10
            for bound in (
                Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1),
                AbbasiYadkori(rkhs_norm=1.0, subgaussian=0.1, delta=0.1),
            ):
                low, high = bound.interval(model, grid)
                half = run.half_width(run.beta(bound, 0.1))[trial, count]
                assert float((0.5 * (high - low)[:, 0] - half).abs().max()) <= 1e-9


@pytest.mark.parametrize("nu", [None, 0.5, 2.5])
def test_random_functions_have_exactly_the_stated_norm(nu):
    """Each value table is attained by no function of smaller norm: the minimal interpolant's norm is at most
    B.
    """
    setting = Setting(nu=nu, norm=2.0)
    values = functions(setting, 40, generator(8))
    grid = setting.candidates()
    gram = kernels.cross(setting.kernel(), grid, grid) + 1e-9 * torch.eye(len(grid), dtype=torch.float64)
    norms = (values * torch.linalg.solve(gram, values.T).T).sum(-1).sqrt()
    assert float(norms.max()) <= 2.0 * (1 + 1e-6)
    assert float(norms.max()) > 1.8
    one = RKHSFunction(setting.kernel(), grid[:1], torch.tensor([2.0], dtype=torch.float64))
    assert abs(one.norm - 2.0) <= 1e-12


def test_adaptive_designs_depend_on_the_observations():
    quiet, loud = (simulate(Setting(noise_std=s, steps=10), 20, "adaptive", generator(9)) for s in (1e-3, 1.0))
    assert torch.equal(quiet.f, loud.f)
    assert not torch.equal(quiet.picks, loud.picks)


def test_batched_convex_set_agrees_with_the_class():
    run = simulate(Setting(steps=25), 4, "adaptive", generator(10))
    failed, ratios = coverage.convex(run, 0.1, selected=(25,), duals=4)
    bound = ConvexProgram(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    for trial in range(4):
        model = model_of(run, trial, 25)
        grid = run.setting.candidates()[::5]
        program = bound.program(model, 0, grid)
        upper, lower, _, _ = program.solve()
        ratio = ((run.f[trial, ::5] - 0.5 * (upper + lower)).abs() / (0.5 * (upper - lower))).max()
        assert abs(float(ratio) - float(ratios[trial])) <= 1e-2
        errors = run.y[trial] - run.f[trial, run.picks[trial]]
        if float(errors.square().sum()) > float(program.radius_sq) * (1 + 1e-9):
            assert bool(failed[trial])


def test_one_interval_that_misses_its_set_counts_for_all_trials():
    """Intervals are computed for a few trials only: a share of these would be thinned by the rest."""
    run = simulate(Setting(nu=2.5, lengthscale=0.15, noise_std=0.05, regularizer=2.0), 20, "random", generator(12))
    assert not bool(coverage.convex(run, 0.1, duals=2)[0].any())
    with scaled_argument(_coverage, "Program", "norm")(0.5):
        assert bool(coverage.convex(run, 0.1, duals=2)[0].all())


def test_batched_lederer_bound_is_at_most_the_class_width():
    run = simulate(Setting(prior="gp", lengthscale=0.2, steps=15), 2, "random", generator(11))
    _, ratio = coverage.lederer(run, 0.1)
    bound = Lederer(delta=0.1, lower=(0.0,), upper=(1.0,))
    for trial in range(2):
        worst = 0.0
        for count in range(16):
            low, high = bound.interval(model_of(run, trial, count), run.setting.candidates())
            middle, half = 0.5 * (low + high)[:, 0], 0.5 * (high - low)[:, 0]
            worst = max(worst, float(((run.f[trial] - middle).abs() / half).max()))
        assert worst <= float(ratio[trial]) + 1e-9
        assert worst >= 0.99 * float(ratio[trial])


def test_rates_are_judged_jointly_and_can_be_inconclusive():
    assert rate_verdict([0, 0], [2000, 2000], [0.1, 0.01])[1].outcome is Outcome.HOLDS
    assert rate_verdict([0, 0], [100, 100], [0.1, 0.01])[1].outcome is Outcome.INCONCLUSIVE
    assert rate_verdict([0, 90], [2000, 2000], [0.1, 0.01])[1].outcome is Outcome.VIOLATED


def test_coverage_control_fails_and_claim_does_not_on_one_shard():
    check = next(c for c in coverage.CHECKS if c.name == "coverage-mixture")
    broken = check.judge([check.sample(0, "quick", True)], True)
    assert broken.verdict.outcome is Outcome.VIOLATED
    assert broken.verdict.witness
    claim = check.judge([check.sample(0, "quick", False)], False)
    assert claim.verdict.outcome is not Outcome.VIOLATED
    names = {f"{label}, {mode}" for label in coverage.HEURISTICS for mode in MODES}
    assert {cell["name"] for cell in claim.data["others"]} == names


@pytest.mark.parametrize("module", [coverage, falsification, info_gain, widths])
def test_every_check_draws_its_figure(module):
    check = module.CHECKS[0]
    data = [check.judge([check.sample(0, "quick", broken)], broken).data for broken in (False, True)]
    figure = Figure(figsize=(8, 4))
    check.plot(figure, *(json.loads(json.dumps(d)) for d in data))
    assert figure.axes
    assert all(axes.lines for axes in figure.axes)


def test_samples_are_deterministic_and_json():
    sample = partial(coverage.sample, "abbasi-yadkori", 3, "quick", False)
    assert json.dumps(sample()) == json.dumps(sample())
    assert math.isfinite(sum(sample()["cells"][0]["ratios"]))
