"""The safe policy set of a run of ActSafe on one state, episode by episode: who is in, by what right, who is not, and why."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.algorithms.explain import Explanation
from gpsafe.confidence import ConfidenceSet
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.lab.explorer import Explorer, Slider, Tiles, panels

CAUSES = {
    "width": "too little data where it goes",
    "distance": "too little data where it goes, and no member gets there",
    "grid": "the cells of the grid",
    "monte-carlo": "too few paths",
    "noise": "the noise",
    "policy": "what even the mean predicts of it",
    "horizon": "what every step gives away",
}
"""Why a policy was refused (`gpsafe.algorithms.explain`), in words."""


def _about(cost: float) -> str:
    return "less than 0.001" if cost < 1e-3 else f"at most {cost:.2g}"


@short
@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """What a run knew, policy by policy.

    Attributes:
        run: the record.
        targets: set-point of each policy, (P,).
        upper: UCB_n of each policy in episode n = 1 … N, (N, P).
        truth: rigorous bounds of J_c(π, f*), (P,) each.
        refused: policy → why the last episode before it entered (or the last of all) did not certify it.
    """

    run: ActSafeRun
    targets: Tensor
    upper: Tensor
    truth: tuple[Tensor, Tensor]
    refused: Mapping[int, Explanation]

    @staticmethod
    def of(run: ActSafeRun, targets: Tensor) -> Growth:
        """Evaluates every policy again with what was known in every episode, and asks why it was refused.

        Raises:
            ValueError: for a run whose costs are bounded by something else than the robust dynamic program.
        """
        learner = run.learner
        dp = None if learner is None else learner.cost_bound
        if not isinstance(learner, ActSafe) or not isinstance(dp, RobustDP):
            raise _require.fail("Growth.of", "a run of ActSafe.run with RobustDP", type(dp).__name__)
        known = [
            ConfidenceSet(learner.bound, run.confidence.generations[: n + 1]) for n in range(len(run.safe_sets) - 1)
        ]
        upper = torch.stack([dp.evaluate(f, learner.policies).upper for f in known])
        true = dp.enclosure(known[-1], learner.policies)
        true = true.with_residual(learner.system.residual_fn(true.z))  # type: ignore[attr-defined]
        refused = {}
        for policy in range(learner.policies.num):
            outside = [n for n, safe in enumerate(run.safe_sets[1:]) if policy not in safe]
            if outside:
                refused[policy] = learner.explained(known[outside[-1]], run.safe_sets[outside[-1] + 1], policy)
        return Growth(run, targets, upper, (dp.lower(true), dp.upper(true)), refused)

    @property
    def episodes(self) -> int:
        """N."""
        return len(self.upper)

    @property
    def budget(self) -> float:
        """d."""
        return self.run.safe_set.budget

    def noun(self, settings: Mapping[str, Any], policy: int) -> str:
        """What a policy is in an episode: the colour of its tile."""
        if policy == settings["policy"]:
            return "proposed"
        return "certified" if policy in self.run.safe_sets[settings["episode"]] else "faint"

    def told(self, episode: int, policy: int) -> str:
        """Why it is in S_n, or why not, in two sentences; and what is true."""
        name, safe = f"set-point {float(self.targets[policy]):+.3g}", self.run.safe_sets[episode]
        if policy in safe:
            witness = safe.witnesses[policy]
            if witness.rule == "given":
                said = f"{name} is in S_0: assumed safe, not certified."
            else:
                said = (
                    f"{name} is in since episode {witness.episode}: whichever function of F is true, it costs "
                    f"{_about(witness.value)} of the {self.budget:g} allowed."
                )
        elif episode == 0:
            said = f"{name} is not in S_0, and nothing was seen yet."
        else:
            value = float(self.upper[episode - 1, policy])
            said = f"{name} is not in: some function in F would cost up to {value:.3g}, and {self.budget:g} is allowed."
            last = self.refused[policy]
            said += f" Kept out last by {' and '.join(CAUSES[c] for c in last.causes)}. What would help: {last.advice}."
        low, high = (float(side[policy]) for side in self.truth)
        true = "it is safe" if high <= self.budget else "it is unsafe" if low > self.budget else "it may be either"
        return f"{said} In truth {true}, with {_about(high)} in expectation."

    def draw(self, figure: Figure, *, episode: int, policy: int) -> None:
        """U_n of all policies, the flights so far, |S_n|, and the words for one policy."""
        bounds, flights = panels(figure, 1, 2, width_ratios=(1.7, 1))
        safe, total = self.run.safe_sets[episode], self.run.learner.cost_bound.task.total_ceiling  # type: ignore[union-attr]
        inside = torch.zeros(len(self.targets), dtype=torch.bool)
        inside[safe.members] = True
        shown, true = (v.clamp(1e-3, total).log10() for v in (self.upper[max(0, episode - 1)], self.truth[1]))
        bounds.plot(self.targets, true, label="truth", **plotting.look("truth").line)
        for mask, noun, label in ((inside, "certified", f"in S: {len(safe)}"), (~inside, "unknown", "not in")):
            points = {**plotting.look(noun).points, "marker": "o" if noun == "certified" else "x", "markersize": 3.5}
            bounds.plot(self.targets[mask], shown[mask], label=label, **points)
        chosen = plotting.look("executed")
        bounds.plot(self.targets[policy], shown[policy], fillstyle="none", markersize=11, **chosen.points)
        plotting.limit(bounds, math.log10(self.budget), label="allowed")
        bounds.set(ylim=(-3.1, math.log10(2 * total)), xlabel="policy (set-point)", ylabel="worst expected cost over F")
        bounds.set(xticks=(-0.5, 0, 0.5, 1, 1.5))
        bounds.set_yticks([-3, math.log10(self.budget), math.log10(total)], ["0", f"{self.budget:g}", f"{total:g}"])
        bounds.legend(loc="upper left")
        flown = [e.states for e in self.run.episodes[:episode] if e.states.numel()]
        for states, shade in zip(flown, plotting.ramp(len(flown)) if flown else [], strict=True):
            flights.plot(states[:, 0], color=shade, linewidth=0.9)
        flights.set(
            xlabel="step", ylabel="x, flown so far", ylim=(-1, 1.4), yticks=(-1, 0, 1), xlim=(0, 20), xticks=(0, 20)
        )
        plotting.limit(flights, 1.0, label="limit")
        lines = textwrap.wrap(self.told(episode, policy), 125)
        bounds.set_title("\n".join((*lines, "", "", "")[:3]), loc="left")

    def explorer(self, *, episode: int = 4, policy: int = 44) -> Explorer:
        """Scrub through the episodes, click a policy."""
        return Explorer(
            self.draw,
            (10.0, 3.9),
            episode=Slider("episode", range(self.episodes + 1), episode),
            policy=Tiles(
                "policies, by set-point: click one",
                range(len(self.targets)),
                policy,
                lambda i: f"{float(self.targets[i]):+.3g}",
                tint=self.noun,
            ),
        )
