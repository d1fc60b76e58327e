"""Filters on which everything is provable, their adversaries, and proposers that fail."""

import asyncio
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from xmpsc_cases import gp_pendulum

from gpsafe.certify import CertificationProblem, Proposal
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.terminal_set import AffineLaw, Invariance, certify_invariance
from gpsafe.cost.enclosure import jacobians
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Polytope
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import LinearTube, lqr_gain
from proofs_checks.safety_filter import linear_case

FAST = CondensedSQP(starts=2, iterations=8)


@dataclass(frozen=True)
class Moody:
    """Proposes well, or, when `works` is off, badly: plans that leave everything, NaN, a wrong shape, a breakdown, or plans
    that are good but for the one kind of rows that they ignore ("states", "inputs", "terminal").
    """

    works: bool = True
    failure: str = "far"

    def propose(self, problem, x0, learned, *, warm=None):
        if self.works:
            return FAST.propose(problem, x0, learned, warm=warm)
        if self.failure == "breakdown":
            raise FloatingPointError("division by zero in the solver")
        if self.failure == "singular":
            raise np.linalg.LinAlgError("Singular matrix")
        if self.failure in ("states", "inputs", "terminal"):
            ignored = getattr(problem, self.failure)
            loose = replace(problem, **{self.failure: Polytope(ignored.H, 10.0 * ignored.h)})
            return FAST.propose(loose, x0, learned, warm=warm)
        plan = torch.full((problem.steps, problem.nu), {"far": 1e6, "nan": torch.nan}.get(self.failure, 0.0)).double()
        return Proposal(plan[:-1] if self.failure == "short" else plan, "Solve_Succeeded", 1, 0.0, "moody", -1.0)


class Pair:
    """Two members with the same plant, whose second is pushed by `drift` every step."""

    nx, nu, num_members, mode, assumptions = 2, 1, 2, "sound", ("one of two",)

    def __init__(self, base: LinearTube, drift: torch.Tensor) -> None:
        self.base, self.drift = base, drift

    def linearise(self, x, u):
        local = self.base.linearise(x, u)
        return replace(local, mean=local.mean + torch.stack([torch.zeros_like(self.drift), self.drift]))

    def remainder(self, x, u, factor, gain):
        return torch.zeros_like(x)


class Odd:
    """A proposer that raises, or returns what it is told to; a function is called with problem, x0, u_L and the warm plan."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def propose(self, problem, x0, learned, *, warm=None):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(problem, x0, learned, warm) if callable(self.answer) else self.answer


def told(inputs: object) -> Proposal:
    return Proposal(inputs, "optimal", 1, 0.0, "odd", -1.0)  # type: ignore[arg-type]


class Wordless(Exception):
    """Not even its message can be made."""

    def __str__(self) -> str:
        raise KeyError("no words")


class Forged(torch.Tensor):
    """A plan that says of itself whatever is wanted."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return torch.tensor(True) if func is torch.isfinite else super().__torch_function__(func, types, args, kwargs)


