"""What a world model dreams: imagined frames beside true ones, where its members disagree, and where it expects a cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.lab.explorer import Explorer, Slider, panels
from gpsafe.models.rssm import RSSMSettings, State, disagreement
from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    LatentAgent,
    LatentPlanner,
    Schedule,
    Seen,
    World,
    empty_scene,
    point_goal_sight,
)
from gpsafe.systems.point_goal import PointGoal

SHOWN = 8  # frames of a strip


def places(plant: PointGoal, side: int) -> Tensor:
    """(side², 2) over the arena, row by row from the bottom."""
    line = torch.linspace(-plant.arena, plant.arena, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(-1)


@torch.no_grad()
def walks(plant: PointGoal, world: World, ends: Tensor) -> State:
    """Beliefs (n, ·) in places (n, 2), after a straight walk there from the start, all of it seen.

    A still picture would say less: it is nothing that the model has ever met.
    """
    start = plant.initial_state
    steps = int((ends - start).abs().max() / plant.stride) + 1
    along = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None, None]
    frames = world.sight.see((start + along * (ends - start)).reshape(-1, 2)).unflatten(0, (steps + 1, len(ends)))
    inputs = ((ends - start) / (steps * plant.stride)).expand(steps + 1, -1, -1).clone()
    inputs[0] = 0.0
    return world.rssm.filter(frames.movedim(0, 1), inputs.movedim(0, 1), None).states[-1]


@short
@dataclass(frozen=True, slots=True, eq=False)
class Dreams:
    """A world model of the point among hazards, and episodes that it has not seen.

    Attributes:
        plant: the plant.
        world: the model.
        seen: true states that it learnt from, (E, T + 1, 2), which it saw as pictures only.
        test: further episodes.
        states: their true states, (B, T + 1, 2).
        side: places of a map along each axis.
        beliefs: of the model in every place of the map, (side², ·), see `walks`.
    """

    plant: PointGoal
    world: World
    seen: Tensor
    test: Seen
    states: Tensor
    side: int
    beliefs: State

    @staticmethod
    def learn(
        plant: PointGoal | None = None,
        *,
        episodes: int = 40,
        updates: int = 500,
        tests: int = 12,
        size: int = 16,
        side: int = 28,
        seed: int = 0,
    ) -> Dreams:
        """Episodes with uniform inputs, and gradient steps on them.

        Args:
            plant: which.
            episodes: to learn from.
            updates: gradient steps.
            tests: episodes that it does not learn from.
            size: pixels of a side.
            side: places of a map along each axis.
            seed: of everything.
        """
        plant = plant or PointGoal()
        settings = RSSMSettings(
            (size, size, 3), nu=2, deterministic=48, stochastic=6, hidden=48, embedding=32, depth=0, observation_std=0.1,
            least_std=0.02, free_nats=0.0,
        )  # fmt: skip
        uniform = LatentPlanner(LATENT_EXPLORERS["uniform"], plant.input_box, plant.budget, plant.horizon)
        schedule = Schedule(episodes=episodes, updates=updates)
        sight = point_goal_sight(plant, size=size)
        agent = LatentAgent(plant, sight, settings, uniform, schedule=schedule, seed=seed, rate=4e-3)
        flown = agent.rollout(agent.ask())
        agent.tell(flown)
        further = agent.rollout(agent.policy(uniform, number=1))
        rows = torch.arange(_require.count("Dreams.learn", "tests", tests))
        beliefs = walks(plant, agent.world, places(plant, _require.count("Dreams.learn", "side", side, minimum=2)))
        return Dreams(plant, agent.world, flown.states, further.seen[rows], further.states[rows], side, beliefs)

    # ------------------------------------------------------------------------------------------------------- frames
    @torch.no_grad()
    def imagined(self, given: int) -> State:
        """Latent states (T + 1 − given, M, B, ·) of all members after `given` frames, by the inputs taken; without sampling."""
        test, rssm = self.test, self.world.rssm
        if not 1 <= given < test.images.shape[1]:
            raise _require.fail("Dreams", f"1 to {test.images.shape[1] - 1} frames given", given)
        belief = rssm.filter(test.images[:, :given], test.actions[:, :given], None).states[-1]
        ahead = iter(test.actions[:, given:].movedim(1, 0).to(belief.stochastic))
        members, steps = rssm.settings.members, test.images.shape[1] - given
        return rssm.imagine(belief, lambda _: next(ahead).expand(members, -1, -1), steps, None, apart=True)[0][1:]

    @torch.no_grad()
    def errors(self, given: int) -> tuple[Tensor, Tensor, Tensor]:
        """Root mean square distances, k = 1 … steps after the last frame given, (steps,) each: between the place that a member
        reads in its dream and the true one; between members and their mean; and of standing still.
        """
        told = self.world.readings(self.imagined(given)).double()  # (steps, M, B, 2)
        truth = self.states[:, given:].movedim(1, 0).unsqueeze(1)
        still = self.states[:, given - 1] - self.states[:, given:].movedim(1, 0)

        def size(gap: Tensor) -> Tensor:
            return gap.square().sum(-1).flatten(1).mean(-1).sqrt()

        return size(told - truth), size(told - told.mean(1, keepdim=True)), size(still)

    def draw(self, figure: Figure, *, episode: int, given: int) -> None:
        """A strip of true frames, and the same in the dream (mean over members)."""
        axes = panels(figure, 2, SHOWN)
        with torch.no_grad():
            dreamt = self.world.rssm.decode(self.imagined(given)).mean(1)[:, episode]
        empty = empty_scene(self.plant, self.test.images.shape[2]).float()
        steps = torch.linspace(0, len(dreamt) - 1, SHOWN, dtype=torch.float64).round().long().tolist()
        for column, k in enumerate(steps):
            for row, frame in enumerate((self.test.images[episode, given + k], dreamt[k])):
                at = axes[row * SHOWN + column]
                at.imshow((frame + empty).clamp(0, 1).numpy())
                at.set(xticks=(), yticks=())
            axes[column].set_title(f"+{k + 1}")
        axes[0].set_ylabel("true")
        axes[SHOWN].set_ylabel("dreamt")

    def explorer(self, *, episode: int = 0, given: int = 5) -> Explorer:
        """Choose an episode, and how much of it is shown before the dream begins."""
        return Explorer(
            self.draw,
            (10.0, 2.9),
            episode=Slider("episode", range(len(self.states)), episode),
            given=Slider("frames given", range(1, 21), given),
        )

    # --------------------------------------------------------------------------------------------------------- maps
    @property
    def places(self) -> Tensor:
        """(side², 2), see `places`."""
        return places(self.plant, self.side)

    def _map(self, values: Tensor) -> Tensor:
        return values.reshape(self.side, self.side).double()

    @torch.no_grad()
    def misread(self) -> Tensor:
        """Distance between every place and where the model takes itself to be, (side, side), row 0 at the bottom."""
        return self._map(torch.linalg.vector_norm(self.world.readings(self.beliefs) - self.places, dim=-1))

    @torch.no_grad()
    def doubt(self) -> Tensor:
        """Disagreement of the members about the next step, mean over eight directions, (side, side)."""
        turn = torch.arange(8, dtype=torch.float64) * torch.pi / 4
        ahead = (torch.stack([a.cos(), a.sin()]).expand(self.side**2, 2) for a in turn)
        found = [disagreement(self.world.rssm.predict(self.beliefs, u)[1]) for u in ahead]
        return self._map(torch.stack(found).mean(0))

    @torch.no_grad()
    def hazard(self, *, known: bool) -> Tensor:
        """Expected cost in every place, (side, side): the known cost of what is read there, or the head's."""
        return self._map(self.world.outcome(self.beliefs)[1] if known else self.world.head_cost(self.beliefs))

    def visited(self) -> Tensor:
        """Whether the data has a state within half a step of a place, (side, side)."""
        near = torch.cdist(self.places, self.seen.reshape(-1, 2)).amin(-1) <= 0.5 * self.plant.stride
        return near.reshape(self.side, self.side)

    def draw_map(self, axes: Axes, values: Tensor, *, top: float | None = None, data: bool = True) -> None:
        """A map of the arena, with the hazards as they are, the goal, and what the data saw."""
        half = self.plant.arena * (1 + 1 / (self.side - 1))
        axes.imshow(
            values.numpy(),
            origin="lower",
            extent=(-half, half, -half, half),
            cmap=plotting.colour_map(),
            vmin=0.0,
            vmax=top,
        )
        around = torch.linspace(0, 2 * torch.pi, 60, dtype=torch.float64)
        ring = torch.stack([around.cos(), around.sin()], dim=-1)
        for center in self.plant.hazards:
            axes.plot(*(center + self.plant.hazard_radius * ring).T, **plotting.look("unsafe").line)
        axes.plot(*(self.plant.goal + self.plant.goal_radius * ring).T, **plotting.look("safe").line)
        if data:
            axes.plot(*self.seen.reshape(-1, 2).T, **{**plotting.look("data").points, "markersize": 1.0})
        axes.set(xlim=(-half, half), ylim=(-half, half), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
