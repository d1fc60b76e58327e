"""The certification problem as a CasADi program of multiple shooting over inputs and states (xmpsc.md §1)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpsafe.certify.problem import CertificationProblem
from gpsafe.models.ensemble import Ensemble
from gpsafe.models.gp import Prior, identity_prior, zero_prior
from gpsafe.planning.mpc._read import tape_of
from gpsafe.planning.mpc._sweeps import Array, input_box, parameters
from gpsafe.systems._tape import (
    ADD,
    CONSTANT,
    EQUAL,
    FIRST_UNARY,
    LESS,
    LESS_EQUAL,
    MUL,
    POWER,
    SELECT,
    SUB,
    UNARY,
)
from gpsafe.tube import core
from gpsafe.tube.ensemble import EnsembleTube
from gpsafe.tube.linear import LinearTube

try:
    import casadi
except ImportError as error:
    raise ImportError("IpoptReference needs casadi: pip install 'gpsafe[mpc]'", name="casadi") from error

ca: Any = casadi  # its annotations keep MX and SX apart, which share all functions used here
PENALTY = 1e6  # of the published soft terminal set, on squared violations
Local = Any  # (x, u) -> mean, A, B, variance, as CasADi expressions


@dataclass(frozen=True, slots=True)
class Form:
    """How the program is written; all forms have the same feasible inputs, but for the soft terminal set.

    Attributes:
        terminal: "hard" rows (paper), or "soft": 10⁶ times squared violations in the objective (published code).
        inert: the published code's redundant parts: M·2nu·T variables that occur nowhere, the certified action as a variable
            of its own, box rows of the inputs.
        shared: one function for mean, Jacobian and variance, instead of one each.
        expand: scalar instructions (SX) instead of matrix ones (MX).
        tightening: by which hard rows are tightened, in their units.
    """

    terminal: Literal["hard", "soft"] = "hard"
    inert: bool = False
    shared: bool = False
    expand: bool = False
    tightening: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program in v = (inputs, states of all members, redundant ones) with parameters (x_0, u_L).

    Attributes:
        nlp: for `nlpsol`, keys x, p, f, g.
        lower, upper: bounds of g.
        nominal: (x_0, inputs (nu, T)) ↦ states (nx, M·(T+1)), member by member.
        penalty: of v and p: the soft terminal set's part of the objective (0 if hard).
        steps, nu, inert: sizes; inert counts the redundant variables.
    """

    nlp: dict[str, Any]
    lower: Array
    upper: Array
    nominal: Any
    penalty: Any
    steps: int
    nu: int
    inert: int


def _network(theta: Array, sizes: list[int], z: Any) -> Any:
    """Raw output of one member with the flat parameters of `parameters` (normalisations folded in)."""
    at = 0
    for layer, (wide, out) in enumerate(itertools.pairwise(sizes)):
        weight = theta[at : at + wide * out].reshape(wide, out)
        bias = theta[at + wide * out : at + wide * out + out]
        at += wide * out + out
        z = ca.mtimes(ca.DM(weight.T), ca.tanh(z) if layer else z) + ca.DM(bias)
    return z


def _prior(prior: Prior, x: Any, u: Any) -> Any:
    nx, nu = x.shape[0], u.shape[0]
    if prior is zero_prior:
        return ca.DM.zeros(nx, 1)
    if prior is identity_prior:
        return x
    tape = tape_of(prior, nx, nu)
    if tape is None:
        raise ValueError(f"IpoptReference: expected a prior that can be read as scalar operations, got {prior!r:.80}")
    z = ca.SX.sym("z", nx + nu)
    slots = ca.vertsplit(z)
    for code, (i, j, k), constant in zip(tape.codes, tape.operands, tape.constants, strict=True):
        slots.append(_operation(int(code), slots[i], slots[j], slots[k], float(constant)))
    whole = ca.Function("prior", [z], [ca.vertcat(*(slots[i] for i in tape.outputs))])
    return whole(ca.vertcat(x, u))


def _operation(code: int, a: Any, b: Any, c: Any, constant: float) -> Any:
    """One operation of a tape on scalars."""
    binary = {
        ADD: lambda: a + b,
        SUB: lambda: a - b,
        MUL: lambda: a * b,
        LESS: lambda: a < b,
        LESS_EQUAL: lambda: a <= b,
        EQUAL: lambda: a == b,
        SELECT: lambda: ca.if_else(a, b, c),
        POWER: lambda: a**constant,
        CONSTANT: lambda: ca.SX(constant),
    }
    if code in binary:
        return binary[code]()
    name = UNARY[code - FIRST_UNARY]
    return 1.0 / a if name == "reciprocal" else getattr(ca, name)(a)


def _log_variance(ensemble: Ensemble, raw: Any) -> Any:
    low, high = (ca.DM(row) for row in ensemble.log_var_limits.numpy())
    if ensemble.clamp == "hard":
        return ca.fmin(ca.fmax(raw, low), high)
    soft = high - ca.log1p(ca.exp(-ca.fabs(high - raw))) - ca.fmax(high - raw, 0)
    return low + ca.log1p(ca.exp(-ca.fabs(soft - low))) + ca.fmax(soft - low, 0)


