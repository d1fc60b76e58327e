"""Moves whatever is made of frozen dataclasses and tensors to another device, and compares what comes back."""

import copy
import dataclasses
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def moved(value: T, device: str) -> T:
    """A copy with every tensor on `device`; objects with a method `to` move themselves."""
    return _moved(value, device)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_moved(v, device) for v in value)
    if isinstance(value, list | dict):
        return type(value)(_moved(v, device) for v in value) if isinstance(value, list) else {
            k: _moved(v, device) for k, v in value.items()
        }  # fmt: skip
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    if hasattr(value, "to"):
        return value.to(device)  # pyright: ignore[reportAttributeAccessIssue]
    made = copy.copy(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            object.__setattr__(made, field.name, _moved(getattr(value, field.name), device))
    return made


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name, None))]
    return []
