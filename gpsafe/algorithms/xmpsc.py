"""X-MPSC (Gronauer et al. 2024, Algorithm 1): an agent proposes, tubes of its model certify, the set of certified states grows.

    plant = SafeCartPole()
    learner = XMPSC.create(plant, preset("cart-pole"), prior=plant.prior())
    learner.learn(400)                            # episodes; the first ones are warm-up under the plant's safe controller
    learner.logger.frame()                        # a row an episode: who chose its inputs, violations, times, capture rate

Warm-up transitions train the model and, if the preset says so, the policy. After that every input that the agent (soft
actor-critic on real and on virtual transitions, `gpsafe.planning.mbpo`) proposes goes through a `SafetyFilter`. Learning takes
place between episodes: what the published loop does in the middle of one (every 64 steps updates of the agent, every so many
an epoch of the ensemble and new virtual rows, every epoch a new terminal set) is done when the episode is told, in the same
order and number. So model, agent and certificates stand still while one is flown, and `ask` and `tell` serve a robot.

**Not guaranteed**, and no episode is called so. Paper mode: tubes one standard deviation wide, a hull as terminal set. Sound
mode: the log counts the decisions that were *backed* (`gpsafe.safety.filter`), each under the assumptions of its certificate.
Among those is a noise event for each plan; over the plans of an episode no probability is counted. An ensemble's calibration
is an assumption, too, which closed loops break.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._threads import one_blas_thread
from gpsafe.algorithms import xmpsc_state
from gpsafe.algorithms.certification import Certification, Model, NoInvariantSetError
from gpsafe.algorithms.learner import MODEL, PLANNER, PLANT, START, Book, EpisodePolicy, Learner, Stream, stream
from gpsafe.algorithms.xmpsc_state import Standing
from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, identity_prior, refit
from gpsafe.models._prior import Prior
from gpsafe.planning.mbpo import SAC, Preset, Ring, branch, sampler, starts, train
from gpsafe.policies.rollout import transitions
from gpsafe.safety.filter import Decision, SafetyFilter
from gpsafe.safety.flight import capture, tally
from gpsafe.sets.polytope import Polytope
from gpsafe.systems.base import is_violation
from gpsafe.systems.episodic import Episodic

CHANGED = 1e-6  # ‖u_L − u‖ from which an input counts as corrected


def _dynamics(model: Model) -> Ensemble | GP:
    return model if isinstance(model, Ensemble) else model.model


class CertifiedPolicy(EpisodePolicy):
    """An episode of the agent behind its filter. It remembers what was proposed and decided.

    Attributes:
        decisions: of the filter, one a step; none without one.
        proposed: u_L of each step, (nu,).
        seconds: CPU time that the filter took, one a step.
        truth: true states (T + 1, nx), where the plant is a simulation.
    """

    def __init__(
        self, act: Callable[[Tensor], Tensor], safe: SafetyFilter | None, system: Episodic, **about: Any
    ) -> None:
        super().__init__(self._decide, system, **about)
        self._propose, self._filter = act, None if safe is None else safe.start()
        self.decisions: list[Decision] = []
        self.proposed: list[Tensor] = []
        self.seconds: list[float] = []
        self.truth: Tensor | None = None

    def _decide(self, x: Tensor) -> Tensor:
        learned = self._propose(x)
        self.proposed.append(learned)
        if self._filter is None:
            return learned
        begun = time.process_time()
        decision, self._filter = self._filter.decide(x, learned)
        self.seconds.append(time.process_time() - begun)
        self.decisions.append(decision)
        return decision.u

    def refuted_by(self, states: Tensor, inputs: Tensor) -> str | None:
        """The first refutation of the filter's assumptions, in words; the last measured state counts, if flown to."""
        if self._filter is None:
            return None
        return (self._filter.arrived(states[-1]) if self.followed(states, inputs) else self._filter).falsified


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class XMPSC(Learner):
    """The algorithm's arguments.

    Args:
        system: the plant: starts, limits, reward, safe controller; `advance` by `learn` alone.
        model: before any data: an ensemble, or F_0 of a Gaussian process whose kernel is frozen.
        preset: budgets and parameters of the agent, see `gpsafe.planning.mbpo.presets`.
        certification: what stands between agent and plant; None: nothing does (MBPO).
        thinned: every so manieth transition is told to a Gaussian process, whose cost grows with the cube of their number.
        seed, stream: see `Learner`.
    """

    system: Episodic  # pyright: ignore[reportIncompatibleVariableOverride]  (narrower, and frozen)
    model: Model
    preset: Preset
    certification: Certification | None = field(default_factory=Certification)
    thinned: int = 40
    seed: int = 0
    stream: Stream = stream
    _book: Book = field(init=False, repr=False, default_factory=Book)

    def __post_init__(self) -> None:
        where = "XMPSC"
        _require.index(where, "seed", self.seed)
        _require.count(where, "thinned", self.thinned)
        if not isinstance(self.system, Episodic):
            expected = "an Episodic system (starts, limits, a safe controller)"
            raise _require.fail(where, expected, type(self.system).__name__)
        model = _dynamics(self.model)
        wanted = (self.system.nx, self.system.nu)
        if (model.nx, model.nu) != wanted:
            raise _require.fail(where, f"a model of (nx, nu) = {wanted}", (model.nx, model.nu))

    @staticmethod
    def create(
        system: Episodic,
        preset: Preset,
        *,
        prior: Prior = identity_prior,
        certification: Certification | Literal["published"] | None = "published",
        seed: int = 0,
    ) -> XMPSC:
        """With an ensemble as the preset has it, from the random numbers of `seed`.

        Args:
            system: the plant.
            preset: see the class.
            prior: known part; the ensemble learns what it leaves out.
            certification: "published": paper mode with the preset's N, c and delay, and hulls in the limited coordinates.
            seed: of everything.
        """
        ensemble = Ensemble.create(
            system.nx,
            system.nu,
            generator=stream(seed, MODEL, 0),
            members=preset.members,
            hidden=preset.hidden,
            std_limits=preset.std_limits,
            prior=prior,
            training=preset.training(),
        )
        if certification == "published":
            certification = Certification(
                states=preset.horizon, feedback=preset.feedback, dims=system.limited, delay=preset.delay
            )
        return XMPSC(system, ensemble, preset, certification, seed=seed)

    # ------------------------------------------------------------------ what it is
    @property
    def unsound(self) -> str:
        """See `Learner`: never None."""
        if self.certification is None:
            return "nothing stands between agent and plant"
        if self.certification.mode == "paper":
            return "the published tubes are one standard deviation wide, and their terminal set need not be invariant"
        if isinstance(self.model, Ensemble):
            return "the ensemble's calibration is an assumption that closed loops break"
        return "the noise event of a certificate is that of one plan: none is counted over an episode"

    @property
    def steps(self) -> int:
        """Environment steps after warm-up."""
        return self._book.counts.get("steps", 0)

    @property
    def standing(self) -> Standing:
        """Agent, buffers, model and terminal set as they stand."""
        return self._book.state.get("standing") or self._fresh()

    def _fresh(self) -> Standing:
        system, preset = self.system, self.preset
        agent = SAC(system.nx, system.nu, system.input_box.lower, system.input_box.upper, [self.seed], preset.sac)
        rows = preset.warm_up + preset.epochs * preset.steps + 2 * system.horizon
        real, virtual = (Ring(n, system.nx, system.nu) for n in (rows, max(preset.virtual_rows, 1)))
        self._book.state["standing"] = found = Standing(agent, real, virtual, self.model)
        return found

    def filter(self) -> SafetyFilter | None:
        """What decides on the inputs of the next episode; None without certification, and during warm-up."""
        at, how, cache = self.standing, self.certification, self._book.cache
        if how is None or at.version == 0:  # before the end of the warm-up
            return None
        if cache.get("filter", (0, None))[0] != at.version:
            build = partial(how.filter, self.system, at.model, at.apart, episodes=self._book.history[: at.flown])
            made = None
            if how.terminal == "invariant" and how.mode == "sound":  # certified for one model, of no use for the next
                with suppress(
                    NoInvariantSetError
                ):  # of a poor model: the last set stands, or the hull, until it is better
                    made = build()
                    at.fixed = made.problem.terminal
            if made is None:
                made = build(terminal=at.fixed or (None if at.hull is None else at.hull.polytope))
            cache["filter"] = (at.version, made)
        return cache["filter"][1]

    def _terminal(self) -> dict[str, Any]:
        """The set in use: which kind, and how large in the coordinates that it limits."""
        at, cache, safe = self.standing, self._book.cache, self.filter()
        if safe is None:
            return {}
        if cache.get("terminal", (0, {}))[0] != at.version:
            body, hull = safe.problem.terminal, None if at.hull is None else at.hull.polytope
            flown = hull is not None and torch.equal(body.H, hull.H) and torch.equal(body.h, hull.h)
            kind = "hull" if flown else "invariant"
            limited = Polytope(body.H[:, (body.H != 0).any(0)], body.h)
            cache["terminal"] = (at.version, {"terminal": kind, "terminal_volume": limited.volume()})
        return cache["terminal"][1]

    # ------------------------------------------------------------------ episodes
    def _start_of(self, where: str, start: Any) -> Tensor:
        """A measured start of its own for every episode, or the one that is given."""
        if start is not None:
            return super(XMPSC, self)._start_of(where, start)
        return self._first(self.told)[1]

    def _first(self, number: int) -> tuple[Tensor, Tensor]:
        """True and measured first state of an episode."""
        generator = self.stream(self.seed, START, number)
        true = self.system.initial(1, generator)
        return true[0], self.system.observe(true, generator)[0]

    def _choose(self, number: int, start: Tensor) -> EpisodePolicy:
        about = {"number": number, "start": start}
        if self.standing.version == 0:
            generator = self.stream(self.seed, PLANNER, number)
            told = "warm-up: the plant's safe controller and random inputs"
            warm = partial(_warm_up, self.system, generator)
            return CertifiedPolicy(warm, None, self.system, unsound=told, **about)
        act = partial(_input, self.system, self.standing.agent, self._random(PLANNER, number))
        return CertifiedPolicy(act, self.filter(), self.system, unsound=self.unsound, **about)

    def _random(self, purpose: int, number: int, event: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number, event])

    def rollout(self, policy: EpisodePolicy) -> tuple[Tensor, Tensor]:
        """One episode on the plant, with the noise of its number: measured states (t + 1, nx), inputs (t, nu), t ≤ T."""
        system, noise = self.system, self.stream(self.seed, PLANT, policy.number)
        true, seen = self._first(policy.number)
        if not torch.equal(seen, policy.start):
            true = seen = policy.start
        truth, states, inputs = [true], [seen], []
        while len(inputs) < system.horizon and not bool(system.terminated(true)):
            inputs.append(policy(seen))
            true = system.advance(true.unsqueeze(0), inputs[-1].unsqueeze(0), noise)[0]
            seen = system.observe(true.unsqueeze(0), noise)[0]
            truth.append(true)
            states.append(seen)
        if isinstance(policy, CertifiedPolicy):
            policy.truth = torch.stack(truth)
        return torch.stack(states), torch.stack(inputs)

    def _learn(self, number: int, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> Mapping[str, Any]:
        at, system, counts = self.standing, self.system, self._book.counts
        flown = asked if isinstance(asked, CertifiedPolicy) and asked.inputs else None
        truth = states if flown is None or flown.truth is None else flown.truth
        after, warm = truth[1:], at.version == 0
        reward, terminal = system.reward(after, inputs), torch.zeros(len(inputs), dtype=torch.float64)
        terminal[-1] = system.terminated(truth[-1])
        at.real.add(states[:-1], inputs, reward, states[1:], terminal)
        violated = int(is_violation(system.cost(after)).sum())
        row: dict[str, Any] = {"phase": "warm-up" if warm else "train", "reward": float(reward.sum()), "cost": violated}
        if warm:
            counts["warm-up"] = counts.get("warm-up", 0) + len(inputs)
            if counts["warm-up"] >= self.preset.warm_up:
                self._begin(states, inputs)
            return row | {"violations": violated}
        row |= {"violations": violated, "env_steps": self.steps + len(inputs)} | self._account(flown, states, inputs)
        before, counts["steps"] = self.steps, self.steps + len(inputs)
        self._train(number, before, transitions(states, inputs))
        return row

    def _account(self, flown: CertifiedPolicy | None, states: Tensor, inputs: Tensor) -> dict[str, Any]:
        """Each step is one of `SOURCES`; how far inputs were corrected, plans' times, and whether tubes held the next state."""
        decisions = [] if flown is None else flown.decisions
        row: dict[str, Any] = {**tally(decisions, len(inputs))}
        if isinstance(self.standing.model, Ensemble):
            row["disagreement"] = float(self.standing.model.predict(states[:-1], inputs).std.norm(dim=-1).mean())
        if flown is None or not decisions:
            return row
        change = (torch.stack(flown.proposed) - inputs).norm(dim=-1)
        row |= {"corrected": int((change > CHANGED).sum()), "change": float(change.mean())}
        row |= {**capture(decisions), "certify_ms": 1e3 * float(np.median(flown.seconds))}
        row |= self._terminal()
        row["refuted"] = flown.refuted_by(states, inputs) or ""
        if self.standing.hull is not None:
            self.standing.certified += [x for x, d in zip(states, decisions, strict=False) if d.source == "plan"]
        return row

    # ------------------------------------------------------------------ learning
    @one_blas_thread()
    def _begin(self, states: Tensor, inputs: Tensor) -> None:
        """After warm-up: the first model, policy and terminal set."""
        at, how, preset = self.standing, self.certification, self.preset
        episodes = [*self._book.history, (states, inputs)]
        rows = [transitions(x, u) for x, u in episodes]
        data = Transitions(*(torch.cat([getattr(r, name) for r in rows]) for name in ("x", "u", "x_next")))
        self._fit(data, epochs=preset.warm_up_epochs)
        if preset.pretrain:
            at.agent.imitate(at.real.x[None], at.real.u[None])
        if how is not None and (how.terminal == "hull" or how.mode == "sound"):
            at.hull = how.first(self.system, torch.stack([x[0] for x, _ in episodes]))
        elif how is not None:
            at.fixed = how.invariant(self.system, at.model, at.apart)
        at.version, at.flown = at.version + 1, len(episodes)

    def _fit(self, data: Transitions, *, epochs: int = 1) -> None:
        """The model with further transitions."""
        at, how = self.standing, self.certification
        if not isinstance(at.model, Ensemble):
            part = slice(None, None, self.thinned)  # chosen by its number, not by its outcome: the theorems allow that
            at.told.append(data.select(part))
            at.model = at.model.update(at.model.model.condition(at.told[-1]))
            return
        if how is not None and how.mode == "sound":
            kept = torch.arange(len(data)) % how.apart == how.apart - 1
            if bool(kept.any()):
                fresh = data.select(kept)
                at.apart = fresh if at.apart is None else at.apart + fresh
                data = data.select(~kept)
        share = 0.0 if at.memory is None else None  # the published loop holds rows out after the warm-up only
        at.model, at.memory = refit(at.model, data, at.memory, epochs=epochs, held_out=share)

    @one_blas_thread()
    def _train(self, number: int, before: int, data: Transitions) -> None:
        """What the published loop does in the steps of this episode, in its order."""
        at, preset, now = self.standing, self.preset, before + len(data)
        at.pending = data if at.pending is None else at.pending + data
        for step in range(before + 1, now + 1):
            if step % preset.model_every == 0:
                if at.pending is not None:
                    self._fit(at.pending)
                at.pending = None
                at.version, at.flown = at.version + 1, number + 1
                if preset.imagines:
                    random, length = self._random(MODEL, number, step), preset.schedule(step // preset.steps)
                    begin = starts(at.real, preset.steps * preset.rollouts, random)
                    at.virtual.extend(
                        branch(sampler(_dynamics(at.model)), self.system, at.agent.policy(0), begin, length, random)
                    )
            if step % preset.update_every == 0:
                train(
                    at.agent,
                    [at.real],
                    [at.virtual] if len(at.virtual) else None,
                    preset.update_every * preset.group,
                    group=preset.group,
                    real_ratio=preset.real_ratio,
                    batch=preset.minibatch,
                )
            if step % preset.steps == 0 and at.hull is not None:
                none = torch.zeros(0, self.system.nx, dtype=torch.float64)
                at.hull, at.certified = at.hull.update(torch.stack(at.certified) if at.certified else none), []
                at.version, at.flown = at.version + 1, number + 1

    # ------------------------------------------------------------------ files
    def _kept(self) -> dict[str, np.ndarray]:
        """Years of updates are not made again: what stands is written down, and goes on bit-equal."""
        return xmpsc_state.pack(self.standing) if self.told else {}

    def _revive(self, arrays: Mapping[str, np.ndarray]) -> None:
        how = self.certification or Certification()
        xmpsc_state.unpack(self._fresh(), arrays, how.hulled(self.system), self.system.nx, how.delay - 1)

    # ------------------------------------------------------------------ use
    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """u (nu,) of the agent, without its exploration noise, through the filter.

        Calls in a row are the steps of one episode: the stored plan goes on. A new one begins at the first call, after T
        steps, after `tell`, and on request.
        """
        x = _require.real("XMPSC.predict", "observation", observation)
        x = _require.shape("XMPSC.predict", "observation", x, (self.system.nx,))
        if self.standing.version == 0:
            return self.system.backup(x.unsqueeze(0))[0]
        running = self._book.cache.get("running")
        if episode_start or running is None or running[0] != self.told or len(running[1].inputs) >= self.system.horizon:
            act = partial(_input, self.system, self.standing.agent, None)
            policy = CertifiedPolicy(act, self.filter(), self.system, number=self.told, start=x, unsound=self.unsound)
            running = self._book.cache["running"] = (self.told, policy)
        return running[1](x)


def _warm_up(system: Episodic, generator: torch.Generator, x: Tensor) -> Tensor:
    return system.warm_up(x.unsqueeze(0), generator)[0]


def _input(system: Episodic, agent: SAC, noise: np.random.Generator | None, x: Tensor) -> Tensor:
    """The agent's action as u (nu,), with exploration noise or without: float32 may round it out of the input box."""
    drawn = None if noise is None else noise.standard_normal((1, 1, system.nu))
    return system.input_box.clip(torch.from_numpy(agent.act(x.reshape(1, 1, -1), drawn)[0, 0].astype(np.float64)))
