"""How objects show themselves: one short line (`short`), and small tables in notebooks (`table`)."""

from __future__ import annotations

import dataclasses
import html
import sys
from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np

LIMIT = 300  # characters of a line
FEW = 6  # numbers that are still shown
C = TypeVar("C", bound=type)


def short(cls: C) -> C:
    """Gives a dataclass a `repr` of one line: shapes instead of numbers, sizes instead of collections, names of its parts.

    >>> from gpsafe.sets import Box
    >>> Box([-1.0, 0.0], [1.0, 2.5])
    Box(lower=[-1, 0], upper=[1, 2.5])
    """
    cls.__repr__ = line  # type: ignore[method-assign]
    return cls


def line(value: Any) -> str:
    """The name of a dataclass and its public fields that are not None, cut to `LIMIT` characters."""
    parts = []
    for field in dataclasses.fields(value):
        if field.repr and not field.name.startswith("_"):
            item = getattr(value, field.name, None)
            if item is not None:
                parts.append(f"{field.name}={brief(item)}")
    whole = f"{type(value).__name__}({', '.join(parts)})"
    return whole if len(whole) <= LIMIT else whole[: LIMIT - 2] + "…)"


def brief(value: Any) -> str:
    """A value inside a line: numbers to six digits, up to `FEW` entries of an array in full, otherwise kind and size."""
    torch = sys.modules.get("torch")  # who has a tensor has loaded it; tools that have none do not wait for it
    if isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor)):
        shape = "×".join(str(n) for n in value.shape)
        if value.ndim > 1 or not 0 < np.prod(value.shape) <= FEW or str(value.dtype).startswith("torch.complex"):
            return f"<{shape or 'number'}>"
        return f"[{', '.join(brief(v) for v in value.tolist())}]" if value.ndim else brief(value.tolist())
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, (bool, int, str)):
        text = repr(value)
        return text if len(text) <= 60 else text[:58] + "…" + text[-1]
    if isinstance(value, (tuple, list)) and len(value) <= FEW:
        inside = ", ".join(brief(item) for item in value)
        one = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({inside}{one})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, (tuple, list, set, frozenset, Mapping)):
        return f"<{len(value)} items>"
    if isinstance(value, (FunctionType, MethodType, type)):
        return value.__name__
    return type(value).__name__


def table(title: str, rows: Iterable[tuple[object, ...]], *, head: tuple[str, ...] = ()) -> str:
    """An HTML table; everything in it is escaped."""

    def cells(row: tuple[object, ...], tag: str) -> str:
        shown = (cell if isinstance(cell, str) else brief(cell) for cell in row)
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in shown) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>{cells(head, 'th') if head else ''}{body}</table>"
