"""Rows in the order in which they are judged: the first third chooses, the rest judges what was chosen.

What is fitted to rows cannot be tested on them: kernel, B and R that nobody stated are chosen from the first part alone, and
every test speaks of the second part given the first. Tests for successive rows need z_i to be known before ε_i and nothing
more: the policy may have depended on all that was seen before.

One-step data have no order: they are sorted by their numbers and then shuffled by a seed, so that the order in the file does
not matter; the tests then rest on noise that is independent from row to row. Runs are taken in the order of their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions, spaced

LEAST = 24  # rows
CHOOSE, JUDGE = 200, 400  # at most
FAR, RARE = 20.0, 0.01  # quartile ranges, share of the rows
WINDOW = 25  # successive rows that stay together where a run is too long


@short
@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Transitions in the order of judgement.

    Attributes:
        data: first those that choose, then those that judge.
        first: how many choose.
        links: (n,) place of the row before in the same run, −1 where there is none.
        labels: of the runs, or None for one-step data.
        given: rows before any were left out.
        notes: what was done.
    """

    data: Transitions
    first: int
    links: Tensor
    labels: tuple[Any, ...] | None
    given: int
    notes: tuple[str, ...] = ()

    @property
    def judging(self) -> int:
        """How many judge."""
        return len(self.data) - self.first

    @property
    def runs(self) -> int:
        """How many trajectories there are; 0 for one-step data."""
        return 0 if self.labels is None else len(set(self.labels))

    @property
    def linked(self) -> int:
        """How many judging rows follow a judging row."""
        return int((self.links[self.first :] >= self.first).sum())


def arranged(data: Transitions, ids: Sequence[Any] | None, *, seed: int = 0) -> Rows:
    """Rows in order, at most `CHOOSE` and `JUDGE` of them.

    Args:
        data: rows, successive ones of a run one after the other.
        ids: label of the run of every row; None: one-step data.
        seed: of the order of one-step data.

    Raises:
        ValueError: on too few rows, or labels that do not fit.
    """
    where, notes, runs = "verify", [], None
    if len(data) < LEAST:
        raise _require.fail(where, f"at least {LEAST} transitions", len(data))
    if ids is None:
        chain = (data.x[1:] == data.x_next[:-1]).all(-1).double().mean()
        if float(chain) > 0.5:
            notes.append(
                "Most rows begin where the row before ended, but no column of trajectories was named: they are taken for "
                "one-step data, and what successive rows could show is not tested."
            )
        order = _shuffled(data, seed)
        first = len(order) // 3
        choose, judge = order[:first][:CHOOSE], order[first:][:JUDGE]
    else:
        runs = list(getattr(ids, "tolist", lambda: ids)())
        if len(runs) != len(data):
            raise _require.fail(where, f"{len(data)} labels of trajectories", len(runs))
        order = _by_run(runs)
        first = _boundary([runs[i] for i in order.tolist()])
        choose = order[:first][spaced(first, CHOOSE).long()]
        judge = _windows(order[first:])
    kept = torch.cat([choose, judge])
    if len(kept) < len(data):
        notes.append(
            f"{len(kept)} of {len(data)} rows were used: {len(choose)} to choose and {len(judge)} to judge"
            + (f", in windows of {WINDOW} successive ones." if runs is not None else ".")
        )
    picked = data.select(kept)
    links = _links(data, kept, runs)
    own = None if runs is None else tuple(runs[i] for i in kept.tolist())
    return Rows(picked, len(choose), links, own, len(data), tuple(notes))


def _shuffled(data: Transitions, seed: int) -> Tensor:
    """A random order that does not depend on the order given."""
    columns = torch.cat([data.z, data.x_next], -1).numpy()
    order = torch.from_numpy(np.lexsort(columns.T[::-1]).copy())
    return order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]


def _by_run(runs: list[Any]) -> Tensor:
    """Rows run by run, the runs by label: numbers by size, others by their words."""
    known = list(dict.fromkeys(runs))
    numbers = all(isinstance(label, int | float) for label in known)
    known.sort(key=(lambda label: label) if numbers else str)
    places: dict[Any, list[int]] = {label: [] for label in known}
    for i, label in enumerate(runs):
        places[label].append(i)
    return torch.tensor([i for label in known for i in places[label]], dtype=torch.long)


def _boundary(labels: list[Any]) -> int:
    """The end of the run that ends nearest to a third of the rows; a third where runs are few."""
    ends = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    third = len(labels) // 3
    nearest = min(ends, key=lambda end: abs(end - third), default=third)
    return nearest if abs(nearest - third) <= third // 2 else third


def _windows(order: Tensor) -> Tensor:
    """At most `JUDGE` rows, in windows of successive ones, evenly spread."""
    if len(order) <= JUDGE:
        return order
    blocks = order.split(WINDOW)[:-1]
    chosen = spaced(len(blocks), JUDGE // WINDOW).round().long()
    return torch.cat([blocks[i] for i in chosen.tolist()])


def _links(data: Transitions, kept: Tensor, runs: list[Any] | None) -> Tensor:
    """Place among the kept rows of the row that was measured just before, −1 where it is not kept.

    A row follows another of its run if it begins where that one ended. Where hardly any does (the next state in columns of
    its own, in another frame), neighbours in the file count as successive.
    """
    links = torch.full((len(kept),), -1, dtype=torch.long)
    if runs is None:
        return links
    span = data.x.amax(0) - data.x.amin(0)
    near = [
        (place, bool(((data.x_next[a] - data.x[b]).abs() <= 1e-6 * span).all()))
        for place, (a, b) in enumerate(zip(kept[:-1].tolist(), kept[1:].tolist(), strict=True), start=1)
        if runs[a] == runs[b] and b == a + 1
    ]
    every = sum(follows for _, follows in near) < 0.1 * len(near)
    for place, follows in near:
        if follows or every:
            links[place] = place - 1
    return links


def outlying(data: Transitions, names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Columns with a few rows (up to `RARE` of all) more than `FAR` quartile ranges from the median: glitches, perhaps."""
    found = []
    for kind, values, given in (("x", data.x, names), ("u", data.u, inputs)):
        low, middle, high = (values.quantile(q, 0) for q in (0.25, 0.5, 0.75)) if values.shape[1] else 3 * (values[0],)
        far = ((values - middle).abs() > FAR * (high - low)) & (high > low)
        far &= far.double().mean(0) <= RARE
        for j in torch.nonzero(far.any(0)).flatten().tolist():
            worst = float(values[:, j][(values[:, j] - middle[j]).abs().argmax()])
            name = given[j] if given else f"{kind}{j + 1}"
            found.append(
                f"{int(far[:, j].sum())} of {len(data)} rows have {name} more than {FAR:g} quartile ranges from its median, "
                f"{float(middle[j]):.3g}; the furthest is {worst:.4g}. They stretch every box, and the other rows tell "
                "nothing of them."
            )
    return found


def repeats(z: Tensor) -> Tensor:
    """(m, 2) disjoint pairs of rows with exactly the same z, in the order given."""
    _, group = torch.unique(z, dim=0, return_inverse=True)
    open_, pairs = {}, []
    for i, g in enumerate(group.tolist()):
        if g in open_:
            pairs.append((open_.pop(g), i))
        else:
            open_[g] = i
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
