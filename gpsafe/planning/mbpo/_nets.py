"""Stacks of small ReLU networks in NumPy: parameters in one flat float32 array, gradients by hand, Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpsafe import _require
from gpsafe.models import _flat
from gpsafe.models._flat import Adam

FLOAT = np.float32
Array = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


class Nets:
    """Networks h W + b with ReLU between the layers, for every index of `lead`; rows are (*lead, n, d) and broadcast over it.

    Args:
        lead: shape of the stack.
        sizes: (d_in, hidden…, d_out).
    """

    def __init__(self, lead: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.flat, self.gradient = np.zeros((2, *lead, _flat.size(sizes)), FLOAT)
        self.layers, self._slopes = _flat.layers(self.flat, sizes), _flat.layers(self.gradient, sizes)
        self.adam = Adam(self.flat.shape, FLOAT)

    def randomise(self, i: int, generator: np.random.Generator) -> None:
        """W and b of networks i of the leading axis from U(−1/√d_in, 1/√d_in)."""
        for w, b in self.layers:
            for part in (w[i], b[i]):
                part[:] = generator.uniform(-1.0, 1.0, part.shape) / math.sqrt(w.shape[-2])

    def part(self, i: int) -> Nets:
        """The networks i of the leading axis, with the same memory."""
        view = object.__new__(Nets)
        view.sizes, view.layers = self.sizes, [(w[i], b[i]) for w, b in self.layers]
        return view

    def __call__(self, z: Array) -> list[Array]:
        """z, the hidden values and the outputs, (*lead, n, ·)."""
        values = [z]
        for i, (w, b) in enumerate(self.layers):
            out = np.matmul(values[-1], w)
            out += b
            if i < len(self.layers) - 1:
                torch.from_numpy(out).relu_()  # in the same memory, four times as fast as np.maximum with a number
            values.append(out)
        return values

    def backward(self, values: list[Array], cotangent: Array) -> None:
        """Sets `gradient` to that of Σ cotangent · outputs."""
        for i in reversed(range(len(self.layers))):
            weight, bias = self._slopes[i]
            np.matmul(values[i].swapaxes(-1, -2), cotangent, out=weight)
            _flat.sum_rows(cotangent, bias)
            if i > 0:
                cotangent = self._before(i, cotangent, values)

    def input_gradient(self, values: list[Array], cotangent: Array, first: int) -> Array:
        """∂(Σ cotangent · outputs)/∂z[…, first:], (*lead, n, d_in − first)."""
        for i in reversed(range(1, len(self.layers))):
            cotangent = self._before(i, cotangent, values)
        return np.matmul(cotangent, self.layers[0][0][..., first:, :].swapaxes(-1, -2))

    def _before(self, i: int, cotangent: Array, values: list[Array]) -> Array:
        """The cotangent of the arguments of ReLU that give the inputs of layer i, from that of the layer's outputs."""
        turned = self.layers[i][0].swapaxes(-1, -2)
        before = cotangent * turned if turned.shape[-2] == 1 else np.matmul(cotangent, turned)
        before *= values[i] > 0
        return before

    def step(self, rate: float) -> None:
        """A step of Adam against `gradient`."""
        self.adam.step(self.flat, self.gradient, rate)

    def state(self) -> Arrays:
        """Copies of parameters and of what Adam remembers."""
        return {"flat": self.flat.copy(), **self.adam.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state` of networks of the same sizes."""
        self.flat[:] = _require.shape("Nets.load", "flat", state["flat"], self.flat.shape)
        self.adam.load(state)


# ------------------------------------------------------------------ generators
_WORD = 2**64 - 1


def generator_state(generator: np.random.Generator) -> NDArray[np.uint64]:
    """The state of a PCG64 generator as six words."""
    s: Any = generator.bit_generator.state
    big = s["state"]["state"], s["state"]["inc"]
    words = [part for value in big for part in (value >> 64, value & _WORD)]
    return np.array([*words, s["has_uint32"], s["uinteger"]], np.uint64)


def restored_generator(words: NDArray[np.uint64]) -> np.random.Generator:
    """The generator that `generator_state` described."""
    a, b, c, d, has, last = (int(w) for w in words)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": a << 64 | b, "inc": c << 64 | d},
        "has_uint32": has,
        "uinteger": last,
    }
    return np.random.Generator(bits)
