"""A plant outside the computer is a `System` whose dynamics nobody may ask for."""

import pytest
import torch

from gpsafe.sets import Box
from gpsafe.systems.base import System
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.real import RealPlant
from gpsafe.systems.task import Task

PENDULUM = Pendulum()
ROBOT = RealPlant(Task.of(PENDULUM), PENDULUM.state_box, PENDULUM.input_box, PENDULUM.reward, "rig")


def test_a_real_plant_is_a_system_of_the_same_task():
    assert isinstance(ROBOT, System) and ROBOT.name == "rig"
    assert (ROBOT.nx, ROBOT.nu, ROBOT.horizon, ROBOT.budget) == (2, 1, PENDULUM.horizon, PENDULUM.budget)
    assert not Task.of(ROBOT).differences(Task.of(PENDULUM))
    x, u = PENDULUM.initial_state, torch.ones(1).double()
    assert torch.equal(ROBOT.reward(x, u), PENDULUM.reward(x, u)) and float(ROBOT.cost(x)) == 0.0


def test_its_dynamics_are_refused():
    with pytest.raises(ValueError, match=r"ask\(\) and tell\(\)"):
        ROBOT.mean(PENDULUM.initial_state, torch.zeros(1).double())


def test_boxes_that_do_not_fit_are_refused():
    line, far = Box(torch.zeros(1).double(), torch.ones(1).double()), Box(torch.ones(2).double() * 8, torch.ones(2) * 9)
    for box, match in ((line, "dimension 2"), (far, "initial_state inside")):
        with pytest.raises(ValueError, match=match):
            RealPlant(ROBOT.task, box, ROBOT.input_box, ROBOT.reward_fn)
