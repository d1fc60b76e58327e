"""PyBullet's pendulum, cart-pole and drone: the same task, mechanics that agree with ours up to stated numbers."""

import sys
from dataclasses import replace
from functools import cache

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("pybullet")

import gpsafe.systems.envs
from gpsafe.certify import certified_backup
from gpsafe.systems import Drone, Episodic, SafeCartPole, SimplePendulum, TwoLinkArm, mismatch, safe_fraction
from gpsafe.systems.bullet import BulletPlant

PLANTS = {"SimplePendulum": SimplePendulum, "SafeCartPole": SafeCartPole, "Drone": Drone}
every_plant = pytest.mark.parametrize("name", PLANTS)
WITHIN = {  # root mean square per coordinate after one step, and after twenty under uniform inputs
    "SimplePendulum": ([0.025, 0.07], [0.06, 0.12]),
    "SafeCartPole": ([0.002, 0.001, 0.006, 0.015], [0.02, 0.03, 0.15, 0.8]),
    "Drone": (3 * [3e-4] + 3 * [2e-3] + 3 * [3e-4] + 3 * [1e-9], 3 * [1e-3] + 3 * [2e-3] + 3 * [2e-3] + 3 * [1e-9]),
}


@cache
def build(name: str) -> BulletPlant:
    return BulletPlant(PLANTS[name]())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_plant
def test_the_task_is_the_plants_and_the_step_is_a_function_of_state_and_input(name):
    plant, ours = build(name), PLANTS[name]()
    assert isinstance(plant, Episodic) and plant.name == f"{ours.name}-bullet"
    x, u = ours.initial(4, seeded()), ours.input_box.sample(4, seeded())
    first = plant.mean(x.reshape(2, 2, -1), u.reshape(2, 2, -1))
    plant.mean(x + 0.1, u)
    assert torch.equal(plant.mean(x, u), first.reshape(4, -1))
    assert torch.equal(plant.mean(x[3], u[3]), first[1, 1])
    assert torch.equal(plant.backup(x), ours.backup(x)) and torch.equal(plant.reward(x, u), ours.reward(x, u))
    assert torch.equal(plant.initial(5, seeded()), ours.initial(5, seeded()))


@every_plant
def test_the_gap_to_the_analytic_plant_is_within_the_stated_numbers(name):
    gap = mismatch(PLANTS[name](), build(name), generator=seeded(1), episodes=12)
    for found, bound in zip((gap.one_step, gap.many_steps), WITHIN[name], strict=True):
        assert bool((found <= torch.tensor(bound).double()).all()), found
    if name != "Drone":  # the Euler step is there, and not hidden by a copy of our own equations
        assert float(gap.one_step[-1]) > 1e-3


@pytest.mark.parametrize(("name", "most"), [("SimplePendulum", 1e-8), ("SafeCartPole", 2e-3)])
def test_at_bullets_own_step_the_gap_closes(name, most):
    plant = replace(PLANTS[name](), dt=1e-3)
    gap = mismatch(plant, BulletPlant(plant), generator=seeded(2), episodes=4, steps=50)
    assert float(gap.many_steps.max()) < most


def test_control_a_wrong_mass_is_seen():
    heavier = mismatch(Drone(), BulletPlant(replace(Drone(), mass=0.033)), generator=seeded(1), episodes=4)
    assert float(heavier.many_steps[8]) > 0.1
    other = mismatch(SafeCartPole(cart=2.0), build("SafeCartPole"), generator=seeded(1), episodes=4)
    assert float(other.many_steps[1]) > 2 * WITHIN["SafeCartPole"][1][1]


@every_plant
def test_backup_laws_derived_for_the_analytic_plant_hold_across_the_gap(name):
    plant = build(name)
    assert safe_fraction(plant, plant.backup, plant.initial(8, seeded(3)), 50, seeded(4)).safe == 8


def test_a_certificate_about_the_analytic_plant_is_none_about_this_one():
    """The set that the pendulum's backup keeps is left here, if not the limits: Euler's error is no error of the input."""
    ours, theirs = SimplePendulum(), build("SimplePendulum")
    region, excess = certified_backup(ours).region, {}
    for plant in (ours, theirs):
        x, generator, excess[plant.name] = region.vertices(), seeded(5), -1.0
        for _ in range(40):
            x = plant.advance(x, plant.backup(plant.observe(x, generator)), generator)
            assert not bool(plant.terminated(x).any())
            excess[plant.name] = max(excess[plant.name], float((x @ region.H.mT - region.h).max()))
    assert excess[ours.name] <= 0.0 and excess[theirs.name] > 0.01


def test_angles_of_the_drone_are_not_wrapped():
    x = torch.zeros(12).double()
    x[5], x[11] = 3.13, 3.0
    after = build("Drone").mean(x, torch.tensor([0.0, 0, 0, 1.0]).double())
    assert (
        float(after[5]) > 3.14
        and float((after - Drone().mean(x, torch.tensor([0.0, 0, 0, 1.0]).double())).abs().max()) < 0.01
    )


@every_plant
def test_environments_take_it(name):
    env = gymnasium.make(f"gpsafe/{name}-v0", bullet=True, render_mode="rgb_array").unwrapped
    assert isinstance(env, gpsafe.systems.envs.SystemEnv) and isinstance(env.system, BulletPlant)
    env.reset(seed=0)
    one = [env.step(np.zeros(env.system.nu))[0] for _ in range(3)]
    env.reset(seed=0)
    assert all(np.array_equal(a, env.step(np.zeros(env.system.nu))[0]) for a in one)
    assert env.render().shape == (320, 320, 3)


def test_what_cannot_be_made_is_refused_and_what_was_closed_does_not_step(monkeypatch):
    with pytest.raises(ValueError, match="SimplePendulum, SafeCartPole or Drone"):
        BulletPlant(TwoLinkArm())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"length of 1\.0 m"):
        BulletPlant(SimplePendulum(length=0.5))
    plant = BulletPlant(SimplePendulum())
    plant.close()
    plant.close()
    with pytest.raises(ValueError, match="open connection"):
        plant.mean(plant.initial_state, torch.zeros(1).double())
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(ModuleNotFoundError, match=r"gpsafe\[bullet\]"):
        BulletPlant(SimplePendulum())
