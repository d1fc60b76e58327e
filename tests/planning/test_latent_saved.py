"""A latent learner on the disk: what was stopped anywhere goes on as if it had not been, on the CPU bit-equal."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from latent_cases import learner

from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    Checkpoint,
    Episodes,
    LatentAgent,
)
from gpsafe.planning.latent.episodes import Seen

KINDS = (
    "actsafe",
    "actsafe-published",
    "lambda",
    "actsafe-corrected",
)  # a planner; every penalty, with Adam and without

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def same(one: LatentAgent, other: LatentAgent) -> bool:
    parts = [{**a.world.state(), **{f"b{k}": v for k, v in a.behaviour.state().items()}} for a in (one, other)]
    equal = parts[0].keys() == parts[1].keys() and all(np.array_equal(v, parts[1][k]) for k, v in parts[0].items())
    return equal and repr(one.rows) == repr(other.rows)  # nan equals nan


class Killed(BaseException):
    pass


def killed_after(updates: int, checkpoint: Checkpoint):
    """A pulse that saves, and stops the process that it stands for."""
    left = iter(range(updates))

    def pulse(agent: LatentAgent) -> None:
        if next(left, None) is None:
            checkpoint(agent)
            raise Killed

    return pulse


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in KINDS[2:])) for k in KINDS])
def test_a_run_that_is_killed_anywhere_goes_on_bit_equal(kind, tmp_path):
    """Three updates an iteration at least: killed in the second iteration's, among those of the world or of the behaviour."""
    whole = learner(kind).learn(3)
    every = Checkpoint(tmp_path, seconds=0.0)
    with pytest.raises(Killed):
        learner(kind).learn(3, pulse=killed_after(2 if kind in LATENT_EXPLORERS else 4, every))
    again = every.resume(learner(kind))
    assert again.told == 1 and again._training is not None
    again.learn(2)
    assert same(whole, again) and torch.equal(
        whole.episodes.stretches[-1].weights, again.episodes.stretches[-1].weights
    )


def test_a_save_between_iterations_is_the_learner_and_what_was_seen_is_written_once(tmp_path):
    one = learner("lambda", compact=True).learn(2)
    segments = {p: p.stat().st_mtime_ns for p in one.save(tmp_path).glob("segment-*")}
    other = learner("lambda", compact=True).load(tmp_path)
    assert same(one, other) and len(segments) == 2
    assert one.learn(2).save(tmp_path) == tmp_path
    assert same(one, other.learn(2)) and other.episodes.stretches[0].seen.images.dtype == torch.uint8
    left = {p: p.stat().st_mtime_ns for p in tmp_path.glob("segment-*")}
    assert len(left) == 2 == len(one.episodes.stretches)  # of four iterations; the capacity is five episodes
    assert not set(left) & set(segments) and same(one, learner("lambda", compact=True).load(tmp_path))
    one.save(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("segment-*")} == left


def test_what_is_torn_or_another_is_named(tmp_path):
    one = learner("actsafe").learn(1)
    one.save(tmp_path)
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"seed": 1}, "seed 1"),
        ({"rate": 1e-3}, "another rate"),
        ({"updates": 3}, "another schedule"),
        ({"compact": True}, "another sight"),
        ({"precision": "bfloat16"}, "another precision"),
    )
    for change, named in changes:
        with pytest.raises(ValueError, match=named):
            learner("actsafe", **change).load(tmp_path)
    with pytest.raises(ValueError, match="another behaviour"):
        learner("lambda").load(tmp_path)
    with pytest.raises(ValueError, match="new learner"):
        one.load(tmp_path)
    segment = next(tmp_path.glob("segment-*"))
    data = segment.read_bytes()
    segment.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"segment.*torn"):
        learner("actsafe").load(tmp_path)
    segment.unlink()
    with pytest.raises(ValueError, match="No such file"):
        learner("actsafe").load(tmp_path)
    head = json.loads((tmp_path / "learner.json").read_text())
    assert not {"code", "class"} & set(head) and head["learner"] == "LatentAgent"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="a device of this machine, got cuda"):
        learner("actsafe", device="cuda")


def test_a_clock_decides_when_to_save(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pulse, agent = Checkpoint(tmp_path), learner("actsafe")
    saves = []
    for seconds in (60.0, 119.0, 120.0, 121.0, 240.0):
        now[0] = seconds
        pulse(agent)
        saves.append(pulse.saves)
    assert saves == [0, 0, 1, 1, 2] and (tmp_path / "learner.json").exists()


def test_parts_of_episodes_begin_anywhere_and_the_oldest_go_first():
    steps = torch.arange(6.0)
    kept, stream = Episodes(2, capacity=3), torch.Generator().manual_seed(0)
    for number in range(4):
        told = (10.0 * number + steps).expand(1, 6)
        kept.add(Seen(told[..., None], told[..., None], told, told, told[..., None]), stream)
    assert len(kept) == 3
    seen, weights = kept.sample(300, stream, length=4)
    assert seen.reward.shape == (300, 4) and weights.shape == (2, 300)
    assert {int(v) // 10 for v in seen.reward[:, 0]} == {1, 2, 3} and {int(v) % 10 for v in seen.reward[:, 0]} == {
        0,
        1,
        2,
    }
    assert torch.equal(seen.reward.diff(dim=1), torch.ones(300, 3)) and torch.equal(seen.images[..., 0], seen.cost)
    assert kept.sample(1, stream, length=99)[0].reward.shape == (1, 6)


@pytest.mark.parametrize("device", DEVICES)
def test_rounded_products_leave_states_and_weights_as_they_were_kept(device, tmp_path):
    """Mixed precision: the loss of the same weights is near, not equal; all that is kept is float32, and on the device."""
    exact, rounded = (learner("lambda", device=device, precision=p) for p in ("float32", "bfloat16"))
    for one in (exact, rounded):
        one.learn(2)
        assert {p.dtype for p in one.world.parameters()} == {torch.float32}
    losses = [one.rows[0]["loss"] for one in (exact, rounded)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)
    images = torch.rand(2, 3, 8, 8, 3)
    with rounded.world.precision():
        found = rounded.world.rssm.filter(images, torch.zeros(2, 3, 2), None)
    assert {found.states.feature.dtype, found.prior.mean.dtype, found.posterior.std.dtype} == {torch.float32}
    loaded = learner("lambda", device=device, precision="bfloat16").load(rounded.save(tmp_path))
    for one in (rounded, loaded):
        on = {v.device.type for v in (*one.world.parameters(), one.episodes.stretches[0].seen.images)}
        assert on == {device} and one.predict(images[0, 0], episode_start=True).device.type == "cpu"
