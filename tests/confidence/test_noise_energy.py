"""Bounds from the energy of the noise: the programs against a conic solver, the energies by hand and by simulation."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from strategies import seeds

from gpsafe.assumptions import Assumption
from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture, NoiseEnergy
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels

ONE = torch.tensor(1.0, dtype=torch.float64)
KINDS = ("bounded", "gaussian", "moments", "energy")


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model_of(seed: int, noise: torch.Tensor, norm: float = 1.0, lam: float = 0.05) -> tuple[GP, RKHSFunction]:
    """A function of that norm, seen at n random places of [0, 1] with the noise (n,)."""
    kernel = kernels.rbf([0.3])
    f = RKHSFunction(kernel, uniform(seed, 5, 1), normal(seed + 1, 5)).scaled_to(norm)
    x = uniform(seed + 2, len(noise), 1)
    model = GP.create(kernel, lam, nx=1, nu=0, noise_std=0.1, mode="theory")
    return model.condition_on(x, (f(x) + noise).unsqueeze(-1)), f


def bound_of(kind: str = "bounded", **options) -> NoiseEnergy:
    return NoiseEnergy(**{"rkhs_norm": 1.0, "subgaussian": 0.1, "delta": 0.1, "noise_kind": kind, **options})


def blocks(n: int) -> torch.Tensor:
    """Noise that starts anew every fourth observation."""
    i = torch.arange(n)
    return torch.where(i[:, None] // 4 == i // 4, 0.6 ** (i[:, None] - i).abs().double(), 0.0)


@pytest.mark.parametrize("correlation", [0.0, 0.8, -0.5, blocks])
def test_ends_are_those_of_the_convex_program(correlation):
    model, _ = model_of(3, 0.1 * (2 * uniform(9, 6) - 1))
    bound = bound_of("energy", subgaussian=0.35, correlation=correlation)
    z = vector(0.05, 0.5, 1.3).unsqueeze(-1)
    low, high = bound.interval(model, z)
    assert model.inputs is not None and model.targets is not None
    root = np.linalg.inv(np.linalg.cholesky(bound.covariance(6).numpy()))
    for i in range(3):
        at = torch.cat([model.inputs, z[i : i + 1]])
        gram = kernels.cross(model.kernels[0], at, at).numpy()
        values, vectors = np.linalg.eigh(gram)
        features = vectors * np.sqrt(np.clip(values, 0, None))
        a = cp.Variable(len(gram))
        inside = [cp.norm(a) <= 1.0, cp.norm(root @ (features[:-1] @ a - model.targets[:, 0].numpy())) <= 0.35]
        ends = [
            cp.Problem(sense(features[-1] @ a), inside).solve(solver=cp.CLARABEL)
            for sense in (cp.Minimize, cp.Maximize)
        ]
        assert float(low[i]) <= ends[0] + 1e-6 and float(high[i]) >= ends[1] - 1e-6
        assert float(low[i]) == pytest.approx(ends[0], abs=2e-4) and float(high[i]) == pytest.approx(ends[1], abs=2e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_two_outputs_have_each_its_own_kernel_norm_and_energy(correlation):
    family, y = [kernels.rbf([0.3, 1.0]), kernels.matern(2.5, [0.5, 1.0], 0.7)], 0.5 * normal(1, 7, 2)
    x, z = uniform(2, 7, 1), vector(0.05, 0.5, 1.3).unsqueeze(-1)

    def ends(outputs: list[int]) -> torch.Tensor:
        prior = GP.create([family[j] for j in outputs], 0.05, nx=2, nu=0, noise_std=0.1, outputs=outputs, mode="theory")
        norms, energies = (torch.tensor(v, dtype=torch.float64)[outputs] for v in ((2.0, 3.0), (1.0, 1.5)))
        bound = bound_of("energy", rkhs_norm=norms, subgaussian=energies, correlation=correlation)
        model = prior.condition_on(torch.cat([x, 0 * x], 1), y[:, outputs])
        low, high = bound.interval(model, torch.cat([z, 0 * z], 1))
        return torch.cat([low, high, bound.beta(model).unsqueeze(0)])

    both = ends([0, 1])
    assert bool(torch.isfinite(both).all())
    for j in range(2):
        torch.testing.assert_close(both[..., j], ends([j])[..., 0], rtol=1e-9, atol=1e-12)


def test_energies_by_hand():
    log = math.log(20.0)
    energy = {kind: float(bound_of(kind).energy(5, 0.3 * ONE, log)) for kind in KINDS}
    delta, third = 0.05, 6 * 0.05 / (math.pi * 4) ** 2  # 5 is in the third block, up to 8
    assert energy["energy"] == pytest.approx(0.09, rel=1e-8) and energy["bounded"] == pytest.approx(0.45, rel=1e-8)
    assert energy["gaussian"] == pytest.approx(0.09 * chi2.ppf(1 - 6 * delta / (5 * math.pi) ** 2, 5), rel=1e-8)
    assert energy["moments"] == pytest.approx(0.09 * (5 + math.sqrt(8 * 9.0 * (1 / third - 1))), rel=1e-8)
    tied = float(
        bound_of(correlation=-0.5).energy(3, ONE, log)
    )  # K_w⁻¹ of ρ: [1, 1 + ρ², 1] and ρ beside, by 1/(1 − ρ²)
    assert tied == pytest.approx((2 + 1.25 + 4 * 0.5) / 0.75, rel=1e-8)
    for kind in KINDS:
        assert float(bound_of(kind).energy(1, ONE, log)) >= 1.0
        assert float(bound_of(kind).energy(5, ONE, log)) <= float(bound_of(kind).energy(9, ONE, log))
    powers = [float(bound_of("moments").energy(n, ONE, log)) - n for n in (1, 2, 3, 4, 5, 8, 9)]
    assert powers[2] == pytest.approx(powers[3]) and powers[4] == pytest.approx(powers[5]) and powers[5] < powers[6]


def test_correlation_of_observations():
    np.testing.assert_allclose(bound_of("gaussian", correlation=-0.5).covariance(3)[0], [1.0, -0.5, 0.25])
    np.testing.assert_array_equal(bound_of("gaussian", correlation=0.3).covariance(4).T[2], [0.3**2, 0.3, 1.0, 0.3])
    model, _ = model_of(5, 0.1 * normal(2, 9))
    plain, tied = bound_of("gaussian"), bound_of("gaussian", correlation=blocks)
    same = bound_of("gaussian", correlation=lambda n: torch.eye(n).double())
    z = uniform(4, 7, 1)
    for a, b in zip(plain.interval(model, z), same.interval(model, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    assert float((plain.interval(model, z)[0] - tied.interval(model, z)[0]).abs().max()) > 1e-3
    again = tied.interval(model, z)  # from what is kept of the posterior
    assert torch.equal(again[0], tied.interval(model, z)[0]) and torch.equal(again[1], tied.interval(model, z)[1])


def laws(kind: str, runs: int, n: int) -> torch.Tensor:
    """Noise of size R = 1 of that kind, (runs, n)."""
    if kind == "bounded":  # at its edge, with a bias
        return torch.where(uniform(1, runs, n) < 0.8, 1.0, -1.0).double()
    if kind == "gaussian":
        root = torch.linalg.cholesky(bound_of("gaussian", correlation=0.9).covariance(n))
        return normal(1, runs, n) @ root.T
    tail = torch.where(uniform(1, runs, n) < 1 / 9, 3.0, 0.0).double()  # E w² = 1, E w⁴ = 9
    return tail * torch.where(uniform(2, runs, n) < 0.5, 1.0, -1.0)


@pytest.mark.parametrize("kind", ["bounded", "gaussian", "moments"])
def test_the_energy_keeps_its_limit_for_all_n(kind):
    runs, n = 2000, 64
    noise = laws(kind, runs, n)
    bound = bound_of(kind, correlation=0.9 if kind == "gaussian" else 0.0)
    white = bound._seen(noise.T).T if kind == "gaussian" else noise
    limits = torch.stack([bound.energy(i, ONE, math.log(10.0)) for i in range(1, n + 1)])
    failures = int((white.square().cumsum(-1) > limits).any(-1).sum())
    assert failures <= (0 if kind == "bounded" else 240)  # δ = 0.1: 200 and three deviations
    halved = int((white.square().cumsum(-1) > 0.5 * limits).any(-1).sum())
    assert halved > 400 or kind == "moments"  # Cantelli's inequality is loose


@settings(max_examples=8)
@given(seeds(), st.sampled_from(["bounded", "gaussian", "moments"]), st.sampled_from([1, 5, 30]))
def test_the_function_is_inside(seed, kind, n):
    noise = 0.1 * laws(kind, 1, n)[0]
    model, f = model_of(seed % 1000, noise)
    bound = bound_of(kind, delta=1e-3, correlation=0.9 if kind == "gaussian" else 0.0)
    z = torch.cat([uniform(seed, 20, 1) * 1.5, model.inputs])
    low, high = bound.interval(model, z)
    assert bool((low[:, 0] <= f(z) + 1e-12).all()) and bool((high[:, 0] >= f(z) - 1e-12).all())
    beta = bound.beta(model)  # an ellipsoid around μ_λ, in which the set lies
    mean, std = model.posterior(z)
    assert bool(((mean[:, 0] - f(z)).abs() <= beta * std[:, 0] * (1 + 1e-6) + 1e-9).all())


def test_a_bias_leaves_the_mixture_bound_and_not_this_one():
    """f = 0 seen with a constant error of R, at one place: the mean goes to R and the mixture's width to 0."""
    model = GP.create(kernels.rbf([0.3]), 0.05, nx=1, nu=0, noise_std=0.1, mode="theory")
    model = model.condition_on(torch.full((400, 1), 0.5).double(), torch.full((400, 1), 0.1).double())
    z = torch.full((1, 1), 0.5).double()
    options = {"rkhs_norm": 1.0, "subgaussian": 0.1, "delta": 0.1}
    assert float(Mixture(**options).interval(model, z)[0]) > 0.0
    low, high = bound_of("bounded").interval(model, z)
    assert float(low) <= 0.0 and 0.2 <= float(high) < 0.21
    assert float(bound_of("bounded").interval(model, z)[1]) < float(model.prior_variance(z).sqrt())


