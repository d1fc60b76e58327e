"""What NaN, infinities and numbers near overflow do to a function whose results are believed: the harness.

`violations` strikes one row of one argument after the other. The contract is that it finds nothing:

- the other rows' results are bit for bit those without the poison;
- the struck row is refused, lost or says nothing (`struck`), or, for finite poison, is still true (`honest`);
- nothing is raised but, where `refuses` says so, a ValueError in the project's words: the call as a whole is then refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.sets.zonotope import HUGE

POISONS = (math.nan, math.inf, -math.inf, 1.7e308)
ROWS = 3
STRUCK = 1
Arguments = dict[str, Tensor]
Results = tuple[Tensor, ...]


def visible(*results: Tensor) -> Tensor:
    """Rows that show it: an entry is NaN, infinite or beyond any use."""
    return ~torch.stack([(r.double().abs() <= HUGE).reshape(len(r), -1).all(-1) for r in results]).all(0)


@dataclass(frozen=True)
class PoisonCase:
    """A believed function.

    Attributes:
        run: tensors by name → tensors, rows first.
        arguments: those that are struck, `ROWS` rows first.
        struck: results → (ROWS,), which rows are refused, lost or vacuous.
        honest: arguments, results → (ROWS,), which rows are true of what was asked; only looked at for finite poison.
        refuses: a ValueError in words is an answer too.
        poisons: those that mean nothing here.
    """

    run: Callable[..., Results]
    arguments: Callable[[], Arguments]
    struck: Callable[..., Tensor] = visible
    honest: Callable[[Arguments, Results], Tensor] | None = None
    refuses: bool = False
    poisons: tuple[float, ...] = POISONS


def poisoned(arguments: Arguments, name: str, poison: float, entry: int | slice) -> Arguments:
    """Copies, with that entry (or all) of the struck row of one argument replaced."""
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in arguments.items()}
    row = copies[name][STRUCK : STRUCK + 1].reshape(-1)
    row[entry] = poison
    copies[name][STRUCK] = row.reshape(copies[name][STRUCK].shape)
    return copies


def _bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def violations(case: PoisonCase) -> list[str]:
    """What is wrong, in words."""
    found, others = [], torch.arange(ROWS) != STRUCK
    arguments = case.arguments()
    with torch.no_grad():
        clean = case.run(**{key: value.clone() for key, value in arguments.items()})
        for name, value in arguments.items():
            for poison in case.poisons:
                for entry in (0,) if value[STRUCK].numel() == 1 else (0, -1, slice(None)):
                    told, struck = f"{name}[{STRUCK}][{entry}] = {poison}", poisoned(arguments, name, poison, entry)
                    try:
                        results = case.run(**{key: value.clone() for key, value in struck.items()})
                    except Exception as error:  # what may be raised is part of the contract
                        in_words = isinstance(error, ValueError) and re.match(r"[\w.]+: expected .+, got ", str(error))
                        if not (case.refuses and in_words):
                            found.append(f"{told}: {type(error).__name__}: {error}")
                        continue
                    if not all(_bits(a[others], b[others]) for a, b in zip(clean, results, strict=True)):
                        found.append(f"{told}: another row has changed")
                    fine = bool(case.struck(*results)[STRUCK])
                    if not fine and math.isfinite(poison) and case.honest is not None:
                        fine = bool(case.honest(struck, results)[STRUCK])
                    if not fine:
                        found.append(f"{told}: believed, {[r[STRUCK].tolist() for r in results]}")
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
