"""Certified maps for probabilistic model checkers: the Markov decision process whose values a map is, in Storm's DRN format.

Of every step of the program (theory §3.3, theory §3.12) the process makes 1 + 2nx: in a *cell* the adversary picks a part of
the grid that the box of next means touches (or the box leaves the grid: *out*); from a part, axis by axis, chance puts the
state into the inside of a cell, into the strip around an edge, or out; and in a strip the adversary picks one of the two cells
beside it. So

    lower = 1 − Pmax[F≤K unsafe ∨ out],   upper = 1 − Pmin[F≤K surely_unsafe],                           K = (1 + 2nx)(T − 1),

with a goal lower = Pmin[¬(unsafe ∨ out) U≤K surely_goal], upper = Pmax[¬surely_unsafe U≤K (goal ∨ out)], are what
`certified_map` computes, up to rounding: the values of an interval model, over *all* distributions within intervals of
probabilities, would be looser.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.cost.grid import Grid, _average_matrices, touched
from gpsafe.policies import selected
from gpsafe.safety.certified_map import Cells, CertifiedMap

LEAST = 1e-18  # smaller probabilities go out, as in the program
MOST = 1_000_000  # states
State = tuple[Any, ...]
Choices = list[list[tuple[State, float]]]
OUT: State = ("out",)


def export_map(found: CertifiedMap, policy: int = 0) -> str:
    """The process of one policy of a map, in the DRN format, with the properties to ask in its first lines.

    Args:
        found: as `certified_map` gives it. A refined one has cells of several sizes and bounds of coarser ones intersected: no
            such process has them as its values.
        policy: index.

    Raises:
        ValueError: for a refined map, and for more than a million states.
    """
    where, grid = "export_map", found.partition.grid
    if found.partition.depth > 1:
        raise _require.fail(where, "a map on the cells of a grid", f"one refined on {found.partition.depth} levels")
    if _require.index(where, "policy", policy) >= found.policies.num:
        raise _require.fail(where, f"a policy in 0..{found.policies.num - 1}", policy)
    chosen = selected(found.policies, torch.tensor([policy]), found.task.initial_state)
    cells = Cells.of(found.confidence, chosen, found.task, grid, found.goal)
    process, starts = _Process(grid, cells, found.task.noise_std), _starts(found)
    rows = _explored(where, process, starts)
    number = {state: i for i, (state, _) in enumerate(rows)}
    initial = {number[state] for state in starts}
    steps = (1 + 2 * grid.box.dim) * (found.task.horizon - 1)
    labels = [process.labels(state) for state, _ in rows]
    lines = [f"// {line}" for line in _properties(steps, set().union(*labels), goal=found.goal is not None)]
    lines += ["@type: MDP", "@parameters", "", "@reward_models", "", "@nr_states", f"{len(rows)}"]
    lines += ["@nr_choices", f"{sum(len(choices) for _, choices in rows)}", "@model"]
    for i, (_, choices) in enumerate(rows):
        lines.append(" ".join([f"state {i}", *(["init"] if i in initial else []), *labels[i]]))
        for a, choice in enumerate(choices):
            lines.append(f"\taction {a}")
            lines += [f"\t\t{number[after]} : {share!r}" for after, share in choice]
    return "\n".join(lines) + "\n"


def _properties(steps: int, carried: set[str], *, goal: bool) -> list[str]:
    """What to ask. A label that no state carries is `false`: Storm refuses a name that it has not met."""
    names = ("unsafe", "surely_unsafe", "goal", "surely_goal", "out")
    unsafe, surely_unsafe, inside, surely_inside, out = (f'"{name}"' if name in carried else "false" for name in names)
    if not goal:
        return [
            f"lower = 1 - Pmax=? [F<={steps} ({unsafe} | {out})]",
            f"upper = 1 - Pmin=? [F<={steps} {surely_unsafe}]",
        ]
    return [
        f"lower = Pmin=? [!({unsafe} | {out}) U<={steps} {surely_inside}]",
        f"upper = Pmax=? [!{surely_unsafe} U<={steps} ({inside} | {out})]",
    ]


def _starts(found: CertifiedMap) -> list[State]:
    """Where the task's x_0 is: out of the grid, in a cell, or beside an edge of several: the worst of these is true of it."""
    near = found.partition.near(found.task.initial_state).unique()
    if int(near.min()) < 0:
        return [OUT]
    places = torch.stack(torch.unravel_index(near, found.partition.grid.cells), dim=-1)
    return [("cell", *place) for place in places.tolist()]


