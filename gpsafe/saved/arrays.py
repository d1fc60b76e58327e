"""The arrays of a saved object: float64, int64 or Boolean, each written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require

Array = np.ndarray[Any, Any]
DTYPES = ("float64", "int64", "bool")


@dataclass(slots=True)
class ArrayWriter:
    """Collects arrays; a reference names one: ``{"array": "a0"}``, or its leading block: ``{…, "block": [2, 2]}``."""

    found: dict[str, Array] = field(default_factory=dict)

    def put(self, where: str, tensor: Tensor, *, grown: bool = False) -> dict[str, Any]:
        """The reference to a tensor. `grown`: it may be the leading block of one that came before, as data and factors of
        earlier generations are.
        """
        value = np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tuple(tensor.shape))
        if str(value.dtype) not in DTYPES:
            raise _require.fail("save", f"{where} of {' or '.join(DTYPES)}", tensor.dtype)
        for name, other in self.found.items() if grown else ():
            if other.dtype == value.dtype and other.ndim == value.ndim and _same(_leading(other, value.shape), value):
                return {"array": name, "block": list(value.shape)}
        name = f"a{len(self.found)}"
        self.found[name] = value
        return {"array": name}


def _same(one: Array, other: Array) -> bool:
    """Bit by bit: −0 is not 0, NaN is NaN."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _leading(array: Array, shape: tuple[int, ...]) -> Array:
    return array[tuple(slice(size) for size in shape)]


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads references."""

    found: Mapping[str, Array]

    def get(self, reference: Mapping[str, Any]) -> Tensor:
        """A tensor of its own."""
        value = self.found[reference["array"]]
        if str(value.dtype) not in DTYPES:  # of another byte order too
            raise _require.fail("load", " or ".join(DTYPES), value.dtype)
        shape = tuple(reference.get("block", value.shape))
        block = _leading(value, shape)
        if block.shape != shape:
            raise _require.fail("load", f"an array with a leading block {shape}", value.shape)
        return torch.from_numpy(np.array(block, order="C"))
