"""What a learner of some size would need: parameters, memory, and the time of its updates, before anything is flown."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpsafe import _require
from gpsafe.planning.latent.agent import LatentAgent
from gpsafe.planning.latent.episodes import Episodes, Seen, Stretch
from gpsafe.planning.latent.policy import Behaviour
from gpsafe.planning.latent.training import Training
from gpsafe.planning.latent.world import World


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one learner; bytes and seconds.

    Attributes:
        world_parameters, behaviour_parameters: how many.
        weights: of both, and their gradients.
        moments: Adam's, of both.
        activations: what an update keeps for its gradients, of the world model's and of the behaviour's update the larger.
        replay: what was seen, once the capacity is reached (or after `iterations` if there is none).
        peak: most that the device had allocated, on a GPU; else 0.
        world_seconds, behaviour_seconds: of an update.
        act_seconds: of a step of all episodes side by side.
        total_seconds: of all iterations, updates and flights, without saves.
    """

    world_parameters: int
    behaviour_parameters: int
    weights: int
    moments: int
    activations: int
    replay: int
    peak: int
    world_seconds: float
    behaviour_seconds: float
    act_seconds: float
    total_seconds: float

    @property
    def memory(self) -> int:
        """Weights, gradients, moments, activations and replay together."""
        return self.weights + self.moments + self.activations + self.replay


class _Kept:
    """Counts the bytes of what autograd keeps, each storage once, parameters left out."""

    def __init__(self, *nets: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for net in nets for p in net.parameters()}
        self.sizes: dict[int, int] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __call__(self) -> AbstractContextManager[object]:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def estimate(agent: LatentAgent, iterations: int, *, updates: int = 2) -> Estimate:
    """Measured on a few updates with blank pictures, on the learner's device; it changes the learner, which is a new one.

    Args:
        agent: new.
        iterations: that would be run.
        updates: of each kind that are timed, after one that is not.
    """
    where = "estimate"
    if agent.told:
        raise _require.fail(where, "a new learner", f"one told {agent.told} iterations")
    _require.count(where, "updates", updates)
    s, plant, world, behaviour = agent.schedule, agent.system, agent.world, agent.behaviour
    steps = min(s.length or plant.horizon + 1, plant.horizon + 1)
    blank = _blank(agent, s.batch, steps)
    episodes = Episodes(world.rssm.settings.members)
    episodes.keep(Stretch(blank, torch.ones(s.batch, world.rssm.settings.members, device=world.device)))
    stream = torch.Generator(world.device).manual_seed(0)
    starts = Training.look(world, episodes, stream, s)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    nets = [world, *(v for v in getattr(behaviour, "__dict__", {}).values() if isinstance(v, nn.Module))]
    learn = _timed(world, nets, lambda: world.update(episodes, stream, batch=s.batch, length=s.length), updates)
    improve = _timed(world, nets, lambda: behaviour.improve(world, starts, stream), updates if behaviour.updates else 0)
    acting = _acting(agent, world, behaviour, updates)
    frame = _blank(agent, 1, 1).size
    kept = min(s.capacity or iterations * s.episodes, iterations * s.episodes)
    counts = [sum(p.numel() for p in world.parameters())]
    counts.append(sum(p.numel() for net in nets[1:] for p in net.parameters()))
    size = next(world.parameters()).element_size()
    return Estimate(
        world_parameters=counts[0],
        behaviour_parameters=counts[1],
        weights=2 * size * sum(counts),
        moments=2 * size * sum(counts),
        activations=max(learn[1], improve[1]),
        replay=kept * (plant.horizon + 1) * frame,
        peak=torch.cuda.max_memory_allocated(world.device) if world.device.type == "cuda" else 0,
        world_seconds=learn[0],
        behaviour_seconds=improve[0],
        act_seconds=acting,
        total_seconds=iterations * (s.updates * learn[0] + behaviour.updates * improve[0] + plant.horizon * acting),
    )


def _blank(agent: LatentAgent, count: int, steps: int) -> Seen:
    shape, sight, device = agent.world.rssm.settings.shape, agent.sight, agent.world.device
    images = torch.zeros(count, steps, *shape, dtype=torch.uint8 if sight.compact else torch.float32, device=device)
    zeros = torch.zeros(count, steps, dtype=torch.float64, device=device)
    inputs, readings = (zeros.new_zeros(count, steps, n) for n in (agent.system.nu, sight.readings))
    return Seen(images, inputs, zeros, zeros, readings)


def _clock(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def _timed(world: World, nets: list[nn.Module], work: Callable[[], object], count: int) -> tuple[float, int]:
    """Seconds of one, and bytes kept for its gradients."""
    if not count:
        return 0.0, 0
    kept = _Kept(*nets)
    with kept():
        work()
    begun = _clock(world)
    for _ in range(count):
        work()
    return (_clock(world) - begun) / count, kept.total


def _acting(agent: LatentAgent, world: World, behaviour: Behaviour, count: int) -> float:
    """Of a plan every third step, its share."""
    policy = agent.policy(behaviour, number=0)
    image = _blank(agent, agent.schedule.episodes, 1).images[:, 0]
    spent, steps = torch.zeros(agent.schedule.episodes, dtype=torch.float64), 3 * count
    begun = _clock(world)
    for _ in range(steps):
        policy(image, spent)
    return (_clock(world) - begun) / steps
