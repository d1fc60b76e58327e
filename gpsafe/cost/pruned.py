"""Robust dynamic programs for thousands of policies: windows, screening and lazy maxima around :class:`RobustDP`.

Nothing here changes what is certified; every number handed out is a bound by `RobustDP` under some F_m, m ≤ n.

- **Old bounds stay valid.** F_n ⊆ F_m and σ_n ≤ σ_m for m ≤ n (fixed kernel and λ), so UCB_m ≥ sup_{F_n} J_c and an old
  exploration value still bounds the new one. A policy may therefore keep its number; the smallest one seen is handed out.
- **Windows.** V on a sub-rectangle of the grid, with the full rate for the rest of the horizon charged outside, is a
  robust program too: any window is sound. It is chosen around probing paths, which is a guess and only costs sharpness.
- **Screening.** Paths under mean functions in [l_n, h_n] (corners and sign patterns) estimate a *lower* bound of
  UCB_n. Policies whose estimate exceeds the budget would not be certified; they are not evaluated. A wrong guess delays
  a certificate, it never grants one.
- **Grids in turn.** A bound on any grid is a bound: what the first grid does not certify is asked on a finer one, if there is
  one, and the smaller number is kept.
- **Lazy maximum.** The largest exploration value is found by refreshing the largest old bound until a fresh value is on
  top (lazy greedy, Minoux 1978): the same maximiser, a few evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet, Falsification
from gpsafe.cost._lineage import require_continuation
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.policies import PolicyClass, inputs_at, selected
from gpsafe.systems.base import sample_noise
from gpsafe.systems.task import Task


@short
@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What cheap paths under functions in [l_n, h_n] say about P policies: guesses, no bounds.

    Attributes:
        cost: largest mean over paths of Σ_t c among the patterns, (P,).
        lower, upper: box around all visited states, (P, nx).
        width: mean of ‖h_n − l_n‖/2 along the paths, (P,).
    """

    cost: Tensor
    lower: Tensor
    upper: Tensor
    width: Tensor


def probe(
    dp: RobustDP,
    confidence: ConfidenceSet,
    policies: PolicyClass,
    *,
    generator: torch.Generator,
    paths: int = 2,
    slack: float = 0.5,
) -> Probe:
    """Simulates every policy under f = (l_n + h_n)/2 + η(h_n − l_n)/2 with η = 0, ±1, ±sign(x_j), common noise.

    `slack` cells are added to every step in the direction η: about what the program's rounding gives its adversary.
    """
    model, nx = confidence.model, dp.initial_state.numel()
    signs = torch.tensor([0.0, 1.0, -1.0] + [0.0] * (2 * nx), dtype=torch.float64)
    along = torch.zeros(3 + 2 * nx, nx, dtype=torch.float64)
    for j in range(nx):
        along[3 + 2 * j, j], along[4 + 2 * j, j] = 1.0, -1.0
    patterns = len(signs)
    noise = sample_noise(dp.noise_std, (dp.horizon, 1, patterns * paths), generator)
    signs, along = signs.repeat_interleave(paths), along.repeat_interleave(paths, 0)
    x = dp.initial_state.expand(policies.num, patterns * paths, nx)
    cost, width = torch.zeros(x.shape[:-1], dtype=torch.float64), torch.zeros(policies.num, dtype=torch.float64)
    lower, upper = x.amin(1), x.amax(1)
    for t in range(dp.horizon):
        cost = cost + dp.cost(x)
        u = inputs_at(policies, x)
        low, high = confidence.bounds(torch.cat([x, u], dim=-1))
        half = (0.5 * (high - low)).clamp_min(0.0)
        eta = signs + torch.einsum("kj,pkj->pk", along, torch.sign(x))
        eta = eta.unsqueeze(-1)
        x = model.prior(x, u) + model.embed(0.5 * (low + high) + eta * half) + eta * slack * dp.grid.size + noise[t]
        width = width + half.norm(dim=-1).mean(-1) / dp.horizon
        if t < dp.horizon - 1:
            lower, upper = torch.minimum(lower, x.amin(1)), torch.maximum(upper, x.amax(1))
    worst = cost.reshape(policies.num, patterns, paths).mean(-1).amax(-1)
    return Probe(worst, lower, upper, width)


