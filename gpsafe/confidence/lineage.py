"""What makes posteriors generations of one F_n: one kernel, λ, known part and noise, and one growing data set.

The theorems speak of the posteriors along *one* filtration: kernel, λ and known part fixed before the data, every
observation kept, in the order in which it was made. An intersection over anything else (a selection of the outcomes, a
kernel refitted in between) has no such guarantee, so `ConfidenceSet` accepts a posterior only as a continuation of the last.

**Seen and refused:** other dimensions, outputs, kernels, λ or noise; another known part, or the same object with other
values at the probes (data and fixed random points): a closure whose captured variable changed; data that are fewer, other,
permuted or edited in place; eight different rows or more that repeat eight earlier ones in their order, wherever they stand
(in the first posterior, too);
kernels and λ edited after the model was made.

The theorems allow that rows repeat: noise on a grid, and none, is R-sub-Gaussian, too. What never repeats is the Gaussian noise
of deviation `noise_std` that a model states of learned states (beyond what float64 rounds off): then eight rows again are a
copy, or that noise, on which bounds of expected costs rest, is not there. For other noise state noise_std = 0, and R in the
bound.

**Not seen:** what was left out before the first posterior was built or is left out of what is appended; hyperparameters
chosen with these data in hand and then stated as numbers; a known part that changed away from the probes; single
observations repeated (noise on a grid, or none, repeats by right); an edit of the factors behind a posterior. These stay
assumptions.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe._pinned import Pinned
from gpsafe._show import short
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

PROBES = 16  # points of each kind at which the known part must keep its values
REPEATED = 8  # different rows that repeat earlier ones in their order, bit by bit: no Gaussian noise does so by chance
ROUNDED = 16 * torch.finfo(torch.float64).eps  # of the size of a state: noise below that may leave it as it is


@short
@dataclass(frozen=True, slots=True, eq=False)
class Lineage:
    """What the newest generation was at the moment when it was accepted (copies: later edits show).

    Attributes:
        model: the newest generation.
        kernels: fingerprints.
        shape: (nx, nu, outputs).
        regularizer, noise_std: λ (p,) and aleatoric standard deviation (nx,).
        inputs, targets, noise_scale: data, (n, d), (n, p), (n,); n = 0 before any.
        known: the known part at points, and the numbers that it captures.
    """

    model: GP
    kernels: tuple[Any, ...]
    shape: tuple[int, int, tuple[int, ...]]
    regularizer: Tensor
    noise_std: Tensor
    inputs: Tensor
    targets: Tensor
    noise_scale: Tensor
    known: tuple[Pinned, ...]

    @staticmethod
    def of(model: GP) -> Lineage:
        """The lineage of which this posterior is the newest (`refusal` says whether it goes on)."""
        inputs, targets, scale = (part.clone() for part in _data(model))
        return Lineage(
            model,
            _kernels(model),
            (model.nx, model.nu, tuple(model.outputs)),
            model.regularizer.clone(),
            model.noise_std.clone(),
            inputs,
            targets,
            scale,
            tuple(Pinned.of(model.prior, z[:, : model.nx], z[:, model.nx :]) for z in _probes(model)),
        )

    def refusal(self, model: GP) -> str | None:
        """Why this posterior does not continue the last one; None if it does."""
        if (model.nx, model.nu, tuple(model.outputs)) != self.shape:
            return "the same nx, nu and outputs as the last generation"
        if _kernels(model) != self.kernels:
            return "the same kernels as the last generation"
        if not _equal(model.regularizer, self.regularizer):
            return "the same lambda as the last generation"
        if not _equal(model.noise_std, self.noise_std):
            return "the same noise_std as the last generation"
        if not provably_equal(model.prior, self.model.prior):
            return "the same known part (prior) as the last generation"
        if not all(pinned.agrees(model.prior) for pinned in self.known):
            return "a known part (prior) that still has the values which it had in the last generation"
        return self._data_refusal(model)

    def edited(self) -> str | None:
        """What of the newest generation is not what it was when it was accepted; None if all is."""
        if any(pinned.moved for pinned in self.known):
            return "a known part (prior) that is still the one with which the data were learned"
        if not _equal(self.model.noise_std, self.noise_std):
            return "the noise_std with which the model was accepted"
        return inconsistency(self.model) or self._data_refusal(self.model)

    def disowns(self, earlier: Sequence[GP]) -> str | None:
        """What of earlier generations is not as in the newest one any more (call `edited` first); None if all is."""
        for old in earlier:
            n, shared = old.num_data, old.kernels is self.model.kernels
            inputs, targets, scale = _data(old)
            if not _equal(old.regularizer, self.regularizer) or (not shared and inconsistency(old) is not None):
                return "the kernels and lambda of the earlier generations"
            if not (_equal(inputs, self.inputs[:n]) and _equal(targets, self.targets[:n])):
                return "the observations of the earlier generations"
            if not _equal(scale, self.noise_scale[:n]):
                return "the noise scales of the earlier generations"
        return None

    def _data_refusal(self, model: GP) -> str | None:
        n, (inputs, targets, scale) = len(self.inputs), _data(model)
        if len(inputs) < n:
            return f"all {n} observations of the last generation, and new ones after them (every observation kept)"
        if not (_equal(inputs[:n], self.inputs) and _equal(targets[:n], self.targets)):
            return f"the {n} observations of the last generation first, unchanged and in their order (append new ones)"
        if not _equal(scale[:n], self.noise_scale):
            return "the noise scales of the last generation for its observations"
        return None


def repetition(model: GP) -> str | None:
    """Which rows of a posterior's data were told again: the theorems count each as an observation with noise of its own. None
    if none were, or if no learned state has noise beyond what float64 rounds off: then the same is measured again by right.
    """
    (inputs, targets, _), outputs = _data(model), list(model.outputs)
    if len(inputs) == 0:
        return None
    size = torch.maximum(inputs[:, outputs].abs().amax(0), targets.abs().amax(0))
    if not bool((model.noise_std.to(size)[outputs] > ROUNDED * size).any()):
        return None
    found = _repeated(inputs, targets)
    if found is None:
        return None
    rows = f"rows {found[1]} and on repeat rows {found[0]} and on, bit by bit"
    return f"new observations only ({rows}; Gaussian noise does not: noise_std = 0 states that there is none)"


def _repeated(inputs: Tensor, targets: Tensor) -> tuple[int, int] | None:
    """Where `REPEATED` rows equal as many earlier ones: (their start, its start).

    Rows that differ from each other: a plant at rest on a grid of measurements repeats one by right.
    """
    table = torch.cat([inputs, targets], dim=-1).detach().cpu().numpy()
    rows = [row.tobytes() for row in table]
    first: dict[tuple[bytes, ...], int] = {}
    for start, window in enumerate(zip(*(rows[k:] for k in range(REPEATED)), strict=False)):
        if len(set(window)) < REPEATED:
            continue
        before = first.setdefault(window, start)
        if before < start:
            return before, start
    return None


def inconsistency(model: GP) -> str | None:
    """What does not fit together in a posterior: kernels or λ edited after it was made; None if all fits."""
    exact: GP = getattr(model, "exact", model)
    for j, i in enumerate(exact._index):
        factor = exact._factors[i]
        form = kernels.closed_form(exact.kernels[j])
        if fingerprint(form) != fingerprint(factor.form) or exact.kernels[j] is not factor.kernel:
            return "the kernels that the model was made with (these were edited since)"
        if float(exact.regularizer[j]) != factor.regularizer or factor.n != exact.num_data:
            return "the lambda and data that the model was made with (these were edited since)"
    return None


def fingerprint(value: Any) -> Any:
    """A tuple that is equal for kernels, closed forms and plain data of equal content.

    Of a kernel: the tree of its parts with their types, plain attributes, and every parameter and buffer bit by bit. Of
    what has no readable content, the object itself.
    """
    if isinstance(value, Tensor):
        return "tensor", str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)):
        return type(value).__name__, repr(value)
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(fingerprint(item) for item in value)
    if isinstance(value, dict):
        return "dict", tuple((fingerprint(k), fingerprint(v)) for k, v in value.items())
    if isinstance(value, Kernel):
        parts = [(name, type(part), _plain(part)) for name, part in value.named_modules()]
        return "kernel", tuple(parts), fingerprint(dict(value.state_dict()))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(fingerprint(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, types.FunctionType):
        captured = tuple(fingerprint(cell.cell_contents) for cell in value.__closure__ or ())
        named = fingerprint(value.__defaults__), fingerprint(value.__kwdefaults__)
        return "function", value.__code__, id(value.__globals__), captured, named
    if isinstance(value, types.MethodType):
        return "method", fingerprint(value.__func__), fingerprint(value.__self__)
    return value


def provably_equal(one: Any, other: Any) -> bool:
    """Whether two known parts are the same object, or of the same code and content."""
    if one is other:
        return True
    try:
        return bool(fingerprint(one) == fingerprint(other))
    except Exception:  # a cell not yet filled, a recursive structure, an object whose == is not one answer
        return False


def _plain(part: torch.nn.Module) -> tuple[Any, ...]:
    """Attributes of a module that are plain numbers or words (ν, names of dimensions), without its mode."""
    plain = (bool, int, float, str, torch.Size)
    return tuple(sorted((k, repr(v)) for k, v in vars(part).items() if isinstance(v, plain) and k != "training"))


def _kernels(model: GP) -> tuple[Any, ...]:
    found = {key: fingerprint(kernel) for key, kernel in {id(kernel): kernel for kernel in model.kernels}.items()}
    return tuple(found[id(kernel)] for kernel in model.kernels)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one.device))


def scales(model: GP) -> Tensor:
    """Noise scales of the observations, (n,): 1 where nothing else was said."""
    scale = getattr(model, "noise_scale", None)
    return torch.ones(model.num_data, dtype=torch.float64) if scale is None else scale.cpu()


def _data(model: GP) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, d), targets (n, p) and noise scales (n,)."""
    inputs, targets, none = model.inputs, model.targets, model.regularizer.new_empty(0)
    if inputs is None or targets is None:
        inputs, targets = none.reshape(0, model.nx + model.nu), none.reshape(0, model.num_outputs)
    return inputs, targets, scales(model)


def _probes(model: GP) -> tuple[Tensor, ...]:
    """Fixed random points, and the first observations."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(PROBES, model.nx + model.nu, dtype=torch.float64, generator=generator)
    points = points.to(model.regularizer.device)
    return (points,) if model.inputs is None else (points, model.inputs[:PROBES].clone())
