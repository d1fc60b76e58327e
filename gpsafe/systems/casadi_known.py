"""A known part written in CasADi, as one in torch: read instruction by instruction, so that all derivatives stay exact."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require

_SAME = (
    "sqrt",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "exp",
    "log",
)
_SAME += ("floor", "ceil", "sign", "erf", "log1p", "expm1", "fmod", "atan2", "hypot", "copysign")
OPERATIONS: dict[str, Callable[..., Any]] = {  # by CasADi's names of scalar operations
    **{name: getattr(torch, name) for name in _SAME},
    "assign": lambda a: a,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "sq": torch.square,
    "twice": lambda a: 2.0 * a,
    "inv": torch.reciprocal,
    "fabs": torch.abs,
    "pow": operator.pow,
    "constpow": operator.pow,
    "fmin": torch.minimum,
    "fmax": torch.maximum,
    "lt": lambda a, b: (a < b).to(a),
    "le": lambda a, b: (a <= b).to(a),
    "eq": lambda a, b: (a == b).to(a),
    "ne": lambda a, b: (a != b).to(a),
    "not": lambda a: (a == 0).to(a),
    "and": lambda a, b: ((a != 0) & (b != 0)).to(a),
    "or": lambda a, b: ((a != 0) | (b != 0)).to(a),
    "if_else_zero": lambda a, b: torch.where(a != 0, b, torch.zeros_like(b)),
}


@dataclass(frozen=True, slots=True)
class CasadiKnown:
    """p(x, u), (*b, nx) and (*b, nu) → (*b, nx); build with `casadi_known`.

    It states no bound on second derivatives, without which sound tubes refuse it; a subclass may add `hessian_bound`.

    Attributes:
        nx, nu: dimensions.
        instructions: in order: name in `OPERATIONS`, "const", "input" or "output"; places of its operands; place of its result;
            the constant. An input's operands are the argument and its entry, an output's place is the entry of p.
    """

    nx: int
    nu: int
    instructions: tuple[tuple[str, tuple[int, ...], int, float], ...]

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        given = x.expand(*batch, self.nx).unbind(-1), u.expand(*batch, self.nu).unbind(-1)
        places: dict[int, Tensor] = {}
        outputs = [torch.zeros_like(given[0][0])] * self.nx
        for name, operands, place, constant in self.instructions:
            if name == "const":
                places[place] = torch.full_like(given[0][0], constant)
            elif name == "input":
                places[place] = given[operands[0]][operands[1]]
            elif name == "output":
                outputs[place] = places[operands[0]]
            else:
                places[place] = OPERATIONS[name](*(places[i] for i in operands))
        return torch.stack(outputs, dim=-1)


def casadi_known(function: Any) -> CasadiKnown:
    """The known part that a `casadi.Function` (x (nx), u (nu)) ↦ p (nx) computes.

    Compiled sweeps and the IPOPT forms read it like any known part in torch, Gaussian processes and ensembles evaluate it.

    Raises:
        ValueError: if it is no such function, cannot be expanded to scalar operations, or uses one without a form in torch.
    """
    import casadi

    ca: Any = casadi
    where = "casadi_known"
    if not isinstance(function, ca.Function):
        raise _require.fail(where, "a casadi Function", type(function).__name__)
    sizes = [tuple(function.size_in(i)) for i in range(function.n_in())]
    sizes += [tuple(function.size_out(i)) for i in range(function.n_out())]
    if len(sizes) != 3 or function.n_out() != 1 or any(s[1] != 1 for s in sizes) or sizes[0] != sizes[2]:
        raise _require.fail(where, "columns (x, u) ↦ p of the size of x", f"sizes {sizes}")
    nx, nu = sizes[0][0], sizes[1][0]
    x, u = ca.SX.sym("x", nx), ca.SX.sym("u", nu)
    try:
        plain = ca.Function("known", [x, u], [ca.densify(function.expand()(x, u))])
    except Exception as error:
        raise _require.fail(where, "a function of scalar operations", _require.told(error)) from error
    names = {getattr(ca, f"OP_{name.upper()}"): name for name in (*OPERATIONS, "const", "input", "output")}
    found = []
    for k in range(plain.n_instructions()):
        code, operands, result = plain.instruction_id(k), plain.instruction_input(k), plain.instruction_output(k)
        if code not in names:
            raise _require.fail(where, "scalar operations that torch has", f"CasADi's operation {code}")
        name = names[code]
        constant = float(plain.instruction_constant(k)) if name == "const" else 0.0
        found.append((name, tuple(operands), result[-1] if name == "output" else result[0], constant))
    return CasadiKnown(nx, nu, tuple(found))