def windowed(
    dp: RobustDP, lower: Tensor, upper: Tensor, *, pad: float = 0.15, margin: int = 8, step: int = 8
) -> list[tuple[RobustDP, Tensor]]:
    """Groups policies by the window of the grid around their boxes.

    Args:
        lower, upper: (P, nx); x₀ is always included.
        pad: share of the box's size added on each side.
        margin: cells added on each side.
        step: windows are rounded outwards to multiples of this many cells, so that policies share them.

    Returns:
        [(program on the window, indices of its policies (m,))].
    """
    grid, size = dp.grid, dp.grid.size
    lower, upper = torch.minimum(lower, dp.initial_state), torch.maximum(upper, dp.initial_state)
    extra = pad * (upper - lower) + margin * size
    cells = torch.tensor(grid.cells)
    blocks = (cells - 1) // step
    # Bounded before they are whole numbers, which 10¹⁹ cells overflow; a box that is no number is all of the grid.
    first, last = ((end - grid.box.lower) / size / step for end in (lower - extra, upper + extra))
    first = torch.minimum(first.floor().nan_to_num(nan=0.0).clamp_min(0.0), blocks).long() * step
    last = torch.minimum(last.floor().nan_to_num(nan=torch.inf).clamp_min(0.0), blocks).long() * step + step - 1
    last = torch.maximum(torch.minimum(last, cells - 1), first)
    rows, group = torch.unique(torch.cat([first, last], -1), dim=0, return_inverse=True)
    nx = len(grid.cells)
    return [
        (replace(dp, grid=grid.window(row[:nx], row[nx:])), torch.nonzero(group == g).flatten())
        for g, row in enumerate(rows.tolist())
    ]


@dataclass(slots=True, eq=False)
class _Memo:
    """Smallest bounds so far, of one history of F_n. What was done, `log`, is one list of a session and all its updates."""

    upper: Tensor
    exploration: Tensor
    seen_width: Tensor  # of the probe when the policy was last evaluated
    probes: dict[int, Probe] = field(default_factory=dict)
    falsified: Falsification | None = None
    log: list[dict[str, int]] = field(default_factory=list)

    def handed_on(self) -> _Memo:
        """For an update: what that finds is not true of the F_n before it, nor of another one that follows."""
        kept = {name: getattr(self, name).clone() for name in ("upper", "exploration", "seen_width")}
        return replace(self, **kept, probes=dict(self.probes))


