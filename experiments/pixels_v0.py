"""What an ensemble of world models "certifies" from pixels, beside what a Gaussian process certifies from the same episodes.

The first reference plant (`gpsafe.systems.reference`) with its 81 set-point policies, of which the true cost is enclosed by two
sweeps with f* itself. The world model sees 16×16 images; the policies act on the state, and in imagination on the state that is
read, on which the cost is known too: from the centroid of the decoded image, or by a linear map of the latent state, fitted to
the episodes seen, which extrapolates where a picture cannot. S_n of the Gaussian process is sound. The latent sets are
heuristics by several names: the worst member, the mean plus a multiple β of the spread of the members, the mean plus a
multiple of their disagreement. Three collectors choose the episodes, and every rule speaks of the episodes of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.session import DPSession
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.models.rssm import RSSM, RSSMSettings, State
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_set import SafePolicySet
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.pixels import Capsules, rasterise
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, grouped, mean_interval, plus_minus

CAPTION = (
    "Intervals are 95 %. S* has {safe} of 81 policies; {unsafe} are unsafe. False: members that are surely unsafe. Lost: "
    "members of one episode that are none in the next. The policy that a rule would execute is the one in its set (with S_0) "
    "on which the members disagree most; for the Gaussian process it is the most uncertain member of S_n. Everything but the "
    "Gaussian process is heuristic."
)
GRID = Box(vector(-1.0), vector(1.5))
WINDOW = (-1.0, 1.75)  # states at the left and right edge of an image
SIZE = 16
BETAS = (0.0, 1.0, 2.0, 4.0, 8.0)
BONUSES = (0.01, 0.1, 1.0)  # on the summed disagreement; the published code has 0.001, or 50 on its cart-pole
RULES = ("worst member", *(f"mean + {b:g} spread" for b in BETAS), *(f"mean + {b:g} disagreement" for b in BONUSES))
COLLECTORS = {
    "gp": "the GP's S_n",
    "latent": "the worst member's set",
    "uniform": "all 81 policies",
}
READERS = {"picture": "the decoded picture's centroid", "linear": "a linear map of the latent state"}
GAUSSIAN = "Gaussian process (sound)"
BARS = (GAUSSIAN, "worst member")  # the rules whose intervals are drawn; those of all are in the table


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    episodes: int = 12
    """Episodes of 20 steps."""
    updates: int = 30
    """Gradient steps on the world model after each episode."""
    members: int = 5
    """Of the ensemble."""
    rollouts: int = 8
    """Imagined episodes of a policy in a member."""
    batch: int = 16
    """Episodes in a gradient step."""
    cells: int = 250
    """Cells of the robust program of the Gaussian process."""
    collectors: tuple[str, ...] = ("gp", "latent", "uniform")
    """Who chooses the episodes."""

    def __post_init__(self) -> None:
        _require.names("--collectors", self.collectors, COLLECTORS)


@cache
def _plant() -> RKHSTwin:
    return reference_1d()


@cache
def _truth(cells: int) -> line.Truth:
    program, policies = RobustDP(Grid(GRID, (cells,)), Task.of(_plant())), reference_1d_policies()[0]
    enclosure = program.enclosure(ConfidenceSet(_bound()).update(_model()), policies)
    exact = enclosure.with_residual(_plant().residual_fn(enclosure.z))
    return line.Truth(program.lower(exact), program.upper(exact))


def _model() -> GP:
    plant = _plant()
    noise = float(plant.noise_std[0])
    return GP.create(plant.kernels, noise**2, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)


def _bound() -> Mixture:
    return Mixture(rkhs_norm=tuple(_plant().rkhs_norm.tolist()), subgaussian=float(_plant().noise_std[0]), delta=0.1)


# ---------------------------------------------------------------------------------------------------- the picture
def seen(x: Tensor) -> Tensor:
    """States (*b, 1) ↦ grey images (*b, 16, 16, 1), a bright disc on black, in [0, 1]."""
    middle, half = 0.5 * (WINDOW[0] + WINDOW[1]), 0.5 * (WINDOW[1] - WINDOW[0])
    flat = (x.reshape(-1, 1) - middle) / half
    place = torch.stack([flat, torch.zeros_like(flat)], dim=-1)
    disc = Capsules(place, place, flat.new_full((1,), 0.2), flat.new_ones(1, 3))
    return rasterise(disc, size=SIZE, background=(0.0, 0.0, 0.0))[..., :1].unflatten(0, x.shape[:-1])


def read(image: Tensor) -> Tensor:
    """The state that an image (*b, 16, 16, 1) shows, (*b, 1): the centroid of what is brighter than a fifth."""
    light = (image[..., 0] - 0.2).clamp_min(0.0).sum(-2)  # (*b, columns)
    columns = torch.linspace(*WINDOW, 2 * SIZE + 1, dtype=image.dtype, device=image.device)[1::2]
    return ((light * columns).sum(-1) / light.sum(-1).clamp_min(1e-6)).unsqueeze(-1)


def _extended(feature: Tensor) -> Tensor:
    return torch.cat([feature, torch.ones_like(feature[..., :1])], dim=-1)


def _regressed(feature: Tensor, place: Tensor) -> Tensor:
    """Coefficients (F + 1, 1) of a ridge regression of states (T, B, 1) on features (T, B, F)."""
    rows, y = _extended(feature).flatten(0, 1), place.flatten(0, 1)
    return torch.linalg.solve(rows.T @ rows + 1e-3 * torch.eye(rows.shape[-1], dtype=rows.dtype), rows.T @ y)


# ------------------------------------------------------------------------------------------------- the world model
class Latent:
    """The ensemble, its bootstrap and its training; what it says of the cost of every policy."""

    def __init__(self, a: Arguments, reader: str, generator: torch.Generator) -> None:
        self.arguments, self.reader, self.generator = a, reader, generator
        settings = RSSMSettings(
            (SIZE, SIZE, 1), nu=1, deterministic=32, stochastic=4, hidden=48, embedding=32, members=a.members, depth=0,
            observation_std=0.1, least_std=0.02, free_nats=0.5,
        )  # fmt: skip
        self.model = RSSM(settings, generator)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=2e-3, eps=1e-5)
        self.images, self.actions, self.weights, self.places = [], [], [], []
        self.line = torch.zeros(0)  # of the linear reader

    def learn(self, states: Tensor, inputs: Tensor) -> float:
        """Adds an episode, trains, and returns the error of the state read after filtering it, in units of the state."""
        a = self.arguments
        self.images.append(seen(states).float())
        self.actions.append(torch.cat([torch.zeros_like(inputs[:1]), inputs]).float())
        self.places.append(states)
        self.weights.append(torch.poisson(torch.ones(a.members), generator=self.generator))
        images, actions, weights = (torch.stack(of) for of in (self.images, self.actions, self.weights))
        for _ in range(a.updates):
            rows = torch.randint(len(images), (a.batch,), generator=self.generator)
            loss = self.model.loss(images[rows], actions[rows], self.generator, weights=weights[rows].T)
            self.optimiser.zero_grad()
            loss.total.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 100.0)
            self.optimiser.step()
        with torch.no_grad():
            found = self.model.filter(images, actions, None).states
            self.line = _regressed(found.feature.double(), torch.stack(self.places, dim=1))
            error = self.read(found[:, -1])[1:, 0] - states[1:, 0]
        return float(error.square().mean().sqrt())

    def read(self, state: State) -> Tensor:
        """The plant's state that a latent state shows, (*b, 1)."""
        if self.reader == "picture":
            return read(self.model.decode(state)).double()
        return _extended(state.feature.double()) @ self.line

    @torch.no_grad()
    def costs(self, policies: AffinePolicies) -> tuple[Tensor, Tensor]:
        """Imagined Σ c of every policy in every member (M, P), mean over roll-outs, and the summed disagreement (P,)."""
        a, plant = self.arguments, _plant()
        begin = self.model.filter(seen(plant.initial_state.reshape(1, 1, 1)), torch.zeros(1, 1, 1), None).states[0]
        count = policies.num * a.rollouts
        start = State(begin.deterministic.expand(count, -1), begin.stochastic.expand(count, -1))
        cost = torch.zeros(a.members, policies.num, dtype=torch.float64)

        def act(state: State) -> Tensor:
            x = self.read(state)  # (M, P·rollouts, 1)
            cost.add_(plant.cost(x).reshape(len(x), policies.num, a.rollouts).mean(-1))
            by_policy = x.reshape(len(x), policies.num, a.rollouts, 1).transpose(0, 1).flatten(1, 2)
            u = policies(by_policy).unflatten(1, (len(x), a.rollouts)).transpose(0, 1)
            return u.reshape(*x.shape[:-1], 1).float()

        *_, doubt = self.model.imagine(start, act, plant.horizon, self.generator, apart=True)
        return cost, doubt.sum(0).reshape(policies.num, a.rollouts).mean(-1).double()


