"""Episodes behind a filter: what is counted is what was done, and the same draws give the same episode."""

import math

import pytest
import torch
from filter_cases import linear_filter
from xmpsc_cases import ensemble_pendulum

from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety import SafetyFilter, fly
from gpsafe.systems import Pendulum, SafeCartPole, SimplePendulum
from gpsafe.tube import LinearTube
from proofs_checks.safety_filter import linear_case

PLANT = SimplePendulum()


def push(seen, generator):
    return torch.ones(1, dtype=torch.float64)


def flown(safe, propose=push, *, steps=60, seed=0, start=None):
    return fly(PLANT, safe, propose, steps=steps, generator=torch.Generator().manual_seed(seed), start=start)


def test_an_episode_is_the_plants_own_and_ends_outside_the_limits():
    g = torch.Generator().manual_seed(3)
    free = flown(None, lambda seen, g: 9.0 * torch.randn(1, dtype=torch.float64, generator=g), seed=3)
    x = PLANT.initial(1, g)
    for k, u in enumerate(free.inputs):
        assert torch.equal(free.seen[k], PLANT.observe(x, g)[0])
        drawn = 9.0 * torch.randn(1, dtype=torch.float64, generator=g)
        assert torch.equal(free.proposed[k], drawn) and torch.equal(u, drawn.clamp(-1.0, 1.0))
        x = PLANT.advance(x, u.unsqueeze(0), g)
        assert torch.equal(x[0], free.states[k + 1])
    outside = PLANT.terminated(free.states)
    assert bool(outside[-1]) == free.violated and not bool(outside[:-1].any())
    assert free.counts == {"unfiltered": len(free.inputs)} and free.row()["ms"] == 0.0
    over = flown(None, start=torch.tensor([0.26 * math.pi, -3.0], dtype=torch.float64))
    assert over.violated and len(over.inputs) == 1


def test_the_row_adds_up_and_is_reproduced():
    pytest.importorskip("numba")
    safe = SafetyFilter(ensemble_pendulum(), CondensedSQP(), soften=4)
    one, other = flown(safe, steps=12), flown(safe, steps=12)
    assert torch.equal(one.states, other.states) and len(one.decisions) == len(one.seconds) == len(one.inputs)
    row = one.row()
    assert sum(value for name, value in row.items() if name.startswith("from_")) == row["steps"] == len(one.inputs)
    assert 0 <= row["captured"] <= row["captured_of"] <= row["steps"] and row["ms"] > 0
    assert row["corrected"] == int(((one.inputs - one.proposed).abs() > 1e-6).sum())
    assert row["violated"] == bool(PLANT.terminated(one.states[-1]))


class Kicked(SimplePendulum):
    """The plant of `linear_case`, thrown by a disturbance that its tubes have not heard of."""

    kick = 0.0

    def advance(self, x, u, generator):
        model = linear_case()[0].model
        assert isinstance(model, LinearTube)
        return model.plant(x, u) + self.kick

    def observe(self, x, generator):
        return x.clone()


@pytest.mark.parametrize("kick", [0.0, 3.0])
def test_the_state_that_ends_an_episode_may_refute_the_tubes(kick, monkeypatch):
    """Nothing is decided in it: the flight that left all of them at its end was not refuted."""
    monkeypatch.setattr(Kicked, "kick", kick)
    start, g = torch.zeros(2, dtype=torch.float64), torch.Generator().manual_seed(0)
    one = fly(Kicked(), linear_filter(), push, steps=1, generator=g, start=start)
    assert one.decisions[0].source == "plan" and one.decisions[0].falsified is None
    assert one.row()["refuted"] == (one.refuted is not None) == (kick > 0)


def test_who_proposes_may_write_on_the_measurement_and_on_his_last_answer():
    """The cart-pole's measurement is its state: both flights are the same, and every proposal is kept."""
    plant, answer = SafeCartPole(), torch.zeros(1, dtype=torch.float64)

    def fair(seen, generator):
        return 0.1 * seen[:1] + 0.2

    def writes(seen, generator):
        answer.copy_(0.1 * seen[:1] + 0.2)
        seen.mul_(0.0)
        return answer

    one, other = (
        fly(plant, None, propose, steps=5, generator=torch.Generator().manual_seed(0)) for propose in (fair, writes)
    )
    for name in ("states", "seen", "proposed", "inputs"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert len(set(one.proposed[:, 0].tolist())) > 1


def test_what_cannot_fly_is_refused():
    for change, message in (
        ({"propose": lambda seen, g: torch.ones(2)}, "proposed input"),
        ({"steps": 0}, "steps"),
        ({"start": torch.zeros(3)}, "start"),
    ):
        with pytest.raises(ValueError, match=message):
            flown(None, **{"propose": push, **change})
    with pytest.raises(ValueError, match="system"):
        fly(Pendulum(), None, push, steps=1, generator=torch.Generator())