def test_what_cannot_be_is_an_empty_set_and_no_narrow_one():
    model, _ = model_of(1, torch.zeros(6).double())
    far = model.condition_on(model.inputs, model.targets + 5.0)
    low, high = bound_of("energy", subgaussian=0.1).interval(far, vector(0.5).unsqueeze(-1))
    assert float(low) > float(high)
    falsified = ConfidenceSet(bound_of("energy", subgaussian=0.1)).update(far).falsified(vector(0.5).unsqueeze(-1))
    assert falsified is not None


def test_what_is_believed_and_refused():
    model, _ = model_of(1, torch.zeros(6).double())
    kinds = [entry.kind for entry in bound_of("moments").assumptions(model)]
    assert Assumption.NOISE_ENERGY in kinds and Assumption.SUBGAUSSIAN not in kinds
    words = next(str(e) for e in bound_of("gaussian", correlation=0.5).assumptions(model) if e.kind is kinds[1])
    assert "N(0, R^2 K_w)" in words and "0.5" in words
    assert bound_of("moments").noise_refusal(model, vector(0.1)) is None
    for bound, word in (
        (bound_of("energy"), "energy grows"),
        (bound_of("gaussian", correlation=0.5), "independent"),
        (bound_of("moments", kurtosis=2.0), "kurtosis"),
        (bound_of("gaussian", subgaussian=0.05), "deviation"),
    ):
        assert word in bound.noise_refusal(model, vector(0.1))
    for change, word in (
        ({"kind": "sure"}, "noise_kind"),
        ({"correlation": 1.0}, "correlation"),
        ({"correlation": -0.9985}, "correlation"),
        ({"correlation": math.nan}, "correlation"),
        ({"kurtosis": 0.5}, "kurtosis"),
        ({"kind": "moments", "correlation": 0.5}, "moments"),
        ({"method": "guess"}, "method"),
    ):
        with pytest.raises(ValueError, match=word):
            bound_of(**change)
    for wrong in (
        torch.eye(5),
        torch.ones(6, 6),
        torch.full((6, 6), math.nan),
        torch.eye(6) + torch.ones(6, 6).triu(1),
    ):
        with pytest.raises(ValueError, match=r"correlation\(n\)"):
            bound_of("gaussian", correlation=lambda n, wrong=wrong: wrong.double()).interval(model, model.inputs)
    scaled = model.condition_on(model.inputs, model.targets, noise_scale=torch.full((6,), 2.0).double())
    with pytest.raises(ValueError, match="equal noise"):
        bound_of().beta(scaled)


def test_both_ways_of_choosing_multipliers_agree():
    model, _ = model_of(7, 0.1 * normal(3, 8))
    z = uniform(2, 4, 1)
    dual = bound_of("gaussian", correlation=0.7).interval(model, z)
    conic = bound_of("gaussian", correlation=0.7, method="cvxpy").interval(model, z)
    for a, b in zip(dual, conic, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert ConvexProgram(rkhs_norm=1.0, subgaussian=0.1, delta=0.1).method == "dual"
