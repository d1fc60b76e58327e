"""Backup laws of the published plants, certified: from which states the linear law keeps the limits, for ever (theory §6.7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.problem import CertificationProblem
from gpsafe.certify.terminal_set import AffineLaw, Invariance, certify_invariance
from gpsafe.sets.box import Box
from gpsafe.sets.ellipsoid import Ellipsoid
from gpsafe.sets.polytope import Polytope
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.systems.xmpsc_local import SafeCartPoleLocal
from gpsafe.tube.known import KnownTube

NEAR = 9.0  # m/s and rad/s: proposals stay where the known part is the plant
SHARE = 0.97  # of the largest parallelotope without curvature; the rest is for the curvature
CURVATURE = (0.2, 0.35, 0.5, 0.7, 1.0)  # N m: what the curvature may amount to, as an input, one after the other


def certified_backup(plant: SimplePendulum | SafeCartPole, *, budget: int = 500_000) -> Invariance:
    """A set S within the limits that the plant does not leave under `plant.backup`, whatever its published noise does.

    In S the law κ(x) = −K(x − x_0), x_0 the plant's `rest`, does not saturate: |κ| ≤ 1 − ε with ε = input noise +
    |K|·measurement noise. What acts is then κ(x + v) + e = κ(x) + (Kv + e), and |Kv + e| ≤ ε, so that `KnownTube` with error ε
    contains the step from every x in S; `certify_invariance` shows that it ends in S. So S is kept in every step, for any
    number of steps. The known part is `plant.prior(scale=1)`, which is the plant for speeds of at most 10; S lies within.

    S is proposed from the linearisation. Where its closed loop has real eigenvalues λ_i with left eigenvectors t_i, it is
    {|t_i(x − x_0)| ≤ s_i} of largest volume within the limits (8 rows and 16 vertices in four dimensions, where the largest
    invariant polytope has hundreds and thousands); else the largest invariant polytope. Nothing about it is believed. The
    parallelotope of the cart-pole reaches almost to the limits along its edges, but it is a sliver: it holds a quarter of the
    published starts, whereas the pendulum's set holds 97 %.

    Args:
        plant: one of the two itself, with any parameters; where nothing is found, the verdict of the last try is returned.
        budget: of cells, see `certify_invariance`. The cart-pole needs most of it (about 15 s).

    Returns:
        The certificate; its `region` is S, its `law` κ.
    """
    if type(plant) not in (SimplePendulum, SafeCartPole):  # what a subclass does is not what is certified
        raise _require.fail("certified_backup", "a SimplePendulum or SafeCartPole", type(plant).__name__)
    rest, gain, nx = plant.rest, -plant.backup_gain, plant.nx
    law = AffineLaw.about(gain, rest, torch.zeros(1, dtype=torch.float64))
    seen, known = torch.zeros(nx, dtype=torch.float64), plant.prior(scale=1.0)
    if isinstance(plant, SimplePendulum):
        seen = 2 * plant.observation_noise * plant.state_box.radius
    else:
        known = SafeCartPoleLocal(plant.prior(scale=1.0))
    error = plant.input_noise + gain.abs() @ seen
    tube = KnownTube(known, error * (1 + 1e-12))
    limits = plant.state_box.intersect(Box(rest - NEAR, rest + NEAR))
    inputs = Box(error - 1.0, 1.0 - error)
    local = tube.linearise(rest.unsqueeze(0), torch.zeros(1, 1, dtype=torch.float64))
    closed, pushed = local.A[0] + local.B[0] @ gain, (local.B[0].abs() @ error.unsqueeze(-1)).squeeze(-1)
    rows = Polytope.of_box(inputs)
    admitted = Polytope.of_box(limits).intersect(Polytope(rows.H @ gain, rows.h - rows.H @ law.offset))
    found: Invariance | None = None
    for proposal in _proposals(closed, rest, admitted, pushed, local.B[0].abs().squeeze(-1)):
        problem = CertificationProblem(tube, Polytope.of_box(limits), rows, proposal, gain, 1)
        found = certify_invariance(problem, law, budget=budget)
        if found.certified:
            return found
    if found is None:
        raise _require.fail("certified_backup", "a law that stabilises within the limits", "none that was proposed")
    return found


def _proposals(closed: Tensor, rest: Tensor, admitted: Polytope, pushed: Tensor, along: Tensor) -> Iterator[Polytope]:
    """Candidates for S, largest first."""
    rates, vectors = np.linalg.eig(closed.numpy())
    if not np.iscomplexobj(rates) and np.linalg.cond(vectors) < 1e6:
        yield _parallelotope(torch.from_numpy(vectors), rest, admitted)
        return
    for extra in CURVATURE:
        noise = Ellipsoid(torch.zeros_like(rest), torch.diag(pushed + extra * along))
        try:
            yield invariant_polytope(closed, rest - closed @ rest, admitted, noise)
        except ValueError:
            return


def _parallelotope(vectors: Tensor, rest: Tensor, admitted: Polytope) -> Polytope:
    """`SHARE` of the {x_0 + Σ y_i v_i : |y_i| ≤ s_i} of largest volume within `admitted`.

    max Σ log s_i subject to |H V| s ≤ h − H x_0, concave; in log s the constraints are convex.
    """
    size, room = (admitted.H @ vectors).abs().numpy(), (admitted.h - admitted.H @ rest).numpy()
    start = np.log((room[:, None] / (size.shape[1] * np.maximum(size, 1e-300))).min(0))
    limit = {"type": "ineq", "fun": lambda z: np.log(room) - np.log(size @ np.exp(z))}
    best = scipy.optimize.minimize(lambda z: -z.sum(), start, constraints=limit, method="SLSQP")
    scale = torch.from_numpy(np.exp(best.x)) * SHARE
    normals = torch.linalg.inv(vectors) / scale.unsqueeze(-1)
    normals = torch.cat([normals, -normals])
    return Polytope(normals, 1.0 + normals @ rest)
