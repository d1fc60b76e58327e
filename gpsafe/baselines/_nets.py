"""Small networks in NumPy whose parameters lie in one flat array: values, gradients, and directional derivatives by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpsafe import _require
from gpsafe.models import _flat
from gpsafe.models._flat import Adam

Array = NDArray[Any]


class Net:
    """h W + b with tanh or ReLU between the layers, for every index of `lead`; rows (*lead, n, d) broadcast over it.

    Args:
        sizes: (d_in, hidden…, d_out).
        lead: shape of the stack.
        kind: between the layers.
        dtype: of everything.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        lead: tuple[int, ...] = (),
        kind: Literal["tanh", "relu"] = "tanh",
        dtype: Any = np.float64,
    ) -> None:
        self.sizes, self.kind = sizes, kind
        self.flat = np.zeros((*lead, _flat.size(sizes)), dtype)
        self.layers, self.adam = _flat.layers(self.flat, sizes), Adam(self.flat.shape, dtype)

    def randomise(self, generator: np.random.Generator) -> Net:
        """W and b from U(−1/√d_in, 1/√d_in): Kaiming's with a = √5."""
        for w, b in self.layers:
            for part in (w, b):
                part[:] = generator.uniform(-1.0, 1.0, part.shape) / math.sqrt(w.shape[-2])
        return self

    def __call__(self, z: Array) -> list[Array]:
        """z, the hidden values and the outputs, (*lead, n, ·)."""
        values = [np.asarray(z, self.flat.dtype)]
        for i, (w, b) in enumerate(self.layers):
            out = np.matmul(values[-1], w)
            out += b
            if i < len(self.layers) - 1:
                (np.tanh(out, out=out) if self.kind == "tanh" else np.maximum(out, 0, out=out))
            values.append(out)
        return values

    def _slope(self, hidden: Array) -> Array:
        return 1 - hidden * hidden if self.kind == "tanh" else (hidden > 0).astype(hidden.dtype)

    def along(self, values: list[Array], direction: Array) -> Array:
        """The derivative of the outputs in a direction of the parameters (*lead, P), (*lead, n, d_out)."""
        moved: Array | None = None
        for i, (w, b) in enumerate(_flat.layers(direction, self.sizes)):
            change = np.matmul(values[i], w) + b
            if moved is not None:
                change += np.matmul(moved, self.layers[i][0])
            moved = change * self._slope(values[i + 1]) if i < len(self.layers) - 1 else change
        assert moved is not None
        return moved

    def backward(self, values: list[Array], cotangent: Array) -> Array:
        """The gradient of Σ cotangent · outputs, (*lead, P)."""
        gradient = np.empty_like(self.flat)
        slopes = _flat.layers(gradient, self.sizes)
        for i in reversed(range(len(self.layers))):
            np.matmul(values[i].swapaxes(-1, -2), cotangent, out=slopes[i][0])
            _flat.sum_rows(cotangent, slopes[i][1])
            if i > 0:
                cotangent = np.matmul(cotangent, self.layers[i][0].swapaxes(-1, -2)) * self._slope(values[i])
        return gradient

    def input_gradient(self, values: list[Array], cotangent: Array, first: int) -> Array:
        """∂(Σ cotangent · outputs)/∂z[…, first:], (*lead, n, d_in − first)."""
        for i in reversed(range(1, len(self.layers))):
            cotangent = np.matmul(cotangent, self.layers[i][0].swapaxes(-1, -2)) * self._slope(values[i])
        return np.matmul(cotangent, self.layers[0][0][..., first:, :].swapaxes(-1, -2))

    def step(self, gradient: Array, rate: float) -> None:
        """A step of Adam against it."""
        self.adam.step(self.flat, gradient, rate)

    def state(self) -> dict[str, Array]:
        """Copies of the parameters and of what Adam remembers."""
        return {"flat": self.flat.copy(), **self.adam.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from the `state` of a network of the same sizes."""
        self.flat[:] = _require.shape("Net.load", "flat", state["flat"], self.flat.shape)
        self.adam.load(state)


class Running:
    """Mean and variance of all rows so far, for standardised inputs; 0 and 1 before any."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.square = 0.0, np.zeros(size), np.zeros(size)

    @property
    def std(self) -> Array:
        """Standard deviations, (size,); 1 where there is nothing to see."""
        variance = self.square / max(self.count, 1.0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0)

    def __call__(self, rows: Array) -> Array:
        """(rows − mean)/std."""
        return (rows - self.mean) / self.std

    def add(self, rows: Array) -> None:
        """Rows (n, size), all at once."""
        mean, n, gap = rows.mean(0), len(rows), rows.mean(0) - self.mean
        total = self.count + n
        self.square = self.square + np.square(rows - mean).sum(0) + gap * gap * (self.count * n / total)
        self.mean, self.count = self.mean + gap * (n / total), total

    def state(self) -> dict[str, Array]:
        """Copies of what it counts."""
        return {"count": np.array(self.count), "mean": self.mean.copy(), "square": self.square.copy()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state` of the same size."""
        for name in ("mean", "square"):
            _require.shape("Running.load", name, state[name], self.mean.shape)
        self.count, self.mean, self.square = float(state["count"]), state["mean"].copy(), state["square"].copy()


class Numbers(dict[str, float]):
    """Named numbers that a method keeps between batches."""

    def state(self) -> dict[str, Array]:
        """As arrays."""
        return {name: np.array(value) for name, value in self.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        self.update({name: float(value) for name, value in state.items()})
