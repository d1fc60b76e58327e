"""One arm of the safety-filter experiment: a plant, a mode of certification and a learner, epoch after epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpsafe.certify import Certificate, judge
from gpsafe.certify.terminal_set import TerminalSet
from gpsafe.linalg import vector
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety.filter import Decision, SafetyFilter
from gpsafe.sets import Ellipsoid, Polytope
from gpsafe.systems.base import is_violation
from gpsafe.testbed.experiment import Piece

from .._report.xmpsc_filter_questions import Case, Knowledge, Mode, Question, Sizes, question

UNKNOWN = -1  # in the columns of containment: nothing was claimed
KINDS = ("real_any", "real_all", "seen_any", "seen_all")  # of containment: true or measured state, a member or all


def proposed(case: Case, learner: str, seen: Tensor, generator: torch.Generator) -> Tensor:
    """ "uniform": any input; "adversary": full push towards the limit to which the angle is moving."""
    if learner == "uniform":
        return case.plant.input_box.sample(1, generator)[0]
    return vector(1.0 if float(seen[case.angle + 1]) >= 0 else -1.0)


@dataclass(slots=True)
class _Book:
    """What an arm writes down."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)
    applied: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    certified: list[Tensor] = field(default_factory=list)
    missed: int = 0

    def grown(self, learned: TerminalSet) -> TerminalSet:
        """With the states certified since the last update."""
        none = torch.zeros(0, learned.nx, dtype=torch.float64)
        return learned.update(torch.stack(self.certified) if self.certified else none)


def arm(case: Case, mode: Mode, learner: str, sizes: Sizes, seed: int, first: Callable[[], Knowledge]) -> Piece:
    """All epochs. The same seed gives the same initial states, noise and uniform proposals in every mode."""
    book, plant = _Book(), case.plant
    if mode == "none":
        for epoch, episode in _places(sizes):
            _episode(case, learner, sizes, (seed, epoch, episode), None, book)
        return Piece(book.rows, book.tensors)
    generator = torch.Generator().manual_seed(7_000_003 + seed)
    starts = plant.initial_box.sample(sizes.initial, generator)
    learned = TerminalSet.start(plant.observe(starts, generator), dims=case.dims, delay=sizes.delay)
    known, asked = first(), None
    for epoch in range(sizes.epochs):
        if epoch:
            known = known.extended(torch.stack(book.seen), torch.stack(book.applied), torch.stack(book.after))
            learned = book.grown(learned)
            book.seen, book.applied, book.after, book.certified = [], [], [], []
        fresh = question(case, mode, sizes, known, learned.polytope)
        kept = mode == "invariant" and fresh.invariance is None
        if asked is None and kept:
            return Piece([{"kind": "absent", "why": fresh.why}])
        asked = asked if asked is not None and kept else fresh
        _told(case, book, epoch, asked, kept, known)
        for episode in range(sizes.episodes):
            _episode(case, learner, sizes, (seed, epoch, episode), asked.filter, book)
    if mode != "invariant":
        area, corners = _shadow(book.grown(learned).polytope, case)
        book.tensors[f"terminal-{sizes.epochs}"] = corners
        book.rows.append({"kind": "end", "area": area})
    return Piece(book.rows, book.tensors)


def _places(sizes: Sizes) -> Iterator[tuple[int, int]]:
    return ((epoch, episode) for epoch in range(sizes.epochs) for episode in range(sizes.episodes))


def _shadow(terminal: Polytope, case: Case) -> tuple[float, Tensor]:
    """Area and corners in order of a set in the coordinates of the learned terminal set."""
    dims = list(case.dims)
    free = [i for i in range(terminal.dim) if i not in dims]
    alone = bool((terminal.H[:, free] == 0).all())
    corners = Polytope(terminal.H[:, dims], terminal.h).vertices() if alone else terminal.project(dims).vertices()
    around = corners - corners.mean(0)
    x, y = corners[torch.atan2(around[:, 1], around[:, 0]).argsort()].unbind(-1)
    return 0.5 * float((x * y.roll(-1) - x.roll(-1) * y).sum().abs()), torch.stack([x, y], dim=-1)


def _told(case: Case, book: _Book, epoch: int, asked: Question, kept: bool, known: Knowledge) -> None:
    """One row about the question of an epoch; the corners of its terminal set."""
    terminal = asked.filter.problem.terminal
    area, book.tensors[f"terminal-{epoch}"] = _shadow(terminal, case)
    mean, std = known.ensemble.evaluate(known.apart.x, known.apart.u)
    error = ((known.apart.x_next - mean) / std).norm(dim=-1)
    book.rows.append(
        {
            "kind": "epoch",
            "epoch": epoch,
            "radius": asked.radius,
            "area": area,
            "facets": terminal.rows,
            "invariance": asked.why,
            "kept": kept,
            "data": len(known.learnt),
            "within_one_sigma": float((error <= 1).double().mean()),
        }
    )


