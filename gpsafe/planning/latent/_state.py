"""Networks, optimisers and generators as arrays, and back: what goes on from them goes on bit-equal; no object is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpsafe import _require

Arrays = dict[str, NDArray[Any]]
State = Mapping[str, NDArray[Any]]


class Kept(Protocol):
    """What goes on from its `state`."""

    def state(self) -> Arrays: ...
    def load(self, state: State) -> None: ...


def array(value: Tensor) -> NDArray[Any]:
    """A copy, on the CPU."""
    return value.detach().cpu().numpy().copy()


def prefixed(name: str, state: State) -> Arrays:
    """Every entry under ``name/``."""
    return {f"{name}/{key}": value for key, value in state.items()}


def below(name: str, state: State) -> Arrays:
    """The entries under ``name/``."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}/")}


def network(net: nn.Module) -> Arrays:
    """Its parameters and buffers."""
    return {name: array(value) for name, value in net.state_dict().items()}


def load_network(net: nn.Module, state: State) -> None:
    """What `network` gave of one of the same sizes; ValueError if they are others."""
    own = net.state_dict()
    if set(own) != set(state):
        raise _require.fail("load", f"parameters {sorted(own)}", sorted(state))
    for name, value in own.items():
        if state[name].shape != tuple(value.shape):
            raise _require.fail("load", f"{name} of shape {tuple(value.shape)}", state[name].shape)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})


def adam(optimiser: torch.optim.Optimizer) -> Arrays:
    """Its moments and steps, by the number of the parameter."""
    found = optimiser.state_dict()["state"]
    return {f"{i}/{name}": array(value) for i, about in found.items() for name, value in about.items()}


def load_adam(optimiser: torch.optim.Optimizer, state: State) -> None:
    """What `adam` gave of one of the same parameters."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split("/")
        found.setdefault(int(number), {})[name] = torch.from_numpy(value)
    optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})


def generator(of: torch.Generator) -> NDArray[Any]:
    """Where a stream of random numbers stands."""
    return of.get_state().numpy().copy()


def load_generator(state: NDArray[Any], device: torch.device | str) -> torch.Generator:
    """The stream that goes on from there."""
    found = torch.Generator(device)
    found.set_state(torch.from_numpy(state))
    return found
