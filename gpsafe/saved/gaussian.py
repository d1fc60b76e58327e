"""Gaussian processes with the very factors that they compute with, so that a loaded posterior has the same bits.

L and L⁻¹ grow block by block, and rounding depends on the blocks: factors made anew from the data would give other last digits.
They are written as they are, with the capacity of their buffer: products with strided views round by their strides. A file is
not believed: its factors must be those of its own kernel, λ and data, within the rounding that the certified margins allow
(`gpsafe.confidence.rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe.confidence.lineage import inconsistency
from gpsafe.models import GP
from gpsafe.models._factor import Factor, Store
from gpsafe.rkhs import kernels
from gpsafe.saved.arrays import ArrayReader, ArrayWriter

PLAIN = ("nx", "nu", "outputs", "prior", "mode")
DATA = ("regularizer", "noise_std", "inputs", "targets", "noise_scale")


def encode_gp(
    model: GP,
    where: str,
    arrays: ArrayWriter,
    encode: Callable[[Any, str], Any],
    kernel_index: Callable[[Kernel, str], int],
) -> dict[str, Any]:
    """The tree of a model: what it was made with, its data and its factors."""
    reason = inconsistency(model)
    if reason is not None:
        raise _require.fail("save", reason, where)
    tree: dict[str, Any] = {"class": "GP"}
    tree |= {name: encode(getattr(model, name), f"{where}.{name}") for name in PLAIN}
    for name in DATA:
        value = getattr(model, name)
        tree[name] = None if value is None else arrays.put(f"{where}.{name}", value, grown=True)
    tree["factor_of_output"] = list(model._index)
    tree["factors"] = [_encode_factor(factor, model, where, arrays, kernel_index) for factor in model._factors]
    return tree


def _encode_factor(
    factor: Factor, model: GP, where: str, arrays: ArrayWriter, kernel_index: Callable[[Kernel, str], int]
) -> dict[str, Any]:
    tree = {
        "kernel": kernel_index(factor.kernel, f"{where}.kernels"),
        "capacity": len(factor.store.lower),
        "lower": arrays.put(f"{where}.lower", factor.lower, grown=True),
        "inverse": arrays.put(f"{where}.inverse", factor.inverse, grown=True),
    }
    if model.inputs is not None and not ("block" in tree["lower"] and "block" in tree["inverse"]):
        _require_factor(
            "save", factor, model.inputs, _weight(model.inputs, model.noise_scale), where
        )  # or `load` would refuse
    return tree


def _weight(inputs: Tensor, scale: Tensor | None) -> Tensor:
    return torch.ones_like(inputs[:, 0]) if scale is None else scale.square()


class GaussianReader:
    """Makes models; those whose factors are parts of one array share its memory, as generations do."""

    def __init__(self, arrays: ArrayReader, kernel: Sequence[Kernel], decode: Callable[[Any, str], Any]) -> None:
        self._arrays, self._kernels, self._decode = arrays, kernel, decode
        self._stores: dict[tuple[str, str, int], Store] = {}
        self._shown: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def decode(self, tree: Mapping[str, Any], where: str) -> GP:
        """The model of a tree."""
        names = {"class", *PLAIN, *DATA, "factor_of_output", "factors"}
        if set(tree) != names:
            raise _require.fail("load", f"the fields of GP at {where}", f"{sorted(set(tree) ^ names)} more or less")
        plain = {name: self._decode(tree[name], f"{where}.{name}") for name in PLAIN}
        arrays = {name: None if tree[name] is None else self._arrays.get(tree[name]).to(torch.float64) for name in DATA}
        index, parts = tuple(tree["factor_of_output"]), tree["factors"]
        if sorted(set(index)) != list(range(len(parts))) or len(index) != len(plain["outputs"]):
            raise _require.fail("load", f"a factor for every output at {where}", index)
        chosen = [self._kernels[parts[i]["kernel"]] for i in index]
        regularizer, noise_std = arrays["regularizer"], arrays["noise_std"]
        assert regularizer is not None and noise_std is not None
        empty = GP.create(chosen, regularizer, noise_std=noise_std, **plain)  # its checks
        inputs, targets, scale = _checked_data(empty, arrays["inputs"], arrays["targets"], arrays["noise_scale"], where)
        if any(float(regularizer[j]) != float(regularizer[index.index(i)]) for j, i in enumerate(index)):
            raise _require.fail("load", f"one lambda for the outputs of a factor at {where}", regularizer.tolist())
        factors = tuple(
            self._factor(part, float(regularizer[index.index(i)]), inputs, scale, where) for i, part in enumerate(parts)
        )
        return GP(
            tuple(chosen),
            empty.regularizer,
            empty.noise_std,
            empty.nx,
            empty.nu,
            empty.outputs,
            empty.prior,
            empty.mode,
            inputs,
            targets,
            scale,
            _factors=factors,
            _index=index,
            _cache={},
        )

    def _factor(
        self, part: Mapping[str, Any], regularizer: float, inputs: Tensor | None, scale: Tensor | None, where: str
    ) -> Factor:
        kernel = self._kernels[part["kernel"]]
        n = 0 if inputs is None else len(inputs)
        if n == 0:
            return Factor.empty(kernel, regularizer, torch.device("cpu"))
        names = part["lower"]["array"], part["inverse"]["array"], part["capacity"]
        if names not in self._stores:
            self._stores[names] = self._store(*names)
        store = self._stores[names]
        if store.rows < n or any(tuple(part[k].get("block", (n, n))) != (n, n) for k in ("lower", "inverse")):
            raise _require.fail("load", f"factors of {n} rows at {where}", f"{part['lower']} and {part['inverse']}")
        factor = Factor(kernel, kernels.closed_form(kernel), regularizer, store, n)
        assert inputs is not None
        weight = _weight(inputs, scale)
        key = (names, part["kernel"], regularizer)
        if key not in self._shown or not _begins(
            self._shown[key], (inputs, weight)
        ):  # a leading block of one that fits
            _require_factor("load", factor, inputs, weight, where)
            self._shown[key] = inputs, weight
        return factor

    def _store(self, lower: str, inverse: str, capacity: int) -> Store:
        blocks = [self._arrays.get({"array": name}) for name in (lower, inverse)]
        store = Store(_require.index("load", "capacity", capacity, minimum=1), torch.device("cpu"))
        rows = min(capacity, *(len(block) for block in blocks))
        store.inverse = spare = torch.empty_like(store.lower)
        for buffer, block in zip((store.lower, spare), blocks, strict=True):
            buffer[:rows, :rows] = block[:rows, :rows]
        store.rows = store.inverse_rows = rows
        return store


def _begins(whole: tuple[Tensor, Tensor], part: tuple[Tensor, Tensor]) -> bool:
    return all(len(a) >= len(b) and torch.equal(a[: len(b)], b) for a, b in zip(whole, part, strict=True))


def _checked_data(
    model: GP, inputs: Tensor | None, targets: Tensor | None, scale: Tensor | None, where: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if inputs is None or targets is None:
        if not (inputs is None and targets is None and scale is None):
            raise _require.fail("load", f"inputs and targets, or neither, at {where}", "one of them")
        return None, None, None
    n = inputs.shape[0]
    for name, value, shape in (
        ("inputs", inputs, (n, model.nx + model.nu)),
        ("targets", targets, (n, model.num_outputs)),
        ("noise_scale", scale, (n,)),
    ):
        if value is not None:
            _require.shape("load", f"{where}.{name}", _require.finite("load", f"{where}.{name}", value), shape)
    if scale is not None and not bool((scale >= 1).all()):
        raise _require.fail("load", f"{where}.noise_scale >= 1", float(scale.min()))
    return inputs, targets, scale


def _require_factor(caller: str, factor: Factor, inputs: Tensor, weight: Tensor, where: str) -> None:
    """Refuses L that is not the factor of A = K + λ diag(weight), and X that is not L⁻¹.

    |LLᵀ − A| ≤ (2ε₀ + 4γ_{n+2}) √A_ii √A_jj entry by entry: η = ε₀ + 1.1γ_{n+1} of the factor, ε₀ of the Gram matrix computed
    here, γ_n of the product; `_ambiguity` adds to ε₀. |XL − I| ≤ 8γ_{n+2} max |X||L|: inverting by blocks leaves a residual of
    that size.
    """
    n, eye = factor.n, torch.eye(factor.n, dtype=inputs.dtype, device=inputs.device)
    gram = factor.cross(inputs, inputs)
    target = gram + factor.regularizer * torch.diag(weight)
    lower, inverse, size = factor.lower, factor.inverse, target.diagonal().sqrt()
    error = 2 * kernels.entry_error(factor.form or factor.kernel, inputs, product=False) + 4 * linalg.gamma(n + 2)
    error += _ambiguity(factor, inputs, gram, size)
    triangular = not bool(lower.triu(1).any() or inverse.triu(1).any()) and bool((lower.diagonal() > 0).all())
    fits = bool(((lower @ lower.mT - target).abs() <= error * torch.outer(size, size)).all())
    left = (inverse @ lower - eye).abs().max()
    if not (triangular and fits and bool(left <= 8 * linalg.gamma(n + 2) * (inverse.abs() @ lower.abs()).max())):
        expected = f"the Cholesky factor of kernel, lambda and data at {where}, and its inverse"
        raise _require.fail(caller, expected, "others")


def _ambiguity(factor: Factor, inputs: Tensor, gram: Tensor, size: Tensor) -> float:
    """How far ``gpytorch``'s values of one Gram matrix lie apart, relative to √A_ii √A_jj; 0 for closed forms.

    It subtracts a mean of the rows that it is given, and loses digits with the distance from it: a matrix made in two blocks
    differs from one made at once. The factor grew from other blocks; 64 times what these two show is allowed.
    """
    if factor.form is not None or factor.n < 2:
        return 0.0
    half = factor.n // 2
    apart = torch.cat([factor.cross(inputs[:half], inputs), factor.cross(inputs[half:], inputs)]) - gram
    return 64 * float((apart.abs() / torch.outer(size, size)).max())
