"""Twins: exactly in the RKHS, with an outward norm and an honest distance to the physics."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin, centers, exact_twin, twin
from gpsafe.systems.synthetic import rkhs_1d, rkhs_2d
from tests.strategies import dear, seeds
from tests.systems import _claims as claims

every_twin = pytest.mark.parametrize("name", sorted(claims.TWINS))

# name: largest norm, largest distance to the physics per learned output; as measured, with a little room
REPORTED = {
    "double-integrator-twin": ((0.000834, 0.0167), (1e-15, 1e-15)),
    "pendulum-twin": ((10.2, 10.2), (8e-6, 1.6e-4)),
    "pendulum-repeat-2-twin": ((15.2, 20.5), (1.4e-5, 1.7e-4)),
    "cartpole-twin": ((6.5, 1.5), (2.6e-4, 2.4e-4)),
    "cartpole-repeat-2-twin": ((3.24, 0.732, 12.6, 2.89), (1.3e-5, 1.2e-5, 4.8e-4, 5.2e-4)),
    "reference-1d": ((4.48,), (6e-5,)),
    "reference-pendulum": ((21.6,), (3.1e-4,)),
}


@cache
def build(name: str) -> RKHSTwin:
    system = claims.SYSTEMS[name]()
    assert isinstance(system, RKHSTwin)
    return system


def longdouble_norm(system: RKHSTwin, output: int) -> float:
    """√(αᵀKα) in extended precision, the kernel written out from its definition."""
    f = system.residual[output]
    z, weights = f.centers.numpy().astype(np.longdouble), f.weights.numpy().astype(np.longdouble)
    form = kernels.stationary(f.kernel)
    if form is None:  # the double integrator's linear kernel, variance 1
        gram = z @ z.T
    else:
        assert form.nu == float("inf")
        active = z if form.dims is None else z[:, form.dims.numpy()]
        scaled = active / form.lengthscale.numpy().astype(np.longdouble)
        square = ((scaled[:, None] - scaled) ** 2).sum(-1)
        gram = np.longdouble(form.variance) * np.exp(-square / 2)
    return float(np.sqrt(weights @ gram @ weights))


@every_twin
def test_reported_norm_is_the_exact_norm_rounded_up(name: str) -> None:
    system = build(name)
    for j in range(len(system.outputs)):
        exact = longdouble_norm(system, j)
        assert exact <= float(system.rkhs_norm[j]) <= exact * (1 + 1e-3)


@every_twin
def test_mean_is_known_part_plus_residual_and_other_states_are_known_exactly(name: str) -> None:
    system = build(name)
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(30, generator), system.input_box.sample(30, generator)
    mean, known = system.mean(x, u), system.known(x, u)
    learned = list(system.outputs)
    residual = system.residual_fn(torch.cat([x, u], dim=-1))
    assert residual.shape == (30, len(learned))
    torch.testing.assert_close(mean[:, learned], known[:, learned] + residual, rtol=0, atol=0)
    others = [j for j in range(system.nx) if j not in learned]
    assert torch.equal(mean[:, others], known[:, others])


@every_twin
@dear()
@given(seed=seeds())
def test_residual_obeys_norm_times_kernel_metric(name: str, seed: int) -> None:
    system = build(name)
    generator = torch.Generator().manual_seed(seed)
    a, b = system.region.sample(64, generator), system.region.sample(64, generator)
    b = a + (b - a) * torch.rand(64, 1, dtype=torch.float64, generator=generator) ** 4
    change = (system.residual_fn(a) - system.residual_fn(b)).abs()
    for j, kernel in enumerate(system.kernels):
        bound = float(system.rkhs_norm[j])
        assert bool((change[:, j] <= bound * kernels.metric(kernel, a, b) + 1e-10).all())
        assert bool((system.residual_fn(a)[:, j].abs() <= bound * kernels.diagonal(kernel, a).sqrt() + 1e-10).all())


@pytest.mark.parametrize("name", sorted(REPORTED))
def test_norm_and_distance_to_the_physics_are_the_reported_ones(name: str) -> None:
    system = build(name)
    norms, distances = REPORTED[name]
    assert bool((system.rkhs_norm <= torch.tensor(norms, dtype=torch.float64)).all())
    assert bool((system.rkhs_norm >= 0.97 * torch.tensor(norms, dtype=torch.float64)).all())
    assert bool((system.twin_error.max <= torch.tensor(distances, dtype=torch.float64)).all())
    assert bool((system.twin_error.rms <= system.twin_error.max).all())


@pytest.mark.parametrize("name", sorted(REPORTED))
def test_distance_measured_anew_agrees_with_the_reported_one(name: str) -> None:
    system = build(name)
    z = system.region.sample(5_000, torch.Generator().manual_seed(99))
    x, u = z[:, : system.nx], z[:, system.nx :]
    gap = (system.mean(x, u) - system.physics.mean(x, u)).abs()[:, list(system.outputs)]
    assert bool((gap.amax(0) <= 1.3 * system.twin_error.max + 1e-15).all())
    assert bool((gap.square().mean(0).sqrt() <= 1.3 * system.twin_error.rms + 1e-15).all())


def test_control_distance_of_a_coarse_twin_is_reported_as_large() -> None:
    plant = Pendulum()
    fine = build("pendulum-twin")
    coarse = twin(plant, fine.known, kernels=fine.kernels, outputs=(0, 1), counts=(5, 2, 2), region=fine.region)
    assert bool((coarse.twin_error.max > 100 * fine.twin_error.max).all())


def test_reference_1d_is_the_tried_configuration() -> None:
    system = reference_1d()
    policies, start = reference_1d_policies()
    assert float(system.rkhs_norm) == pytest.approx(4.47, abs=0.005)
    assert (policies.num, start.tolist()) == (81, [0, 1, 2, 3, 4])
    x = torch.tensor([[[0.3]]], dtype=torch.float64)
    targets = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64)
    torch.testing.assert_close(policies(x)[:, 0, 0], (3 * (targets - 0.3)).clamp(-1, 1), rtol=0, atol=1e-14)


def test_reference_pendulum_is_the_tried_configuration() -> None:
    system = reference_pendulum()
    policies, start = reference_pendulum_policies()
    assert float(system.rkhs_norm) == pytest.approx(21.55, abs=0.1)
    assert float(system.twin_error.max) == pytest.approx(3e-4, abs=2e-5)
    assert (policies.num, start.tolist()) == (45, [0, 1, 2, 3, 4, 5])
    hang = torch.tensor([0.1, 0.0], dtype=torch.float64)
    pushed = system.mean(hang, torch.zeros(1, dtype=torch.float64))
    assert float(pushed[1]) < 0.0, "θ = 0 hangs: gravity pulls a small angle back"


@pytest.mark.parametrize(("reference", "policies", "safe"), [
    (reference_1d, reference_1d_policies, 58),
    (reference_pendulum, reference_pendulum_policies, 36),
], ids=["1d", "pendulum"])  # fmt: skip
def test_number_of_truly_safe_policies_by_simulation(reference, policies, safe) -> None:
    system, (family, start) = reference(), policies()
    noise = sample_noise(system.noise_std, (system.horizon, 1, 200), torch.Generator().manual_seed(0))
    states, _ = closed_loop(system.mean, family, system.initial_state, noise)
    cost = system.cost(states[..., :-1, :]).sum(-1).mean(-1)
    within = cost <= system.budget
    assert int(within.sum()) == safe
    assert bool(within[:safe].all()), "the safe policies are the lowest set-points"
    assert bool(within[start].all())


@dear()
@given(norm=st.floats(0.1, 20.0), seed=seeds())
def test_synthetic_systems_have_exactly_the_norm_asked_for(norm: float, seed: int) -> None:
    for make in (rkhs_1d, rkhs_2d):
        system = make(generator=torch.Generator().manual_seed(seed), rkhs_norm=norm)
        exact = torch.tensor([longdouble_norm(system, j) for j in range(system.nx)], dtype=torch.float64)
        torch.testing.assert_close(exact, torch.full_like(exact, norm), rtol=1e-9, atol=0)
        assert bool((system.rkhs_norm >= exact).all())


def test_synthetic_systems_differ_by_seed_and_repeat_by_seed() -> None:
    a, b, c = (rkhs_2d(generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    z = a.region.sample(10, torch.Generator().manual_seed(0))
    assert torch.equal(a.residual_fn(z), b.residual_fn(z))
    assert not torch.equal(a.residual_fn(z), c.residual_fn(z))


def test_linear_kernel_twin_is_the_double_integrator_itself() -> None:
    system = DoubleIntegrator().twin(mass_error=0.5, variance=4.0)
    assert float(system.twin_error.max.max()) < 1e-15
    w = 0.1 * (1.0 - 1.0 / 1.5)  # dt·(force/mass − force/(1.5 mass))
    assert float(system.rkhs_norm[1]) == pytest.approx(w / 2.0, rel=1e-9)


def test_better_prior_means_smaller_norm() -> None:
    norms = [CartPole().twin(cart_error=e, pole_error=e, length_error=e).rkhs_norm for e in (0.02, 0.1)]
    assert bool((norms[0] < 0.5 * norms[1]).all())


def test_twin_away_from_its_region_falls_back_to_the_known_part() -> None:
    system = build("reference-1d")
    x, u = torch.tensor([[40.0]]).double(), torch.tensor([[0.0]]).double()
    assert torch.equal(system.mean(x, u), system.known(x, u))


def test_centers_cover_the_faces_and_take_the_middle_of_single_axes() -> None:
    box = Box(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 4.0]))
    points = centers(box, (3, 1, 2))
    assert points.shape == (6, 3)
    assert set(points[:, 1].tolist()) == {1.5}
    assert points[0].tolist() == [-1.0, 1.5, 2.0]
    assert points[-1].tolist() == [1.0, 1.5, 4.0]


def test_impossible_twins_are_refused() -> None:
    plant, kernel = Pendulum(), kernels.rbf(1.0)
    known = plant.prior()
    with pytest.raises(ValueError, match=r"twin: expected states \[0\] equal to the known part"):
        twin(plant, known, kernels=kernel, outputs=(1,), counts=(3, 3, 3))
    with pytest.raises(ValueError, match="twin: expected distinct outputs"):
        twin(plant, known, kernels=kernel, outputs=(1, 1), counts=(3, 3, 3))
    with pytest.raises(ValueError, match="twin: expected 2 kernels"):
        twin(plant, known, kernels=[kernel], outputs=(0, 1), counts=(3, 3, 3))
    with pytest.raises(ValueError, match="centers: expected 3 counts"):
        twin(plant, known, kernels=kernel, outputs=(0, 1), counts=(3, 3))
    with pytest.raises(ValueError, match="twin: expected 2 residual functions"):
        exact_twin(plant, known, residual=build("reference-1d").residual, outputs=(0, 1))


def test_control_too_small_norm_is_caught_by_the_kernel_metric() -> None:
    system = build("reference-1d")
    broken = replace(system, rkhs_norm=0.05 * system.rkhs_norm)
    z = system.region.sample(500, torch.Generator().manual_seed(0))
    limit = float(broken.rkhs_norm) * kernels.diagonal(system.kernels[0], z).sqrt()
    assert bool((broken.residual_fn(z)[:, 0].abs() > limit).any())


def test_affine_known_without_residual_states_makes_a_plant() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    known = AffineKnown(eye, torch.zeros(2, 1), torch.zeros(2))
    assert torch.equal(known.hessian_bound, torch.zeros(2, 3, 3, dtype=torch.float64))
