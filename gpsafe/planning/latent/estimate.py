"""What a learner of some size would need: parameters, memory, and the time of its updates, before anything is flown."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
        world_flops, behaviour_flops: of products and convolutions in an update, forwards and backwards.
        world_launches, behaviour_launches: operations in an update that are no views: about as many kernels on a GPU.
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
    world_flops: int
    behaviour_flops: int
    world_launches: int
    behaviour_launches: int
    world_seconds: float
    behaviour_seconds: float
    act_seconds: float
    total_seconds: float

    def gpu_seconds(self, updates: int, improvements: int) -> float:
        """So many updates of both kinds on a GPU, a guess: launches at 10 µs or 100 TFLOP/s, the longer of both."""
        world = max(LAUNCH * self.world_launches, self.world_flops / RATE)
        return updates * world + improvements * max(LAUNCH * self.behaviour_launches, self.behaviour_flops / RATE)

    @property
    def memory(self) -> int:
        """Weights, gradients, moments, activations and replay together."""
        return self.weights + self.moments + self.activations + self.replay


LAUNCH = 1e-5  # seconds between two small kernels of eager torch on a GPU, about
RATE = 1e14  # products and sums a second that a large GPU sustains in bfloat16, and more


@dataclass(frozen=True, slots=True)
class _Update:
    """What one costs."""

    seconds: float = 0.0
    activations: int = 0
    flops: int = 0
    launches: int = 0


class _Launches(TorchDispatchMode):
    """Counts what is dispatched and is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


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
    learn = _cost(world, nets, lambda: world.update(episodes, stream, batch=s.batch, length=s.length), updates)
    times = updates if behaviour.updates else 0
    improve = _cost(world, nets, lambda: behaviour.improve(world, starts, stream), times)
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
        activations=max(learn.activations, improve.activations),
        replay=kept * (plant.horizon + 1) * frame,
        peak=torch.cuda.max_memory_allocated(world.device) if world.device.type == "cuda" else 0,
        world_flops=learn.flops,
        behaviour_flops=improve.flops,
        world_launches=learn.launches,
        behaviour_launches=improve.launches,
        world_seconds=learn.seconds,
        behaviour_seconds=improve.seconds,
        act_seconds=acting,
        total_seconds=iterations
        * (s.updates * learn.seconds + behaviour.updates * improve.seconds + plant.horizon * acting),
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


def _cost(world: World, nets: list[nn.Module], work: Callable[[], object], count: int) -> _Update:
    """Of one; the first is counted, the others are timed."""
    if not count:
        return _Update()
    kept, launches, flops = _Kept(*nets), _Launches(), FlopCounterMode(display=False)
    with kept(), flops, launches:
        work()
    begun = _clock(world)
    for _ in range(count):
        work()
    seconds = (_clock(world) - begun) / count
    return _Update(seconds, kept.total, flops.get_total_flops(), launches.count)


def _acting(agent: LatentAgent, world: World, behaviour: Behaviour, count: int) -> float:
    """Of a plan every third step, its share."""
    policy = agent.policy(behaviour, number=0)
    image = _blank(agent, agent.schedule.episodes, 1).images[:, 0]
    spent, steps = torch.zeros(agent.schedule.episodes, dtype=torch.float64), 3 * count
    begun = _clock(world)
    for _ in range(steps):
        policy(image, spent)
    return (_clock(world) - begun) / steps