def _explored(where: str, process: _Process, starts: list[State]) -> list[tuple[State, Choices]]:
    """All states with their choices: the cells in row-major order, then what they lead to, in the order found."""
    queue: deque[State] = deque(("cell", *index) for index in itertools.product(*map(range, process.grid.cells)))
    queue.extend(state for state in starts if state == OUT)
    seen, rows = set(queue), []
    while queue:
        state = queue.popleft()
        choices = process.choices(state)
        rows.append((state, choices))
        for after in (after for choice in choices for after, _ in choice):
            if after not in seen:
                seen.add(after)
                queue.append(after)
        if len(seen) > MOST:
            raise _require.fail(where, f"at most {MOST} states", f"more, for {process.grid.num} cells")
    return rows


class _Process:
    """States: ("cell", i…); ("land", axis, i_0 … i_{axis−1}, j_axis …), from which chance leads to "inside" or "strip"; out."""

    def __init__(self, grid: Grid, cells: Cells, noise_std: Tensor) -> None:
        self.grid, self.cells = grid, cells
        self.first, self.last, self.outside = (end[0] for end in touched(grid, cells.low, cells.high))
        self.landing = []
        for axis, (n, s) in enumerate(zip(grid.cells, grid.split, strict=True)):
            matrices = _average_matrices(float(grid.size[axis]), n, s, float(noise_std[axis]))
            self.landing.append([part.tolist() for part in matrices])

    def labels(self, state: State) -> list[str]:
        """Of a state."""
        if state[0] != "cell":
            return ["out"] if state == OUT else []
        i, cells = self._flat(state[1:]), self.cells
        parts = {
            "unsafe": cells.unsafe,
            "surely_unsafe": cells.surely_unsafe,
            "goal": cells.goal,
            "surely_goal": cells.surely_goal,
        }
        return [name for name, where in parts.items() if bool(where[i])]

    def choices(self, state: State) -> Choices:
        """Distributions that the adversary may pick."""
        if state == OUT:
            return [[(OUT, 1.0)]]
        if state[0] == "cell":
            i = self._flat(state[1:])
            if bool(self.outside[i]):
                return [[(OUT, 1.0)]]
            ranges = [range(a, b + 1) for a, b in zip(self.first[i].tolist(), self.last[i].tolist(), strict=True)]
            return [[(("land", 0, *parts), 1.0)] for parts in itertools.product(*ranges)]
        name, axis, *place = state
        if name == "land":
            return [list(self._landed(axis, place))]
        beside = [place[axis]] if name == "inside" else [place[axis] - 1, place[axis]]
        return [[(self._next(axis, place, i), 1.0)] for i in beside]

    def _landed(self, axis: int, place: list) -> Iterator[tuple[State, float]]:
        inner, strip = (table[place[axis]] for table in self.landing[axis])
        total = 0.0
        for name, shares in (("inside", inner[1:-1]), ("strip", strip)):
            for i, share in enumerate(shares):
                if share > LEAST:
                    total += share
                    yield (name, axis, *place[:axis], i, *place[axis + 1 :]), share
        if total < 1.0:
            yield OUT, 1.0 - total

    def _next(self, axis: int, place: list, i: int) -> State:
        """With coordinate i along the axis: out, on to the next axis, or in a cell."""
        if not 0 <= i < self.grid.cells[axis]:
            return OUT
        place = [*place[:axis], i, *place[axis + 1 :]]
        return ("cell", *place) if axis == self.grid.box.dim - 1 else ("land", axis + 1, *place)

    def _flat(self, index: tuple) -> int:
        flat = 0
        for i, n in zip(index, self.grid.cells, strict=True):
            flat = flat * n + i
        return flat
