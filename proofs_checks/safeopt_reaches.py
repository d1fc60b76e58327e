"""Theory §4.6: what SafeOpt with Lipschitz constants has reached once it has nothing wide left to ask, whatever it was told.

Beliefs are made up: every end that is told touches the function, so that nothing but the rule is tested. What was asked is
known to within ε from then on; of the rest the rule is told the least that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.safety import safeopt
from gpsafe.safety.safeopt import Agree, Beliefs, SafeOptRule
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import Scaled, replaced, scaled_argument
from ._regression import generator

CLASSES = 24  # of a piece
POINTS, CONES = 40, 3
EPSILON = 0.02
FAR = 10.0  # how far from the function an end is that says nothing
LOW = 0.9  # how often the end that touches is the upper one, so that the least is known
TOUCH = (
    1 - 1e-9
)  # of a half-width, between the function and the middle: an interval that is a point would come out empty


def drawn(source: torch.Generator, q: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Points of a square: distances (P, P), f (P, q) of slope 1, h (q,), −∞ for f_0 of several, and S_0.

    f_i is the largest of some cones: along a cone L = 1 tells exactly how far one can see.
    """
    rand = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=source)  # noqa: E731
    z, tips, height = rand(POINTS, 2), rand(q, CONES, 2), rand(q, CONES)
    f = (height - torch.linalg.norm(z[:, None, None] - tips, dim=-1)).amax(-1)
    start = int(torch.randint(POINTS, (1,), generator=source))
    h = f[start] - (0.15 + 0.3 * rand(q))
    if q > 1:
        h[0] = -torch.inf
    return torch.linalg.norm(z[:, None] - z, dim=-1), f, h, start


def reachable(safe: Tensor, f: Tensor, gaps: Tensor, h: Tensor) -> Tensor:
    """The fixed point of S ∪ {a′ : for every constraint i, f_i(a) − ε − d(a, a′) ≥ h_i for some a ∈ S}, (P,)."""
    while True:
        near = f[:, None] - EPSILON - gaps[..., None] >= h
        grown = safe | (near & safe[:, None, None]).any(0).all(-1)
        if torch.equal(grown, safe):
            return safe
        safe = grown


def run(source: torch.Generator, q: int, agree: Agree) -> dict[str, Any]:
    """One class until its widest candidate is within ε and S_n stood still, or nothing is left to be asked."""
    gaps, f, h, start = drawn(source, q)
    rule = SafeOptRule(h, torch.ones_like(h), agree)
    sets, half, shift = rule.start(POINTS, [start]), torch.full_like(f, FAR), -TOUCH * torch.ones_like(f)
    done, steps, ones = False, 0, torch.ones(q, dtype=torch.float64)
    while steps < 4 * POINTS:
        steps += 1
        before, mean = sets, f + shift * half
        sets = rule.step(before, Beliefs(mean, half, ones, ones), gaps)
        wide = before.width[before.candidates].amax() if steps > 1 else torch.tensor(torch.inf)
        done = not bool(sets.candidates.any()) or (bool(wide <= EPSILON) and torch.equal(before.safe, sets.safe))
        if done:
            break
        asked = rule.choose(sets)
        half[asked] = 0.5 * EPSILON * (1 - 1e-9)
        signs = torch.where(torch.rand(q, dtype=torch.float64, generator=source) < LOW, -1.0, 1.0).double()
        shift[asked] = TOUCH * signs
    target = reachable(rule.start(POINTS, [start]).safe, f, gaps, h)
    best = torch.where(sets.safe, sets.lower[:, 0], -torch.inf).argmax()
    short = float(f[target, 0].max() - f[best, 0]) - EPSILON
    return {
        "missing": int((target & ~sets.safe).sum()),
        "short": max(short, 0.0),
        "unsafe": int((sets.safe & (f < h).any(-1)).sum()),
        "target": int(target.sum()),
        "size": int(sets.safe.sum()),
        "steps": steps,
        "done": done,
    }


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Random classes, of one function, or of three constraints beside what is to be large; of those the control's are."""
    agree: Agree = "every" if broken else "some"
    return {"runs": [run(generator(22, shard, r), 4 if broken or r % 2 else 1, agree) for r in range(CLASSES)]}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    runs = [r for s in samples for r in s["runs"]]
    over = [r for r in runs if r["done"]]
    wrong = [r for r in over if r["missing"] or not r["short"] <= 0 or r["unsafe"]]
    grew = sum(r["target"] > 1 for r in over)
    witness = (
        f"{len(over)} of {len(runs)} runs came to rest, after {max(r['steps'] for r in runs)} measurements at most; "
        f"{sum(r['missing'] for r in over)} of {sum(r['target'] for r in over)} reachable points missed, the best short by "
        f"{worst_of(r['short'] for r in runs):.3g} beyond ε; S_0 alone was reachable in {len(over) - grew}"
    )
    found = float(len(wrong))
    upper = found if len(over) == len(runs) else float(len(runs))
    return Evidence(len(runs), found, Verdict(found, upper, 0.0, witness=witness), {"runs": runs})


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for data, noun, label in (
        (claim, "claim", "SafeOpt-MC"),
        (control, "control", "control: every constraint expands"),
    ):
        runs = data["runs"]
        axes.plot([r["target"] for r in runs], [r["size"] for r in runs], label=label, **plotting.look(noun).points)
    axes.plot([0, POINTS], [0, POINTS], linewidth=0.6, **plotting.look("proposed").line)
    axes.set(xlabel="points that are reachable with ε to spare", ylabel="|S_n| at rest")
    axes.legend(fontsize=7)