def claims(cost: Tensor, doubt: Tensor, budget: float) -> dict[str, Tensor]:
    """Which policies every rule calls safe, (P,) each."""
    mean, spread = cost.mean(0), cost.std(0)
    upper = {"worst member": cost.amax(0)}
    upper |= {f"mean + {b:g} spread": mean + b * spread for b in BETAS}
    upper |= {f"mean + {b:g} disagreement": mean + b * doubt for b in BONUSES}
    return {rule: value <= budget for rule, value in upper.items()}


# ---------------------------------------------------------------------------------------------------------- a run
def run(arguments: Arguments, seed: int, record: Record) -> None:
    """The same seed with every collector."""
    parts = [(collector, reader) for collector in arguments.collectors for reader in READERS]
    for i, (collector, reader) in enumerate(parts):
        record.progress(i, len(parts), f"{collector}, {reader}")
        record.piece(_key(collector, reader), lambda c=collector, r=reader: _episodes(arguments, c, r, seed))
    record.progress(len(parts), len(parts), "done")


def _key(collector: str, reader: str) -> str:
    return collector if reader == "picture" else f"{collector}-{reader}"


def _episodes(a: Arguments, collector: str, reader: str, seed: int) -> Piece:
    plant, generator = _plant(), torch.Generator().manual_seed(seed)
    (policies, initial), truth = reference_1d_policies(), _truth(8 * a.cells)
    unsafe, safe_now = truth.unsafe(plant.budget), truth.safe(plant.budget)
    latent = Latent(a, reader, generator)
    model, confidence = _model(), ConfidenceSet(_bound()).update(_model())
    session = DPSession.start(RobustDP(Grid(GRID, (a.cells,)), Task.of(plant)), confidence, policies)
    certified = SafePolicySet.initial(policies.num, initial, budget=plant.budget)
    given = torch.zeros(policies.num, dtype=torch.bool)
    given[initial] = True
    before = dict.fromkeys((*RULES, GAUSSIAN), torch.zeros_like(given))
    wanted = dict.fromkeys((*RULES, GAUSSIAN), int(initial[int(torch.randint(len(initial), (), generator=generator))]))
    rows, masks, costs = [], [], []
    for n in range(1, a.episodes + 1):
        drawn = int(torch.randint(policies.num, (), generator=generator))
        chosen = {"gp": wanted[GAUSSIAN], "latent": wanted["worst member"], "uniform": drawn}[collector]
        noise = sample_noise(plant.noise_std, (plant.horizon, 1, 1), generator)
        policy = policies.select(torch.tensor([chosen]))
        states, inputs = (v[0, 0] for v in closed_loop(plant.mean, policy, plant.initial_state, noise))
        model = model.condition(transitions(states, inputs))
        confidence = confidence.update(model)
        session = session.update(confidence)
        upper = torch.full((policies.num,), torch.inf, dtype=torch.float64)
        upper[certified.outsiders] = session.upper(certified.outsiders)
        certified = certified.expand(upper, episode=n, bound="robust-dp")
        wanted[GAUSSIAN] = int(certified.members[session.exploration(certified.members).argmax()])
        error = latent.learn(states, inputs)
        cost, doubt = latent.costs(policies)
        costs.append(cost)
        now = claims(cost, doubt, plant.budget)
        mask = torch.zeros_like(given)
        mask[certified.members] = True
        shared = {
            "collector": collector, "episode": n, "executed_unsafe": bool(unsafe[chosen]),
            "violations": int(plant.cost(states[:-1]).sum()), "read_error": error,
            "safe": int(safe_now.sum()), "unsafe": int(unsafe.sum()),
        }  # fmt: skip
        for rule in RULES:
            among = now[rule] | given
            wanted[rule] = int(doubt.where(among, -torch.inf).argmax())
            rows.append(shared | _row(rule, now[rule], before[rule], unsafe, wanted[rule]))
        rows.append(shared | _row(GAUSSIAN, mask, before[GAUSSIAN], unsafe, wanted[GAUSSIAN]))
        before = {**now, GAUSSIAN: mask}
        masks.append(torch.stack([*(now[rule] for rule in RULES), mask]))
    return Piece(
        rows, {"claimed": torch.stack(masks).to(torch.uint8), "cost": torch.stack(costs), "truth": truth.upper}
    )


