"""What stands between two episodes of an X-MPSC learner, and the same as plain arrays: names are paths, values are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gpsafe.algorithms.certification import Model
from gpsafe.certify.terminal_set import TerminalSet
from gpsafe.data import Transitions
from gpsafe.models import Memory
from gpsafe.models._mlp import MLP
from gpsafe.models._normalizer import Normalizer
from gpsafe.models.ensemble import Ensemble
from gpsafe.planning.mbpo import SAC, Ring
from gpsafe.sets.polytope import Polytope

Arrays = Mapping[str, np.ndarray]


@dataclass(slots=True, eq=False)
class Standing:
    """What stands between two episodes.

    Attributes:
        agent: soft actor-critic, a stack of one.
        real, virtual: transitions in float32.
        model: as learned.
        memory: of the optimiser of an ensemble.
        apart: rows that no model learned from.
        hull: of the states certified so far; None with an invariant terminal set.
        fixed: that set; in sound mode the last that was found.
        certified: states certified since the last update of the hull.
        pending: transitions that the model has not learned from.
        told: what a Gaussian process was conditioned on, in order.
        version: counts models and terminal sets; 0 before the first.
        flown: episodes told when the version last changed.
    """

    agent: SAC
    real: Ring
    virtual: Ring
    model: Model
    memory: Memory | None = None
    apart: Transitions | None = None
    hull: TerminalSet | None = None
    fixed: Polytope | None = None
    certified: list[Tensor] = field(default_factory=list)
    pending: Transitions | None = None
    told: list[Transitions] = field(default_factory=list)
    version: int = 0
    flown: int = 0


def pack(at: Standing) -> dict[str, np.ndarray]:
    """Everything, for `unpack` of a learner of the same arguments."""
    found: dict[str, np.ndarray] = {"version": np.array(at.version), "flown": np.array(at.flown)}
    for name, part in (("agent", at.agent), ("real", at.real), ("virtual", at.virtual), ("memory", at.memory)):
        if part is not None:
            found |= _under(name, part.state())
    if isinstance(at.model, Ensemble):
        found |= _under("model", _ensemble(at.model))
    for name, rows in (("apart", at.apart), ("pending", at.pending)):
        if rows is not None:
            found |= _under(name, _rows(rows))
    if at.hull is not None:
        found["hull/points"] = at.hull.points.numpy()
        for k, hull in enumerate(at.hull.hulls):
            found |= {f"hull/H-{k}": hull.H.numpy(), f"hull/h-{k}": hull.h.numpy()}
    if at.fixed is not None:
        found |= {"fixed/H": at.fixed.H.numpy(), "fixed/h": at.fixed.h.numpy()}
    if at.certified:
        found["certified"] = torch.stack(at.certified).numpy()
    for k, rows in enumerate(at.told):
        found |= _under(f"told-{k:05d}", _rows(rows))
    return found


def unpack(at: Standing, arrays: Arrays, dims: tuple[int, ...], nx: int, delay: int) -> None:
    """Fills a fresh one.

    Args:
        at: as at the start.
        arrays: of `pack`.
        dims, nx, delay: of the terminal set.
    """
    at.version, at.flown = int(arrays["version"]), int(arrays.get("flown", 0))
    for name, part in (("agent", at.agent), ("real", at.real), ("virtual", at.virtual)):
        part.load(_of(arrays, name))
    if isinstance(at.model, Ensemble):
        at.memory = Memory.of(found) if (found := _of(arrays, "memory")) else None
        at.model = _ensemble_of(at.model, _of(arrays, "model"))
    at.apart, at.pending = (_rows_of(_of(arrays, name)) for name in ("apart", "pending"))
    if hull := _of(arrays, "hull"):
        count = sum(name.startswith("H-") for name in hull)
        hulls = tuple(Polytope(_tensor(hull[f"H-{k}"]), _tensor(hull[f"h-{k}"])) for k in range(count))
        at.hull = TerminalSet(nx, dims, delay, _tensor(hull["points"]), hulls)
    if fixed := _of(arrays, "fixed"):
        at.fixed = Polytope(_tensor(fixed["H"]), _tensor(fixed["h"]))
    at.certified = list(_tensor(arrays["certified"])) if "certified" in arrays else []
    for name in sorted({key.split("/")[0] for key in arrays if key.startswith("told-")}):
        rows = _rows_of(_of(arrays, name))
        assert rows is not None
        at.told.append(rows)
        if not isinstance(at.model, Ensemble):  # a Gaussian process is conditioned anew, in the same order
            at.model = at.model.update(at.model.model.condition(rows))


def _under(name: str, arrays: Arrays) -> dict[str, np.ndarray]:
    return {f"{name}/{key}": value for key, value in arrays.items()}


def _of(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(name + "/")}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _rows(rows: Transitions) -> dict[str, np.ndarray]:
    return {"x": rows.x.numpy(), "u": rows.u.numpy(), "x_next": rows.x_next.numpy()}


def _rows_of(found: Arrays) -> Transitions | None:
    return Transitions(*(_tensor(found[name]) for name in ("x", "u", "x_next"))) if found else None


def _ensemble(model: Ensemble) -> dict[str, np.ndarray]:
    found = {f"W-{k}": w.numpy() for k, w in enumerate(model.network.weights)}
    found |= {f"b-{k}": b.numpy() for k, b in enumerate(model.network.biases)}
    for name in ("inputs", "targets"):
        part = getattr(model, name)
        found |= {f"{name}-offset": part.offset.numpy(), f"{name}-scale": part.scale.numpy()}
    if model.data is not None:
        found |= _under("data", _rows(model.data))
    if model.held_out is not None:
        found["held-out"] = model.held_out.numpy()
    return found


def _ensemble_of(model: Ensemble, found: Arrays) -> Ensemble:
    layers = len(model.network.weights)
    network = MLP(
        tuple(_tensor(found[f"W-{k}"]) for k in range(layers)), tuple(_tensor(found[f"b-{k}"]) for k in range(layers))
    )
    parts = {
        name: Normalizer(_tensor(found[f"{name}-offset"]), _tensor(found[f"{name}-scale"]))
        for name in ("inputs", "targets")
    }
    held = _tensor(found["held-out"]) if "held-out" in found else None
    return replace(model, network=network, **parts, data=_rows_of(_of(found, "data")), held_out=held)