def _episode(
    case: Case, learner: str, sizes: Sizes, place: tuple[int, int, int], safe: SafetyFilter | None, book: _Book
) -> None:
    seed, epoch, episode = place
    number = (seed * 1009 + epoch) * 1009 + episode
    noise, own, apart = (torch.Generator().manual_seed(3 * number + i) for i in range(3))
    plant = case.plant
    x = plant.initial_box.sample(1, noise)[0]
    seen = plant.observe(x, noise)
    following = None if safe is None else safe.start()
    for step in range(sizes.steps):
        u_learned = proposed(case, learner, seen, own)
        row: dict[str, Any] = {"kind": "step", "epoch": epoch, "episode": episode, "step": step}
        decision, milliseconds = None, 0.0
        if following is not None:
            began = time.process_time()
            decision, following = following.decide(seen, u_learned)
            milliseconds = 1e3 * (time.process_time() - began)
        u = u_learned if decision is None else decision.u
        before, x = x, plant.advance(x, u, noise)
        measured, seen = seen, plant.observe(x, noise)
        violated = bool(is_violation(plant.cost(x)))
        row |= {
            "source": "none" if decision is None else decision.source,
            "backed": decision is not None and decision.backed,
            "tightest": "" if decision is None else _tightest(decision, measured, u_learned),
            "learned": float(u_learned[0]),
            "applied": float(u[0]),
            "violated": violated,
            "ms": milliseconds,
            **{f"x{i}": float(v) for i, v in enumerate(before)},
        }
        if decision is not None and following is not None:
            row |= _contained(decision, following, x, seen)
            _written(case, sizes, book, row, decision, following, (before, measured, u_learned), apart)
            book.seen.append(measured)
            book.applied.append(u.clamp(-1.0, 1.0))  # U; the law of a plan may exceed it in paper mode
            book.after.append(seen)
        book.rows.append(row)
        if violated:
            return


def _tightest(decision: Decision, measured: Tensor, learned: Tensor) -> str:
    """Kind of the row by which the proposed plan fails; empty if it does not."""
    told = decision.certificate
    if decision.source == "plan":
        return ""
    found = None if told is None else judge(told.problem, measured, learned, told.proposal).tightest
    return "no tube" if found is None else found.kind


def _contained(decision: Decision, following: SafetyFilter, x: Tensor, seen: Tensor) -> dict[str, Any]:
    """Is the next state, and its measurement, in the section of the plan that was followed, by any and by all members?"""
    plan = following.stored
    if not decision.backed or decision.source not in ("plan", "stored") or plan is None or plan.tube is None:
        return {**dict.fromkeys(KINDS, UNKNOWN), "stage": UNKNOWN}
    inside = [_section(plan, following.stage).contains(point) for point in (x, seen)]
    found = [int(of) for part in inside for of in (part.any(), part.all())]
    return {**dict(zip(KINDS, found, strict=True)), "stage": following.stage}


def _section(plan: Certificate, stage: int) -> Ellipsoid:
    assert plan.tube is not None
    return Ellipsoid(plan.tube.center[:, stage], plan.tube.factor[:, stage])


def _written(
    case: Case,
    sizes: Sizes,
    book: _Book,
    row: dict[str, Any],
    decision: Decision,
    following: SafetyFilter,
    now: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    """Certified states, plans followed to their end, plans to draw, and searches that a slower proposer repeats."""
    before, measured, learned = now
    problem = following.problem
    where = {name: row[name] for name in ("epoch", "episode", "step")}
    if decision.source == "plan":
        book.certified.append(measured)
        plan = following.stored
        assert plan is not None and plan.tube is not None
        if row["step"] % sizes.probe == 0:
            book.rows.append({"kind": "followed", **where, **followed(case, plan, before, measured, sizes, generator)})
        if row["epoch"] == sizes.epochs - 1 and row["episode"] == 0:
            book.tensors[f"center-{row['step']}"] = plan.tube.center[..., list(case.dims)]
            shadow = plan.tube.factor[..., list(case.dims), :]
            book.tensors[f"shape-{row['step']}"] = shadow @ shadow.mT
    elif problem.mode == "sound" and bool(torch.isfinite(measured).all()):
        book.missed += 1
        if book.missed % 10 == 1 and book.missed // 10 < sizes.audits:
            slow = CondensedSQP(iterations=sizes.audit_iterations, starts=2)
            again = judge(problem, measured, learned, slow.propose(problem, measured, learned))
            book.rows.append({"kind": "audit", **where, "found": again.certified})


def followed(
    case: Case, plan: Certificate, x: Tensor, seen: Tensor, sizes: Sizes, generator: torch.Generator
) -> dict[str, Any]:
    """How many of some copies of the plant stay in all sections of a plan's tube, if its law is followed to the end."""
    assert plan.tube is not None
    plant, inside = case.plant, []
    x, seen = x.expand(sizes.copies, -1), seen.expand(sizes.copies, -1)
    left = torch.zeros(sizes.copies, dtype=torch.bool)
    for stage in range(plan.tube.steps):
        x = plant.advance(x, plan.law(stage, seen), generator)
        seen = plant.observe(x, generator)
        left |= is_violation(plant.cost(x))
        section = _section(plan, stage + 1)
        inside.append(torch.stack([section.contains(part.unsqueeze(-2)) for part in (x, seen)]))
    all_stages = torch.stack(inside).all(0)  # (2, copies, M)
    found = {
        f"{name}_{of}": int(getattr(part, of)(-1).sum())
        for name, part in zip(("real", "seen"), all_stages, strict=True)
        for of in ("any", "all")
    }
    return {**found, "left": int(left.sum()), "copies": sizes.copies}
