"""One rule for all stock plants: who applies an input clips it, `mean` never does."""

import pytest
import torch

from gpsafe.systems import CartPole, DoubleIntegrator, Pendulum, SafeCartPole, SimplePendulum, TwoLinkArm

PLANTS = {
    "pendulum": lambda: Pendulum(action_repeat=2),
    "cart-pole": CartPole,
    "double integrator": DoubleIntegrator,
    "pendulum twin": lambda: Pendulum().twin(),
    "simple pendulum": SimplePendulum,
    "safe cart-pole": SafeCartPole,
    "two-link arm": TwoLinkArm,
}


@pytest.mark.parametrize("name", PLANTS)
def test_the_mean_of_a_stock_plant_does_not_clip_its_input(name):
    """It is the same smooth function on both sides of a limit: one-sided slopes in u agree there, and are not 0."""
    plant = PLANTS[name]()
    x = plant.initial_state
    for limit in (plant.input_box.lower, plant.input_box.upper):
        step = 1e-4 * torch.ones_like(limit)
        inner, here, outer = (plant.mean(x, limit + sign * step) for sign in (-1.0, 0.0, 1.0))
        assert float((outer - here).abs().max()) > 0
        torch.testing.assert_close(outer - here, here - inner, rtol=1e-2, atol=1e-12)
