"""Objects as trees of JSON, and back: what is not listed here is refused by name.

Numbers, words, Booleans and None are themselves, a tuple is a list. Everything else is an object with one telling key:
``array`` (a tensor, see :mod:`gpsafe.saved.arrays`), ``number`` (a float that JSON has not: inf, -inf, nan), ``list``, ``map``
(pairs), ``believed`` (an assumption), ``kernel`` (index into the kernels of the file), ``function`` (a known part of ours
without parameters), or ``class`` with the fields of a frozen dataclass. Reading calls constructors of the listed classes, whose
own checks apply, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, certify, confidence, data, models, policies, safety, sets, systems, tube, verdict
from gpsafe.assumptions import Assumption, Believed
from gpsafe.certify.judge import Tightest
from gpsafe.certify.problem import Margins, Proposal
from gpsafe.cost.base import CostInterval
from gpsafe.models._prior import PlainKnown, identity_prior, zero_prior
from gpsafe.safety.safe_set import Witness
from gpsafe.saved import claims
from gpsafe.saved.arrays import ArrayReader, ArrayWriter
from gpsafe.saved.gaussian import GaussianReader, encode_gp
from gpsafe.saved.kernels import decode_kernel, encode_kernel

FUNCTIONS: dict[str, Callable[..., Any]] = {"zero": zero_prior, "identity": identity_prior}

CLASSES: dict[str, type[Any]] = {
    found.__name__: found
    for found in (
        *confidence.BOUNDS.values(),
        confidence.ConfidenceSet,
        confidence.Falsification,
        confidence.Memberless,
        confidence.Strayed,
        *(sets.Box, sets.Ellipsoid, sets.Polytope, sets.Zonotope),
        PlainKnown,
        *(systems.AffineKnown, systems.SineKnown, systems.CartPoleKnown),
        *(systems.Task, systems.IndicatorCost, systems.HingeCost),
        policies.AffinePolicies,
        data.Transitions,
        verdict.Verdict,
        CostInterval,
        *(safety.SafePolicySet, safety.SafeParameters, Witness),
        *(certify.Certificate, certify.CertificationProblem, Margins, Proposal, Tightest),
        *(tube.Tube, tube.LinearTube, tube.GPTube, tube.KollerTube, tube.Constants),
    )
}
"""Frozen dataclasses that their fields make again. `GP` is read and written by :mod:`gpsafe.saved.gaussian`."""

PLAIN: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}
"""Annotations that are checked, as few constructors do: no word is a number, no number a Boolean."""


@dataclass(slots=True)
class Encoder:
    """Turns one object into a tree; collects its arrays and kernels."""

    arrays: ArrayWriter = field(default_factory=ArrayWriter)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    _seen: dict[int, tuple[Kernel, int]] = field(default_factory=dict)

    def encode(self, value: Any, where: str) -> Any:
        """The tree of a value; `where` it stands, for refusals."""
        if isinstance(value, Believed):
            return {"believed": value.kind.name, "detail": str(value)[len(value.kind.words) :]}
        if type(value) in (type(None), bool, int, str):
            return value
        if isinstance(value, float):  # NumPy's float64 is one
            return float(value) if math.isfinite(value) else {"number": str(float(value))}
        if isinstance(value, Tensor):
            return self.arrays.put(where, value)
        if type(value) is tuple:
            return [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if type(value) is list:
            return {"list": [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            pairs = value.items()
            return {"map": [[self.encode(k, f"{where} (key)"), self.encode(v, f"{where}[{k!r}]")] for k, v in pairs]}
        for name, function in FUNCTIONS.items():
            if value is function:
                return {"function": name}
        if type(value) is models.GP:
            return encode_gp(value, where, self.arrays, self.encode, self.kernel)
        if CLASSES.get(type(value).__name__) is type(value):
            return self._encode_class(value, where)
        raise _require.fail(
            "save", f"{', '.join(['GP', *CLASSES])} or what they are made of", f"{where}: {_named(value)}"
        )

    def kernel(self, kernel: Kernel, where: str) -> int:
        """The index of a kernel; one that several models share is written once."""
        if id(kernel) not in self._seen:
            self._seen[id(kernel)] = (kernel, len(self.kernels))
            self.kernels.append(encode_kernel(where, kernel))
        return self._seen[id(kernel)][1]

    def _encode_class(self, value: Any, where: str) -> dict[str, Any]:
        found: dict[str, Any] = {"class": type(value).__name__}
        names = [f.name for f in fields(value) if f.init and not f.name.startswith("_")]
        if isinstance(value, confidence.ConfidenceSet):  # newest first: the others are parts of it
            generations = [
                self.encode(g, f"{where}.generations[{g.num_data} rows]") for g in reversed(value.generations)
            ]
            found["generations"] = generations[::-1]
        for name in names:
            if name not in found:
                found[name] = self.encode(getattr(value, name), f"{where}.{name}")
        return found


def _named(value: Any) -> str:
    kind = type(value)
    if kind.__module__.startswith("gpsafe.algorithms"):
        return f"{kind.__name__}, a learner (learner.save(folder) writes it)"
    if kind.__name__ == "function":
        return f"the function {value.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


class Decoder:
    """Makes the objects of a tree."""

    def __init__(self, arrays: Mapping[str, Any], kernels: list[Mapping[str, Any]]) -> None:
        self.arrays = ArrayReader(arrays)
        self.kernels = [decode_kernel(call) for call in kernels]
        self._gaussian = GaussianReader(self.arrays, self.kernels, self.decode)

    def decode(self, tree: Any, where: str) -> Any:
        """The value of a tree; `where` it stands, for refusals."""
        if isinstance(tree, list):
            return tuple(self.decode(item, f"{where}[{i}]") for i, item in enumerate(tree))
        if not isinstance(tree, dict):
            return tree
        match tree:
            case {"class": "GP"}:
                return self._gaussian.decode(tree, where)
            case {"class": name}:
                return self._decode_class(name, tree, where)
            case {"array": _}:
                return self.arrays.get(tree)
            case {"number": word}:
                return float(_require.one_of("load", where, word, ("inf", "-inf", "nan")))
            case {"list": items}:
                return list(self.decode(items, where))
            case {"map": pairs}:
                found = {self.decode(k, where): self.decode(v, f"{where}[{k!r}]") for k, v in pairs}
                if len(found) != len(pairs):
                    raise _require.fail("load", f"every key of {where} once", f"{len(pairs)} pairs, {len(found)} keys")
                return found
            case {"believed": kind, "detail": detail}:
                return Assumption[kind](detail)
            case {"function": name}:
                return FUNCTIONS[_require.one_of("load", where, name, FUNCTIONS)]
        raise _require.fail("load", f"a value at {where}", f"an object with the keys {sorted(tree)}")

    def _decode_class(self, name: Any, tree: Mapping[str, Any], where: str) -> Any:
        kind = CLASSES[_require.one_of("load", f"class at {where}", name, CLASSES)]
        assert is_dataclass(kind)
        given = {key: part for key, part in tree.items() if key != "class"}
        wanted = {f.name for f in fields(kind) if f.init and not f.name.startswith("_")}
        if set(given) != wanted:
            raise _require.fail(
                "load", f"the fields of {name} at {where}", f"{sorted(set(given) ^ wanted)} more or less"
            )
        found: dict[str, Any] = {}
        if kind is confidence.ConfidenceSet:
            newest_first = [self.decode(part, f"{where}.generations") for part in reversed(given.pop("generations"))]
            found["generations"] = tuple(reversed(newest_first))
        found |= {key: self.decode(part, f"{where}.{key}") for key, part in given.items()}
        for f in fields(kind):
            if f.name in wanted and type(found[f.name]) not in PLAIN.get(str(f.type), (type(found[f.name]),)):
                raise _require.fail("load", f"{f.type} {where}.{f.name}", repr(found[f.name])[:80])
        return claims.checked(kind(**found), where)