# ------------------------------------------------------------------ graded controls
def _less_upper(name: str) -> Scaled:
    """What `name` is told of u is lower by 1 − g."""

    def change(function: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
        at = {"lipschitz_expanders": 1, "maximisers": 2}[name]
        return lambda *given, **options: function(
            *(part - (1 - factor) if i == at else part for i, part in enumerate(given)), **options
        )

    return replaced(safeopt, name, change)


def _more(name: str) -> Scaled:
    """The Lipschitz constant that `name` is told is larger by 1/g."""
    scaled = scaled_argument(safeopt, name, "lipschitz")
    return lambda factor: scaled(1 / factor)


_FACTORS = (0.99, 0.95, 0.9, 0.7, 0.5)
GRADES = (
    Grade("u_n in G_n, less 1 − g", _less_upper("lipschitz_expanders"), (0,), _FACTORS),
    Grade("u_n in M_n, less 1 − g", _less_upper("maximisers"), (0, 1), _FACTORS),
    Grade("L in G_n, over g", _more("lipschitz_expanders"), (0,), _FACTORS),
    Grade("L in S_n, over g", _more("lipschitz_safe"), (0,), _FACTORS),
    Grade("L in S_n", scaled_argument(safeopt, "lipschitz_safe", "lipschitz"), (0,), _FACTORS),
)

CHECKS = (
    Check(
        name="safeopt-reaches",
        claim=f"Once every candidate of SafeOpt is known to within ε = {EPSILON} and S_n stands still, it holds what is "
        "reachable with ε to spare, and the point of its best lower bound is within ε of the largest f_0 there.",
        source="Sui et al. 2015, Theorem 1; Berkenkamp et al. 2021, Theorem 2; theory §4.6",
        assumptions=("every f_i lies in its intervals", "|f_i(a) − f_i(a′)| ≤ L_i d(a, a′)", "S_0 safe"),
        statistic="classes in which a reachable point is missed, the best falls short, or an unsafe point is admitted; "
        "threshold 0",
        control="an expander must let every constraint see some point of its own, as the released program has it",
        shards={"quick": 4, "full": 40},
        control_shards={"quick": 2, "full": 8},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=GRADES,
    ),
)