class Vanishing(Proposal):
    """Whose plan cannot be read."""

    __slots__ = ()

    @property
    def inputs(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        raise IndexError("no plan in here")


class Masked:
    """Whose kind cannot be asked for."""

    @property
    def __class__(self):
        raise asyncio.CancelledError


def scribbled(problem, x0, learned, warm) -> Proposal:
    """Widens every set, weakens the plant and the disturbance, on all tensors within reach, then proposes to push."""
    for tensor in (problem.states.h, problem.inputs.h, problem.terminal.h):
        tensor.fill_(1e9)
    for tensor in (problem.model.half_axes, problem.model.plant.A, problem.model.plant.B, problem.gain, x0, learned):
        tensor.zero_()
    if warm is not None:
        warm.fill_(7.0)
    return told(torch.full((problem.steps, problem.nu), 1.0, dtype=torch.float64))


def unsettled(problem, x0, learned, warm):
    """Leaves floating-point traps, no gradients, another default type and another default device behind."""
    np.seterr(all="raise")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    raise FloatingPointError("underflow")


class SolverError(Exception):
    """As cvxpy's and others': of no built-in kind."""


class Lost(BaseException):
    """No `Exception`, and nobody's wish to stop."""


class Mute(Exception):
    """Whose message is cancelled."""

    def __str__(self) -> str:
        raise asyncio.CancelledError


RAISED = (
    ValueError("no"),
    KeyError("x"),
    TypeError("no"),
    IndexError("list index out of range"),
    TimeoutError("too slow"),
    AssertionError(),
    RuntimeError("IPOPT"),
    NotImplementedError("no"),
    ZeroDivisionError("no"),
    OverflowError("no"),
    FloatingPointError("no"),
    np.linalg.LinAlgError("Singular matrix"),
    AttributeError("no"),
    ImportError("No module named 'solver'"),
    OSError("licence server"),
    UnicodeDecodeError("utf-8", b"", 0, 1, "no"),
    StopIteration(),
    RecursionError("no"),
    MemoryError(),
    Warning("as error"),
    SolverError("unknown"),
    Wordless(),
    asyncio.CancelledError("the task of its own"),
    GeneratorExit("closed"),
    Lost("no"),
    BaseExceptionGroup("two", [GeneratorExit(), ValueError("no")]),
    ExceptionGroup("two", [ValueError("no"), KeyError("x")]),
)
RETURNED: dict[str, object] = {
    "what has no kind": Masked(),
    "nothing": None,
    "a plan without its proposal": torch.zeros(4, 1).double(),
    "a tuple": (torch.zeros(4, 1).double(), "optimal"),
    "a generator": (part for part in ()),
    "a dictionary": {"inputs": torch.zeros(4, 1).double()},
    "the class": Proposal,
    "no inputs": told(None),
    "a list": told([[0.0]] * 4),
    "an array": told(np.zeros((4, 1))),
    "a generator of inputs": told(float(k) for k in range(4)),
    "words": told("push"),
    "too short": told(torch.zeros(3, 1).double()),
    "too wide": told(torch.zeros(4, 2).double()),
    "flat": told(torch.zeros(4).double()),
    "empty": told(torch.zeros(0, 1).double()),
    "NaN": told(torch.full((4, 1), torch.nan)),
    "infinite": told(torch.full((4, 1), torch.inf).double()),
    "1.7e308": told(torch.full((4, 1), 1.7e308, dtype=torch.float64)),
    "complex": told(torch.zeros(4, 1) + 0j),
    "Boolean": told(torch.zeros(4, 1, dtype=torch.bool)),
    "without data": told(torch.zeros(4, 1, device="meta")),
    "sparse and wrong": told(torch.ones(3, 1).to_sparse()),
    "forged": told(torch.full((4, 1), torch.nan).as_subclass(Forged)),
    "unreadable": object.__new__(Vanishing),
    "scribbled": scribbled,
    "unsettled": unsettled,
}


@lru_cache(maxsize=1)
def gp_case(steps: int = 3) -> tuple[CertificationProblem, Invariance]:
    """The RKHS pendulum about its hanging rest with GP tubes, and an invariant terminal set."""
    base = gp_pendulum(steps=steps)
    known = reference_pendulum().known
    zero = torch.zeros(1, 3, dtype=torch.float64)
    A, B = jacobians(known, zero[:, :2], zero[:, 2:])
    stiff = torch.diag(torch.tensor([20.0, 1.0]).double())
    gain = lqr_gain(A[0], B[0], state_weight=stiff, input_weight=torch.tensor([[5.0]]).double())
    law = AffineLaw(gain, torch.zeros(1).double())
    small = Box(torch.tensor([-0.6, -3.0]).double(), torch.tensor([0.6, 3.0]).double())
    region = Polytope.of_box(small).intersect(Polytope(base.inputs.H @ gain, base.inputs.h))
    slack = Box(torch.tensor([-0.0115, -0.13]).double(), torch.tensor([0.0115, 0.13]).double())
    terminal = invariant_polytope(A[0] + B[0] @ gain, torch.zeros(2).double(), region, slack)
    problem = replace(base, terminal=terminal, gain=gain)
    return problem, certify_invariance(problem, law, budget=3000)


def linear_filter(**changes) -> SafetyFilter:
    problem, sure = linear_case()
    return replace(SafetyFilter(problem, Moody(), sure), **changes)


def extreme(half_axes: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The point of the ellipsoid with these half-axes that is farthest along a direction."""
    pushed = half_axes * direction
    return half_axes * pushed / pushed.norm().clamp_min(1e-300)


def worst_disturbance(half_axes: torch.Tensor, states: Polytope, x: torch.Tensor) -> torch.Tensor:
    """Towards the row of the states that is nearest to being left by the undisturbed next state."""
    return extreme(half_axes, states.H[int((states.H @ x - states.h).argmax())])
