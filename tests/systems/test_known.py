"""Known parts: the Hessian bounds are bounds, and with the right parameters the known part is the plant."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.cost.enclosure import jacobians
from gpsafe.models._prior import prior_jacobian
from gpsafe.sets import Box
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.base import KnownPart
from gpsafe.systems.cartpole import CartPole, CartPoleKnown, soft_clip
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.drone import Drone
from gpsafe.systems.known import AffineKnown, SineKnown, pendulum_known
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.xmpsc import SafeCartPole
from tests.strategies import dear, seeds
from tests.systems import _claims as claims

ROUNDING = 1e-13
every_prior = pytest.mark.parametrize("name", sorted(claims.PRIORS))


@cache
def build(name: str) -> tuple[KnownPart, Box, int]:
    known, box, nx = claims.PRIORS[name]()
    wide = Box(box.center - 2 * box.radius, box.center + 2 * box.radius)  # the bound holds everywhere
    return known, wide, nx


@every_prior
@dear()
@given(seed=seeds())
def test_hessian_bound_dominates_the_taylor_remainder(name: str, seed: int) -> None:
    known, box, nx = build(name)
    assert claims.taylor_gap(known, known.hessian_bound, box, nx, seed=seed) <= ROUNDING


@every_prior
@dear()
@given(seed=seeds())
def test_a_jacobian_in_closed_form_is_that_of_differentiation(name: str, seed: int) -> None:
    known, box, nx = build(name)
    z = box.sample(20, torch.Generator().manual_seed(seed)).reshape(4, 5, -1)
    x, u = z[..., :nx], z[..., nx:]
    automatic = torch.func.vmap(torch.func.vmap(torch.func.jacfwd(lambda v: known(v[:nx], v[nx:]))))(z)
    torch.testing.assert_close(torch.cat(jacobians(known, x, u), dim=-1), automatic, rtol=1e-12, atol=1e-12)
    derived = prior_jacobian("test", known.__call__, x, u)  # nothing but its values is used
    torch.testing.assert_close(derived, automatic, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cart-pole", "drone", "two-link-arm"])
@dear()
@given(seed=seeds(), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_value_and_jacobian_in_one_call_are_those_of_the_function(name: str, seed: int, size: float) -> None:
    """Beyond the limits of the soft clips, too."""
    plant = {"cart-pole": SafeCartPole, "drone": Drone, "two-link-arm": TwoLinkArm}[name]()
    known, generator = plant.prior(), torch.Generator().manual_seed(seed)
    x = size * torch.randn(3, 2, plant.nx, dtype=torch.float64, generator=generator)
    u = min(size, 2.0) * torch.randn(2, plant.nu, dtype=torch.float64, generator=generator)  # broadcast against x
    value, by_x, by_u = known.linearise(x, u)
    torch.testing.assert_close(value, known(x, u.expand(3, 2, -1)), rtol=1e-12, atol=1e-12)
    derived = prior_jacobian("test", known.__call__, x, u)
    torch.testing.assert_close(torch.cat([by_x, by_u], dim=-1), derived, rtol=1e-11, atol=1e-11)


def hessian_gap(known: KnownPart, bound: torch.Tensor, box: Box, nx: int) -> float:
    """Largest excess of |∂²p_i/∂z_j∂z_k| at random points over the bound."""
    z = box.sample(2000, torch.Generator().manual_seed(0))
    hessians = torch.func.vmap(torch.func.hessian(lambda p: known(p[:nx], p[nx:])))(z)
    return float((hessians.abs() - bound).max())


@every_prior
def test_hessian_bound_dominates_automatic_second_derivatives(name: str) -> None:
    known, box, nx = build(name)
    bound = known.hessian_bound
    assert bound.shape == (nx, box.dim, box.dim)
    assert torch.equal(bound, bound.transpose(-1, -2))
    assert hessian_gap(known, bound, box, nx) <= ROUNDING


@pytest.mark.parametrize("name", ["pendulum", "pendulum-repeat-3", "reference-pendulum"])
def test_control_halved_hessian_bound_is_caught(name: str) -> None:
    known, box, nx = build(name)
    assert claims.taylor_gap(known, 0.5 * known.hessian_bound, box, nx, seed=0) > 1e-3


@pytest.mark.parametrize("name", ["cartpole", "cartpole-repeat-2"])
def test_control_dropped_diagonal_of_the_hessian_bound_is_caught_by_taylor(name: str) -> None:
    known, box, nx = build(name)
    bound = known.hessian_bound
    bound = bound - torch.diag_embed(bound.diagonal(dim1=-2, dim2=-1))
    assert claims.taylor_gap(known, bound, box, nx, seed=0) > 1e-2


@pytest.mark.parametrize("name", ["cartpole", "cartpole-repeat-2"])
@pytest.mark.parametrize("entry", [(1, 1), (1, 3), (1, 4), (3, 3), (4, 4)])
def test_control_dropped_hessian_entry_is_caught(name: str, entry: tuple[int, int]) -> None:
    known, box, nx = build(name)
    bound = known.hessian_bound.clone()
    bound[:, entry[0], entry[1]] = bound[:, entry[1], entry[0]] = 0.0
    assert hessian_gap(known, bound, box, nx) > 1e-2


def test_cartpole_hessian_bound_is_within_a_small_factor_of_the_truth_inside_the_state_box() -> None:
    known = CartPole().prior()
    box = claims.PRIORS["cartpole"]()[1]
    z = box.sample(20_000, torch.Generator().manual_seed(0))
    hessians = torch.func.vmap(torch.func.hessian(lambda p: known(p[:4], p[4:])))(z).abs().amax(0)
    assert float(hessians.amax() / known.hessian_bound.amax()) > 0.2


@given(seed=seeds(), waves=st.integers(1, 4), nx=st.integers(1, 3), nu=st.integers(1, 2))
def test_sine_known_bound_holds_for_any_coefficients(seed: int, waves: int, nx: int, nu: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    known = SineKnown(
        normal(nx, nx), normal(nx, nu), normal(nx), normal(waves, nx), normal(waves, nx + nu), normal(waves)
    )
    half = torch.ones(nx + nu, dtype=torch.float64)
    gap = claims.taylor_gap(known, known.hessian_bound, Box(-3 * half, 3 * half), nx, seed=seed)
    assert gap <= 1e-11


def test_true_parameters_give_the_double_integrator() -> None:
    system = DoubleIntegrator(mass=2.0, force=3.0, dt=0.07)
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(100, generator), system.input_box.sample(100, generator)
    torch.testing.assert_close(system.prior(mass_error=0.0)(x, u), system.mean(x, u), rtol=0, atol=1e-14)


def test_true_parameters_give_the_pendulum_where_no_input_reaches_the_clip() -> None:
    system = Pendulum()
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(2000, generator), system.input_box.sample(2000, generator)
    x[:, 1] *= system.free_speed / system.speed_limit
    known = system.prior(length_error=0.0, mass_error=0.0)
    torch.testing.assert_close(known(x, u), system.mean(x, u), rtol=0, atol=1e-13)


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_free_speed_is_where_the_clip_begins_to_act(repeat: int) -> None:
    system = Pendulum(action_repeat=repeat, speed_limit=12.0)
    free = Pendulum(action_repeat=repeat, speed_limit=1e6)
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(20_000, generator), system.input_box.sample(20_000, generator)
    x[:, 1] *= system.free_speed / system.speed_limit
    assert torch.equal(system.mean(x, u), free.mean(x, u))
    x[:, 1] = system.free_speed + 0.2
    x[:, 0], u[:, 0] = torch.pi / 2, 1.0
    if repeat == 1:
        assert not torch.equal(system.mean(x, u), free.mean(x, u))


def test_pendulum_prior_of_two_substeps_is_off_by_what_it_leaves_out() -> None:
    system = Pendulum(action_repeat=2)
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(5000, generator), system.input_box.sample(5000, generator)
    x[:, 1] *= system.free_speed / system.speed_limit
    gap = (system.prior(length_error=0.0, mass_error=0.0)(x, u) - system.mean(x, u)).abs().amax(0)
    pull = 1.5 * system.gravity / system.length
    left_out = system.dt * pull * (system.dt**2 * pull)  # dt·pull·|sin θ₁ − sin(θ₁ − dt²·pull·sin θ)|
    assert float(gap[1]) <= left_out
    assert float(gap[0]) <= system.dt * left_out
    assert float(gap[1]) >= 0.1 * left_out


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_true_parameters_give_the_cartpole_on_its_state_box(repeat: int) -> None:
    system = CartPole(action_repeat=repeat)
    generator = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(5000, generator), system.input_box.sample(5000, generator)
    known = system.prior(cart_error=0.0, pole_error=0.0, length_error=0.0)
    torch.testing.assert_close(known(x, u), system.mean(x, u), rtol=0, atol=1e-12)


@given(seed=seeds(), limit=st.floats(0.1, 10), margin=st.floats(0.1, 10))
def test_soft_clip_is_the_identity_inside_flat_far_outside_and_smooth(seed: int, limit: float, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = 4 * (limit + margin) * (torch.rand(500, dtype=torch.float64, generator=generator) - 0.5)
    value = soft_clip(y, limit, margin)
    inside = y.abs() <= limit
    assert torch.equal(value[inside], y[inside])
    assert float(value.abs().max()) <= limit + 0.5 * margin + 1e-12
    order = y.sort().values
    clipped = soft_clip(order, limit, margin)
    slope = torch.func.vmap(torch.func.grad(lambda v: soft_clip(v, limit, margin)))(order)
    assert bool(((slope >= -1e-12) & (slope <= 1 + 1e-12)).all())
    assert bool((clipped.diff() >= -1e-12).all())
    assert bool((slope.diff().abs() <= order.diff() / margin + 1e-9).all())


@pytest.mark.parametrize("hanging", [True, False])
@pytest.mark.parametrize("semi_implicit", [True, False])
def test_pendulum_known_is_the_euler_step_it_names(hanging: bool, semi_implicit: bool) -> None:
    known = pendulum_known(
        gravity=7.0, gain=3.0, damping=0.4, dt=0.05, hanging_at_zero=hanging, semi_implicit=semi_implicit
    )
    generator = torch.Generator().manual_seed(0)
    theta, omega, u = torch.randn(3, 50, dtype=torch.float64, generator=generator)
    pull = -7.0 if hanging else 7.0
    omega_next = omega + 0.05 * (pull * theta.sin() + 3.0 * u - 0.4 * omega)
    theta_next = theta + 0.05 * (omega_next if semi_implicit else omega)
    got = known(torch.stack([theta, omega], -1), u[:, None])
    torch.testing.assert_close(got, torch.stack([theta_next, omega_next], -1), rtol=0, atol=1e-14)


def test_bad_known_parts_are_refused() -> None:
    eye, column = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="AffineKnown: expected c of shape"):
        AffineKnown(eye, column, torch.zeros(3))
    with pytest.raises(ValueError, match="AffineKnown: expected finite A"):
        AffineKnown(eye * torch.nan, column, torch.zeros(2))
    with pytest.raises(ValueError, match="AffineKnown: expected B of shape"):
        AffineKnown(eye, torch.ones(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="SineKnown: expected frequencies of shape"):
        SineKnown(eye, column, torch.zeros(2), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="CartPoleKnown: expected cart > 0"):
        CartPoleKnown(gravity=9.81, cart=0.0, pole=1.0, length=1.0, force=1.0, dt=0.1, speed_limit=1.0)
