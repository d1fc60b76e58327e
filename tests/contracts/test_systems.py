"""What every system promises."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given

from gpsafe.systems.base import System, sample_noise, step
from gpsafe.systems.rkhs_twin import RKHSTwin
from tests.strategies import dear, seeds
from tests.systems import _claims as claims

every_system = pytest.mark.parametrize("name", sorted(claims.SYSTEMS))


@cache
def build(name: str) -> System:
    return claims.SYSTEMS[name]()


def draw(system: System, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return system.state_box.sample(count, generator), system.input_box.sample(count, generator)


@every_system
def test_system_declares_sizes_that_fit_together(name: str) -> None:
    system = build(name)
    assert isinstance(system, System)
    assert system.state_box.dim == system.nx
    assert system.input_box.dim == system.nu
    assert system.noise_std.shape == system.initial_state.shape == (system.nx,)
    assert bool((system.noise_std > 0).all())
    assert bool(system.state_box.contains(system.initial_state))
    assert system.horizon >= 1
    assert 0 <= system.budget <= system.horizon * system.cost.ceiling
    assert float(system.cost(system.initial_state)) == 0.0


@every_system
@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
def test_mean_reward_cost_keep_leading_dimensions_and_float64(name: str, batch: tuple[int, ...]) -> None:
    system = build(name)
    x, u = draw(system, math.prod(batch))
    x, u = x.reshape(*batch, system.nx), u.reshape(*batch, system.nu)
    for value, shape in (
        (system.mean(x, u), (*batch, system.nx)),
        (system.reward(x, u), batch),
        (system.cost(x), batch),
    ):
        assert value.shape == shape
        assert value.dtype == torch.float64
        assert bool(value.isfinite().all())


@every_system
def test_batch_equals_loop(name: str) -> None:
    system = build(name)
    x, u = draw(system, 20)
    for batched, single in ((system.mean, system.mean), (system.reward, system.reward)):
        loop = torch.stack([single(a, b) for a, b in zip(x, u, strict=True)])
        torch.testing.assert_close(batched(x, u), loop, rtol=1e-10, atol=1e-10)
    assert torch.equal(system.cost(x), torch.stack([system.cost(a) for a in x]))


@every_system
def test_same_seed_gives_bit_equal_trajectory_and_another_seed_does_not(name: str) -> None:
    system = build(name)
    first = claims.rollout(system, seed=5, steps=10)
    assert torch.equal(first, claims.rollout(system, seed=5, steps=10))
    assert not torch.equal(first, claims.rollout(system, seed=6, steps=10))


@every_system
def test_mean_is_deterministic(name: str) -> None:
    assert claims.is_pure(build(name), seed=1)


def test_control_mean_with_hidden_noise_is_caught() -> None:
    assert not claims.is_pure(claims.noisy_mean(build("pendulum")), seed=1)


@every_system
def test_mean_does_not_change_its_arguments(name: str) -> None:
    system = build(name)
    x, u = draw(system, 4)
    x_before, u_before = x.clone(), u.clone()
    system.mean(x, u)
    system.reward(x, u)
    system.cost(x)
    assert torch.equal(x, x_before)
    assert torch.equal(u, u_before)


@every_system
def test_everything_follows_the_device_of_the_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = build(name)
    # Kernels read one number to choose a formula, which a meta tensor cannot give; not so under a transform.
    monkeypatch.setattr("gpsafe.linalg.is_transformed", lambda *tensors: True)
    x = torch.zeros(3, system.nx, dtype=torch.float64, device="meta")
    u = torch.zeros(3, system.nu, dtype=torch.float64, device="meta")
    values = (system.mean(x, u), system.reward(x, u), system.cost(x), system.cost.upper(x, x))
    assert {value.device.type for value in values} == {"meta"}


@every_system
def test_mean_has_the_derivatives_that_automatic_differentiation_says(name: str) -> None:
    system = build(name)
    x, u = draw(system, 5, seed=2)
    x = system.state_box.center + 0.5 * (x - system.state_box.center)  # away from the pendulum's clip

    def at(z: torch.Tensor) -> torch.Tensor:
        return system.mean(z[..., : system.nx], z[..., system.nx :])

    z = torch.cat([x, u], dim=-1)
    slope = torch.stack([torch.func.jacrev(at)(row) for row in z])
    h = 1e-6
    shifts = h * torch.eye(z.shape[-1], dtype=torch.float64)
    finite = torch.stack([(at(z + s) - at(z - s)) / (2 * h) for s in shifts], dim=-1)
    torch.testing.assert_close(slope, finite, rtol=1e-5, atol=2e-6)


@every_system
@dear()
@given(seed=seeds())
def test_cost_lies_between_zero_and_its_ceiling(name: str, seed: int) -> None:
    system = build(name)
    lower, upper = claims.boxes(system.state_box, seed=seed)
    for value in (system.cost(lower), system.cost.upper(lower, upper), system.cost.lower(lower, upper)):
        assert bool(((value >= 0) & (value <= system.cost.ceiling)).all())


@every_system
@dear()
@given(seed=seeds())
def test_cost_bounds_over_boxes_enclose_sampled_costs(name: str, seed: int) -> None:
    system = build(name)
    assert claims.enclosure_gap(system.cost, *claims.boxes(system.state_box, seed=seed), seed=seed) <= 0.0


@every_system
def test_nan_state_costs_the_ceiling(name: str) -> None:
    system = build(name)
    bad = torch.full((2, system.nx), math.nan, dtype=torch.float64)
    assert system.cost(bad).tolist() == [system.cost.ceiling] * 2
    assert system.cost.upper(bad, bad).tolist() == [system.cost.ceiling] * 2


@every_system
def test_step_adds_the_noise_it_is_given(name: str) -> None:
    system = build(name)
    x, u = draw(system, 6)
    w = sample_noise(system.noise_std, (6,), torch.Generator().manual_seed(0))
    assert w.shape == x.shape
    assert torch.equal(step(system, x, u, w) - system.mean(x, u), (system.mean(x, u) + w) - system.mean(x, u))


def test_sampled_noise_has_the_declared_standard_deviation() -> None:
    std = torch.tensor([0.1, 2.0], dtype=torch.float64)
    draws = sample_noise(std, (40_000,), torch.Generator().manual_seed(0))
    assert torch.allclose(draws.std(0) / std, torch.ones(2, dtype=torch.float64), atol=0.02)
    assert bool((draws.mean(0).abs() < 0.03 * std).all())


@pytest.mark.parametrize("name", sorted(claims.TWINS))
def test_twins_are_twins(name: str) -> None:
    system = build(name)
    assert isinstance(system, RKHSTwin)
    assert len(system.residual) == len(system.outputs) == len(system.kernels) == system.rkhs_norm.numel()