@short
@dataclass(frozen=True, slots=True, eq=False)
class PrunedSession:
    """A `Session` of :mod:`gpsafe.cost.session` for large classes: see the module.

    Args:
        dp: the program on the whole grid.
        confidence: F_n.
        policies: the class.
        generator: of the probing noise (separate from the plant's).
        shrink: a policy is evaluated again only when its probed width fell below this share of what it was.
        batch: policies refreshed at a time by the lazy maximum.
        region: (lower, upper), (P, nx) each: a box that every policy's window includes, where its orbits are known to go.
        candidates: at most this many members are given their first exploration value in one episode, those with the
            largest probed width (None: all). The choice is then a maximum over those evaluated; safety is untouched.
        slack: cells per step that the screen grants its adversary, see `probe`.
        finer: a program of the same task on a finer grid, asked for those that `dp` leaves above the budget; None: none.
    """

    dp: RobustDP
    confidence: ConfidenceSet
    policies: PolicyClass
    generator: torch.Generator
    shrink: float = 0.9
    batch: int = 16
    region: tuple[Tensor, Tensor] | None = None
    candidates: int | None = None
    slack: float = 0.5
    finer: RobustDP | None = None
    memo: _Memo = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _require.count("PrunedSession", "batch", self.batch)
        if not 0.0 < self.shrink <= 1.0:
            raise _require.fail("PrunedSession", "shrink in (0, 1]", self.shrink)
        if self.finer is not None:
            self.task.require_same("PrunedSession: finer", self.finer.task)
        unknown = torch.full((self.policies.num,), math.inf, dtype=torch.float64)
        object.__setattr__(self, "memo", _Memo(unknown, unknown.clone(), unknown.clone()))

    @property
    def task(self) -> Task:
        """Of the program; its budget decides what the screen lets through."""
        return self.dp.task

    @property
    def log(self) -> list[dict[str, int]]:
        """Per generation: policies screened out, kept at an old bound, evaluated; exploration values refreshed."""
        return self.memo.log

    def probe(self) -> Probe:
        """Paths under the present F_n (once per generation)."""
        n = len(self.confidence.generations)
        if n not in self.memo.probes:
            found = probe(self.dp, self.confidence, self.policies, generator=self.generator, slack=self.slack)
            if self.region is not None:
                lower, upper = torch.minimum(found.lower, self.region[0]), torch.maximum(found.upper, self.region[1])
                found = replace(found, lower=lower, upper=upper)
            self.memo.probes = {n: found}
            self.memo.log.append({"screened": 0, "kept": 0, "evaluated": 0, "refined": 0, "refreshed": 0})
        return self.memo.probes[n]

    def upper(self, index: Tensor) -> Tensor:
        """The smallest UCB seen, rounded up, (m,); inf for policies that never passed the screen, and for all once F_n has come
        out empty somewhere: an assumption is then false, and old bounds rest on it too.
        """
        if index.numel() == 0:
            return torch.zeros(0, dtype=torch.float64)
        guess, memo = self.probe(), self.memo
        hopeful = guess.cost[index] <= self.task.budget
        due = hopeful & (guess.width[index] <= self.shrink * memo.seen_width[index])
        chosen = index[due & (memo.upper[index] > self.task.budget)]
        log = self.log[-1]
        log["screened"] += int((~hopeful).sum())
        log["kept"] += int((hopeful & ~due).sum())
        log["evaluated"] += len(chosen)
        memo.upper[chosen] = torch.minimum(memo.upper[chosen], self._bound(self.dp, chosen, exploration=False))
        if self.finer is not None:
            again = chosen[memo.upper[chosen] > self.task.budget]
            memo.upper[again] = torch.minimum(memo.upper[again], self._bound(self.finer, again, exploration=False))
            log["refined"] += len(again)
        memo.seen_width[chosen] = guess.width[chosen]
        return memo.upper[index] if memo.falsified is None else torch.full((len(index),), math.inf, dtype=torch.float64)

    def exploration(self, index: Tensor) -> Tensor:
        """Upper bounds of sup_f E Σ‖σ_n‖, (m,); the largest is fresh (of this F_n). −inf: not among the candidates."""
        memo, fresh, guess = self.memo, torch.zeros(self.policies.num, dtype=torch.bool), self.probe()
        new = index[~torch.isfinite(memo.exploration[index])]
        self._refresh(new[guess.width[new].argsort(descending=True, stable=True)[: self.candidates]], fresh)
        known = index[torch.isfinite(memo.exploration[index])]
        while not bool(fresh[known[memo.exploration[known].argmax()]]):
            stale = known[~fresh[known]]
            self._refresh(stale[memo.exploration[stale].argsort(descending=True, stable=True)[: self.batch]], fresh)
        values = memo.exploration[index]
        return torch.where(values < math.inf, values, -math.inf)

    def _refresh(self, chosen: Tensor, fresh: Tensor) -> None:
        if len(chosen):
            memo = self.memo
            memo.exploration[chosen] = torch.minimum(
                memo.exploration[chosen], self._bound(self.dp, chosen, exploration=True)
            )
            fresh[chosen] = True
            self.log[-1]["refreshed"] += len(chosen)

    def _bound(self, whole: RobustDP, index: Tensor, *, exploration: bool) -> Tensor:
        guess, result = self.probe(), torch.full((len(index),), math.inf, dtype=torch.float64)
        for dp, group in windowed(whole, guess.lower[index], guess.upper[index]):
            for part in group.split(max(1, dp.chunk // dp.grid.num)):
                policies = selected(self.policies, index[part], dp.initial_state)
                enclosure = dp.enclosure(self.confidence, policies).refine(self.confidence)
                if self.memo.falsified is None and enclosure.empty():
                    self.memo.falsified = self.confidence.falsified(enclosure.z)
                if exploration:
                    _, std = self.confidence.model.posterior(enclosure.z)
                    result[part] = dp.exploration(enclosure, std.norm(dim=-1))
                else:
                    result[part] = dp.upper(enclosure)
        return result * (1 + 1e-9) + 1e-9 if exploration else result

    def update(self, confidence: ConfidenceSet) -> PrunedSession:
        """The same with a new F_n that continues the old one; the bounds found so far are kept."""
        require_continuation("PrunedSession.update", self.confidence, confidence)
        found = replace(self, confidence=confidence)
        object.__setattr__(found, "memo", self.memo.handed_on())
        return found

    def falsified(self) -> Falsification | None:
        """Looks at the points evaluated so far, and at the data."""
        return self.memo.falsified or self.confidence.falsified()
