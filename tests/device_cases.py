"""Moves whatever is made of frozen dataclasses and tensors to another device, and compares what comes back."""

import copy
import dataclasses
from typing import Any

import torch


def moved(value: Any, device: str) -> Any:
    """A copy with every tensor on `device`; objects with a method `to` move themselves."""
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, type):
        return value
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(v, device) for v in value)
    if isinstance(value, dict):
        return {key: moved(v, device) for key, v in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    made = copy.copy(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            object.__setattr__(made, field.name, moved(getattr(value, field.name), device))
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