def _row(rule: str, now: Tensor, before: Tensor, unsafe: Tensor, wanted: int) -> dict[str, Any]:
    return {
        "rule": rule,
        "members": int((now & ~unsafe).sum()),
        "false": int((now & unsafe).sum()),
        "lost": int((before & ~now).sum()),
        "would_be_unsafe": bool(unsafe[wanted]),
    }


# ------------------------------------------------------------------------------------------------------ the report
def report(runs: Sequence[Run]) -> Report:
    """Members, false certifications and losses by rule."""
    rows = [
        {**row, "reader": reader}
        for one in runs
        for collector in COLLECTORS
        for reader in READERS
        if (piece := one.pieces.get(_key(collector, reader))) is not None
        for row in piece.rows
    ]
    last = max(row["episode"] for row in rows)
    columns = (
        "state read from", "episodes from", "rule",
        f"true members after {last}", "runs with a false member", f"runs with one after {last}",
        "false members at worst (mean)", "members lost per run", "runs that would execute an unsafe policy",
    )  # fmt: skip
    table = []
    for (reader, collector, rule), group in grouped(rows, "reader", "collector", "rule").items():
        by_run = _by_run(group)
        table.append(
            (
                READERS[reader], COLLECTORS[collector], rule,
                plus_minus((r[-1]["members"] for r in by_run), 1),
                str(Share.of(any(row["false"] for row in r) for r in by_run)),
                str(Share.of(r[-1]["false"] > 0 for r in by_run)),
                plus_minus((max(row["false"] for row in r) for r in by_run), 1),
                plus_minus((sum(row["lost"] for row in r) for r in by_run), 1),
                str(Share.of(any(row["would_be_unsafe"] for row in r) for r in by_run)),
            )
        )  # fmt: skip
    caption = CAPTION.format(safe=rows[0]["safe"], unsafe=rows[0]["unsafe"])
    executed = [r for r in rows if r["rule"] == GAUSSIAN]
    counts = "; ".join(
        f"{READERS[r]}, episodes from {COLLECTORS[c]}: {sum(row['executed_unsafe'] for row in group)} of {len(group)}"
        for (r, c), group in grouped(executed, "reader", "collector").items()
    )
    return Report(
        figures={name: _figure([r for r in rows if r["reader"] == name]) for name in READERS},
        tables={"pixels": Table(columns=columns, rows=table, caption=caption)},
        notes=(f"Episodes that ran an unsafe policy: {counts}.",),
    )


