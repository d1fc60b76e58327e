"""Stacks of small ReLU networks in NumPy: parameters in one flat float32 array, gradients by hand, Adam."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpsafe import _require

FLOAT = np.float32
BETA = (0.9, 0.999)  # of Adam
EPSILON = 1e-8
Array = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Layers = list[tuple[Array, Array]]


def _layers(flat: Array, sizes: tuple[int, ...]) -> Layers:
    """Views W (*lead, d_in, d_out) and b (*lead, 1, d_out) of the parameters (*lead, P)."""
    found, at = [], 0
    for d_in, d_out in itertools.pairwise(sizes):
        weight = flat[..., at : at + d_in * d_out].reshape(*flat.shape[:-1], d_in, d_out)
        at += d_in * d_out
        found.append((weight, flat[..., None, at : at + d_out]))
        at += d_out
    return found


class Nets:
    """Networks h W + b with ReLU between the layers, for every index of `lead`; rows are (*lead, n, d) and broadcast over it.

    Args:
        lead: shape of the stack.
        sizes: (d_in, hidden…, d_out).
    """

    def __init__(self, lead: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        count = sum(d_in * d_out + d_out for d_in, d_out in itertools.pairwise(sizes))
        self.sizes, self.steps = sizes, 0
        self.flat, self.gradient, self.first, self.second, self._spare = np.zeros((5, *lead, count), FLOAT)
        self.layers, self._slopes = _layers(self.flat, sizes), _layers(self.gradient, sizes)

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
            np.matmul(np.ones((1, cotangent.shape[-2]), FLOAT), cotangent, out=bias)  # their sum, twice as fast
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

    def adam(self, rate: float) -> None:
        """A step against `gradient`."""
        self.steps += 1
        spare, (one, two) = self._spare, BETA
        self.first *= one
        self.first += np.multiply(self.gradient, 1 - one, out=spare)
        self.second *= two
        np.multiply(self.gradient, self.gradient, out=spare)
        spare *= 1 - two
        self.second += spare
        np.sqrt(self.second, out=spare)
        spare *= 1 / math.sqrt(1 - two**self.steps)
        spare += EPSILON
        np.divide(self.first, spare, out=spare)
        spare *= rate / (1 - one**self.steps)
        self.flat -= spare

    def moments(self) -> tuple[Array, Array, int]:
        """Copies of Adam's moments, and its number of steps."""
        return self.first.copy(), self.second.copy(), self.steps

    def forget(self, moments: tuple[Array, Array, int] | None = None) -> None:
        """Adam starts anew, or goes on from given moments."""
        first, second, self.steps = moments or (0, 0, 0)
        self.first[:], self.second[:] = first, second

    def state(self) -> Arrays:
        """Copies of parameters and moments."""
        first, second, steps = self.moments()
        return {"flat": self.flat.copy(), "first": first, "second": second, "steps": np.array(steps)}

    def load(self, state: Arrays) -> None:
        """Goes on from a `state` of networks of the same sizes."""
        for name in ("flat", "first", "second"):
            if state[name].shape != self.flat.shape:
                raise _require.fail("Nets.load", f"{name} of shape {self.flat.shape}", f"shape {state[name].shape}")
        self.flat[:] = state["flat"]
        self.forget((state["first"], state["second"], int(state["steps"])))


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
