"""The chain of coupled subsystems: sizes, exact norms, contraction, and a control."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.systems.chain import chain, chain_policies


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dear()
@given(seed=seeds(), nx=st.integers(1, 5), actuated=st.integers(1, 5))
def test_every_unknown_part_has_the_given_norm_and_all_arguments(seed: int, nx: int, actuated: int) -> None:
    nu = min(nx, actuated)
    plant = chain(nx, nu, generator=generator(seed), rkhs_norm=3.0)
    assert (plant.nx, plant.nu, plant.outputs) == (nx, nu, tuple(range(nx)))
    assert float((plant.rkhs_norm - 3.0).abs().max()) < 1e-9
    z = plant.region.sample(1, generator(seed)).requires_grad_()
    for residual in plant.residual:  # depends on every coordinate
        (slope,) = torch.autograd.grad(residual(z).sum(), z)
        assert bool((slope != 0).all())


@dear()
@given(seed=seeds())
def test_step_is_the_chain_plus_the_unknown_part(seed: int) -> None:
    plant = chain(3, 2, generator=generator(seed), coupling=0.2)
    z = plant.region.sample(7, generator(seed))
    x, u = z[:, :3], z[:, 3:]
    by_hand = torch.stack(
        [
            x[:, 0] + 0.2 * x[:, 1] + 0.25 * u[:, 0],
            0.2 * x[:, 0] + x[:, 1] + 0.2 * x[:, 2] + 0.25 * u[:, 1],
            0.2 * x[:, 1] + 0.5 * x[:, 2],
        ],
        dim=-1,
    )
    assert float((plant.mean(x, u) - plant.residual_fn(z) - by_hand).abs().max()) < 1e-12


def settled(plant, scale: float = 1.0) -> torch.Tensor:
    """|x| of all policies after 40 steps of the known part alone."""
    policies = chain_policies(plant.nx, plant.nu, torch.tensor([-0.3, 0.0, 0.6], dtype=torch.float64))
    noise = sample_noise(plant.noise_std * 0, (40, 1, 1), generator(0))
    return closed_loop(lambda x, u: plant.known(x, scale * u), policies, plant.initial_state, noise)[0][:, 0, -1]


@pytest.mark.parametrize(("nx", "nu"), [(1, 1), (2, 1), (3, 3), (4, 4)])
def test_feedback_settles_the_first_subsystem_near_its_set_point(nx: int, nu: int) -> None:
    plant = chain(nx, nu, generator=generator(0))
    final = settled(plant)
    assert bool((final[:, 0] - torch.tensor([-0.3, 0.0, 0.6])).abs().max() < 0.06)


def test_control_without_feedback_the_set_points_are_missed() -> None:
    assert float((settled(chain(2, 2, generator=generator(0)), 0.0)[:, 0] - 0.6).abs()[2]) > 0.5


@pytest.mark.parametrize(("nx", "nu"), [(0, 1), (2, 0), (1, 2), (True, 1)])
def test_bad_sizes_are_refused(nx: int, nu: int) -> None:
    with pytest.raises(ValueError, match="chain: expected"):
        chain(nx, nu, generator=generator(0))