def _members(problem: CertificationProblem, form: Form) -> list[Local]:
    """Mean, Jacobian and variance of every member."""
    model, nx, nu = problem.model, problem.nx, problem.nu
    if isinstance(model, LinearTube):
        A, B, c = (ca.DM(value.numpy()) for value in (model.plant.A, model.plant.B, model.plant.c))
        W = ca.DM(model.half_axes.square().numpy())
        return [lambda x, u: (ca.mtimes(A, x) + ca.mtimes(B, u) + c, A, B, W)]
    if not isinstance(model, EnsembleTube) or model.mode != "paper":
        raise ValueError(f"IpoptReference: expected a paper-mode EnsembleTube or a LinearTube, got {model!r:.80}")
    theta, sizes = parameters(model.ensemble)
    kind = ca.SX if form.expand else ca.MX
    found = []
    for m in range(model.num_members):
        x, u = kind.sym("x", nx), kind.sym("u", nu)
        raw = _network(theta[m], sizes.tolist(), ca.vertcat(x, u))
        mean = _prior(model.ensemble.prior, x, u) + raw[:nx]
        variance = model.radius**2 * ca.exp(_log_variance(model.ensemble, raw[nx:]))
        outputs = [mean, ca.jacobian(mean, x), ca.jacobian(mean, u), variance]
        if form.shared or form.expand:
            found.append(ca.Function(f"local_{m}", [x, u], outputs, {"cse": True}))
        else:
            parts = [ca.Function(f"part_{m}_{i}", [x, u], [value]) for i, value in enumerate(outputs)]
            found.append(lambda x, u, parts=parts: tuple(part(x, u) for part in parts))
    return found


def program(problem: CertificationProblem, form: Form) -> Program:
    """The program of the form.

    Raises:
        ValueError: for a model or prior without a CasADi form here.
    """
    nx, nu, T, M = problem.nx, problem.nu, problem.steps, problem.num_members
    kind = ca.SX if form.expand else ca.MX
    members = _members(problem, form)
    inert = nu + M * 2 * nu * T if form.inert else 0
    U, X = kind.sym("U", nu, T), kind.sym("X", nx, M * (T + 1))
    start, learned = kind.sym("x_0", nx), kind.sym("u_L", nu)
    idle = kind.sym("V", inert)
    gain = core.gains(problem.gain, T, nx, nu).numpy()
    weight = np.eye(nu) if problem.weight is None else problem.weight.numpy()
    gap = learned - (idle[:nu] if form.inert else U[:, 0])
    cost = ca.mtimes([gap.T, ca.DM(weight), gap])
    (Hx, hx), (Hu, hu), (Ht, ht) = (
        (s.H.numpy(), ca.DM(s.h.numpy())) for s in (problem.states, problem.inputs, problem.terminal)
    )

    def over(H: Array, Q: Any) -> Any:
        """√diag(H Q Hᵀ)."""
        H = ca.DM(H)
        return ca.sqrt(ca.sum2(ca.mtimes(H, Q) * H))

    equal, rows, soft = ([idle[:nu] - U[:, 0]] if form.inert else []), [], 0
    if problem.certainty is not None:
        for k in range(T):
            stage = [X[:, m * (T + 1) + k + 1] for m in range(M)]
            level = ca.DM(problem.certainty[k].numpy())
            for x in stage:
                gap = x - sum(stage) / M
                rows += [gap - level, -gap - level]
    for m, local in enumerate(members):
        x = X[:, m * (T + 1)]
        equal.append(x - start)
        Q = (0.0 if problem.mode == "sound" else core.START**2) * ca.DM.eye(nx)
        for k in range(T):
            u, K = U[:, k], ca.DM(gain[k])
            if not (problem.mode == "sound" and k == 0):
                rows.append(ca.mtimes(ca.DM(Hu), u) + over(Hu @ gain[k], Q) - hu)
            else:
                rows.append(ca.mtimes(ca.DM(Hu), u) - hu)
            mean, A, B, variance = local(x, u)
            closed = A + ca.mtimes(B, K)
            G, W = ca.mtimes([closed, Q, closed.T]), ca.diag(variance)
            if problem.mode == "sound" and k == 0:
                Q = W
            else:
                ratio = ca.sqrt(ca.trace(G) / ca.trace(W))
                Q = (1 + 1 / ratio) * G + (1 + ratio) * W
            x = X[:, m * (T + 1) + k + 1]
            equal.append(x - mean)
            rows.append(ca.mtimes(ca.DM(Hx), x) + over(Hx, Q) - hx)
        last = ca.mtimes(ca.DM(Ht), x) + over(Ht, Q) - ht
        if form.terminal == "hard":
            rows.append(last)
        else:
            soft = soft + PENALTY * ca.sumsqr(ca.fmax(last, 0))
    g_equal, g_rows = ca.vertcat(*equal), ca.vertcat(*rows)
    v, p = ca.vertcat(ca.vec(U), ca.vec(X), idle), ca.vertcat(start, learned)
    zeros = np.zeros(g_equal.shape[0])
    below = np.full(g_rows.shape[0], problem.tolerance - form.tightening)
    boxed = ca.vec(U) if form.inert else kind(0, 1)
    low, high = (np.tile(bound, T if form.inert else 0) for bound in input_box(problem.inputs))
    nlp = {"x": v, "p": p, "f": cost + soft, "g": ca.vertcat(g_equal, boxed, g_rows)}
    return Program(
        nlp,
        np.concatenate([zeros, low, np.full(len(below), -np.inf)]),
        np.concatenate([zeros, high, below]),
        _nominal(members, nx, nu, T),
        ca.Function("penalty", [v, p], [soft]),
        T,
        nu,
        inert,
    )


def _nominal(members: list[Local], nx: int, nu: int, steps: int) -> Any:
    start, U = ca.MX.sym("x_0", nx), ca.MX.sym("U", nu, steps)
    paths = []
    for local in members:
        x = start
        paths.append(x)
        for k in range(steps):
            x = local(x, U[:, k])[0]
            paths.append(x)
    return ca.Function("nominal", [start, U], [ca.horzcat(*paths)])