def _by_run(group: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of one collector and rule, run by run: a run starts with episode 1."""
    found: list[list[Mapping[str, Any]]] = []
    for row in group:
        if row["episode"] == 1:
            found.append([])
        found[-1].append(row)
    return found


def _figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure = plotting.figure("screen", 6.2)
    groups = grouped(rows, "collector", "rule")
    collectors = list(dict.fromkeys(row["collector"] for row in rows))
    panels = figure.subplots(2, len(collectors), sharey="row", squeeze=False)
    shown = (*BARS, "mean + 0 spread", "mean + 8 spread", "mean + 0.01 disagreement", "mean + 0.1 disagreement")
    looks = plotting.looks(shown)
    drawn = [
        (panels[i, j], collector, key)
        for i, key in enumerate(("members", "false"))
        for j, collector in enumerate(collectors)
    ]
    for axes, collector, key in drawn:
        for rule, look in looks.items():
            columns = list(zip(*_by_run(groups[collector, rule]), strict=True))
            episodes = [column[0]["episode"] for column in columns]
            values = [[row[key] for row in column] for column in columns]
            if rule in BARS:
                mean, half = (np.array(v) for v in zip(*(mean_interval(v) for v in values), strict=True))
                low, high = (mean + sign * np.nan_to_num(half) for sign in (-1, 1))
                low, high = low.clip(0, None), high.clip(None, rows[0]["safe" if key == "members" else "unsafe"])
                plotting.intervals(axes, episodes, mean, low, high, noun=look, label=rule, joined=True)
            else:
                axes.plot(episodes, [np.mean(v) for v in values], label=rule, **look.marked)
        axes.set(xlabel="episode")
        if key == "members":
            axes.set_title(f"Episodes from {COLLECTORS[collector]}")
        if key == "members":
            plotting.limit(axes, rows[0]["safe"], label="truly safe")
    for i, label in enumerate(("safe policies called safe (mean)", "unsafe policies called safe (mean)")):
        panels[i, 0].set_ylabel(label)
    plotting.legend_beside(panels[0, -1])
    return figure


EXPERIMENT = Experiment(
    name="pixels-v0",
    title="What an ensemble of world models certifies from pixels, beside the Gaussian process",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(episodes=2, updates=2, members=2, rollouts=2, batch=2, cells=50, collectors=("latent",)),
        "quick": Arguments(),
        "full": Arguments(episodes=30, updates=200, rollouts=32, cells=500),
    },
    seeds={"smoke": 1, "quick": 20, "full": 50},
    run=run,
    report=report,
)
