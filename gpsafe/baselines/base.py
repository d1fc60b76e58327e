"""The shape of every baseline: `learn`, `predict`, `ask` and `tell`, `save` and `load`, as a `Learner` has it, by batches.

    one = baselines.create("cpo", SafeCartPole())  # a plant, or a `VectorPlant`
    one.learn(10)                                  # ten batches of 8000 steps; one.budget is the published number
    one.logger.frame()                             # a row a batch
    one.totals["train"]["violations"]

The unit is a batch of steps of many plants side by side, not an episode, and no trajectory is kept: eight million steps are
no history. `learn` is ask, fly, tell. What a baseline has become is a function of its arguments, its seed and what it was
told; a saved one goes on bit-equal.

**Nothing is guaranteed**, and no preset pretends so. One counter for all: a violation is a step into a true state with a cost,
whether it was a measurement or not, and every step is counted; those of a warm-up or a pre-training have a phase of their own.
Beside it stands what the published comparison counted: measured states with a cost (`violations_observed`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from gpsafe import _require
from gpsafe._show import table
from gpsafe._threads import one_blas_thread
from gpsafe.algorithms.learner import PLANNER, PLANT, Logger, stream
from gpsafe.baselines._nets import Array
from gpsafe.baselines.plants import At, Batch, EpisodicPlants, Plant, Plants, VectorPlant, fly
from gpsafe.saved import _learner as _saved
from gpsafe.systems.base import is_violation
from gpsafe.systems.episodic import Episodic

Preset = Literal["published", "corrected"]
BEFORE = 2**32 - 1  # the number of no batch: for what is drawn before any
COUNTED = ("steps", "episodes", "violations", "violations_observed")
Act = Callable[[Array], tuple[Array, Array]]
"""Measured states (n, nx) ↦ what was drawn (n, nu) and the inputs that it became."""


class Part(Protocol):
    """What a method keeps: networks, buffers, numbers."""

    def state(self) -> Mapping[str, Any]: ...
    def load(self, state: Mapping[str, Any]) -> None: ...


class BatchPolicy:
    """x ↦ u for one batch: what `ask` gives. It remembers, so that whoever flies it tells it back in the same order.

    Attributes:
        number, phase: of the batch.
        steps: that are wanted, of all plants together.
        drawn, inputs: what it drew and answered so far, (n, nu) each.
    """

    def __init__(self, act: Act, box: Any, *, number: int, phase: str, steps: int, nx: int) -> None:
        self._act, self._nx, self._low, self._high = act, nx, box.lower.numpy(), box.upper.numpy()
        self.number, self.phase, self.steps = number, phase, steps
        self.drawn: list[Array] = []
        self.inputs: list[Array] = []

    def act(self, x: Array) -> Array:
        """Inputs (n, nu) within the limits for measured states (n, nx)."""
        drawn, u = self._act(x)
        self.drawn.append(drawn)
        self.inputs.append(np.clip(u, self._low, self._high))
        return self.inputs[-1].copy()

    def __call__(self, x: Any) -> Tensor:
        """u (nu,) for one measured state (nx,), or (n, nu) for (n, nx): tensors, arrays or lists."""
        x = _require.points("policy", "x", _require.real("policy", "x", x), self._nx)
        u = torch.from_numpy(self.act(x.reshape(-1, self._nx).numpy()))
        return u.reshape(*x.shape[:-1], -1)

    def followed(self, batch: Batch) -> bool:
        """Whether the inputs of the batch are those that it answered."""
        flat = batch.inputs.reshape(-1, batch.inputs.shape[-1])
        return bool(self.inputs) and np.array_equal(np.concatenate(self.inputs), flat)

    def __repr__(self) -> str:
        return f"BatchPolicy(batch {self.number}, {self.phase}, {self.steps} steps, nothing is guaranteed)"


@dataclass(slots=True, eq=False)
class Book:
    """What happened to a baseline: all that changes in it. `parts`: see `Part`; `left`: where the plants stand."""

    logger: Logger = field(default_factory=Logger)
    asked: BatchPolicy | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    left: At = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)


class Baseline(ABC):
    """What all baselines share. A method supplies `_fresh`, `_phase`, `_act`, `_learn` and `predict`."""

    system: Plant
    preset: Preset
    epochs: int
    seed: int
    _book: Book

    # ------------------------------------------------------------------ of the method
    @abstractmethod
    def _fresh(self) -> dict[str, Part]:
        """What it keeps, before any batch."""

    @abstractmethod
    def _phase(self, number: int) -> tuple[str, int]:
        """Name and steps of a batch."""

    @abstractmethod
    def _act(self, number: int, phase: str) -> Act:
        """How inputs are chosen in a batch."""

    @abstractmethod
    def _learn(self, number: int, phase: str, drawn: Array, batch: Batch) -> Mapping[str, Any]:
        """Takes in a batch, whose inputs were drawn (N, nu) in the order of the batch; further columns of its row."""

    @property
    @abstractmethod
    def _plants(self) -> int:
        """How many copies of an `Episodic` system fly side by side."""

    @abstractmethod
    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """The input u (nu,) without exploration for the measured state (nx,); nothing is learned from it."""

    # ------------------------------------------------------------------ of all
    def __post_init__(self) -> None:
        where = type(self).__name__
        _require.index(where, "seed", self.seed)
        _require.one_of(where, "preset", self.preset, get_args(Preset))
        _require.count(where, "epochs", self.epochs)
        if not isinstance(self.system, (Episodic, VectorPlant)):
            raise _require.fail(where, "an Episodic system or a VectorPlant", type(self.system).__name__)

    @property
    def unsound(self) -> str:
        """Why no guarantee stands behind it: never None."""
        return "a baseline: its constraint is a term of a learning objective, and nothing is certified"

    @property
    def told(self) -> int:
        """Batches so far."""
        return len(self._book.logger.rows)

    @property
    def budget(self) -> int:
        """Batches of a whole run, those of a warm-up or a pre-training included."""
        return self.epochs

    @property
    def logger(self) -> Logger:
        """One row a told batch."""
        return self._book.logger

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """Of each phase: steps, episodes that ended, violations (true states), violations_observed (measured states)."""
        found: dict[str, dict[str, int]] = {}
        for row in self.logger.rows:
            at = found.setdefault(row["phase"], dict.fromkeys(COUNTED, 0))
            for name in COUNTED:
                at[name] += row[name]
        return found

    @property
    def _parts(self) -> dict[str, Any]:
        if not self._book.parts:
            self._book.parts.update(self._fresh())
        return self._book.parts

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number])

    @property
    def _radius(self) -> Array:
        return self.system.input_box.radius.numpy()

    @property
    def _middle(self) -> Array:
        return self.system.input_box.center.numpy()

    def _uniform(self, number: int) -> Act:
        """Inputs drawn from the whole input box."""
        random, shape = self._random(PLANNER, number), self.system.nu

        def act(x: Array) -> tuple[Array, Array]:
            drawn = random.uniform(-1.0, 1.0, (len(x), shape))
            return drawn, self._middle + self._radius * drawn

        return act

    @property
    def _timeouts(self) -> bool:
        """Whether an episode ends at the horizon."""
        return True

    def _side_by_side(self) -> Plants:
        system = self.system
        return (
            system if isinstance(system, VectorPlant) else EpisodicPlants(system, self._plants, timeouts=self._timeouts)
        )

    def ask(self) -> BatchPolicy:
        """The policy of the next batch. Asked again before it was used, the same one."""
        asked, number = self._book.asked, self.told
        if asked is None or asked.inputs:
            phase, steps = self._phase(number)
            about = {"number": number, "phase": phase, "steps": steps, "nx": self.system.nx}
            asked = self._book.asked = BatchPolicy(self._act(number, phase), self.system.input_box, **about)
        return asked

    def rollout(self, policy: BatchPolicy) -> Batch:
        """One batch on the plants, with the noise of its number."""
        plants = self._side_by_side()
        length = max(-(-policy.steps // plants.count), 1)
        with one_blas_thread():
            return fly(plants, policy.act, length, self._book.left, stream(self.seed, PLANT, policy.number))

    @one_blas_thread()
    def tell(self, batch: Batch) -> None:
        """A batch, whoever flew it (`Batch.of_episodes` for a robot's)."""
        where, number, asked = f"{type(self).__name__}.tell", self.told, self._book.asked
        _require.kind(where, "batch", batch, Batch)
        shape, nx, nu = batch.reward.shape, self.system.nx, self.system.nu
        sizes = {"seen": (nx,), "after": (nx,), "inputs": (nu,), "reward": (), "cost": (), "reported": ()}
        for name, size in sizes.items():  # a cost of NaN would be no violation
            value = getattr(batch, name)
            if len(shape) != 2 or value.shape != (*shape, *size) or not np.isfinite(value).all():
                raise _require.fail(where, f"finite {name} of shape {('L', 'n', *size)}", f"shape {value.shape}")
        followed = asked is not None and asked.followed(batch)
        phase = asked.phase if asked is not None else self._phase(number)[0]
        drawn = (batch.inputs.reshape(-1, self.system.nu) - self._middle) / self._radius
        if asked is not None and followed:
            drawn = np.concatenate(asked.drawn)
        before = self.logger.rows[-1]["env_steps"] if self.told else 0
        returns, costs = batch.finished[:, 0], batch.finished[:, 1]
        row = {
            "epoch": number,
            "phase": phase,
            "steps": batch.steps,
            "env_steps": before + batch.steps,
            "episodes": len(returns),
            "violations": int(is_violation(batch.cost).sum()),
            "violations_observed": int(is_violation(batch.reported).sum()),
            "reward": float(returns.mean()) if len(returns) else None,
            "cost": float(costs.mean()) if len(costs) else None,
            "followed": followed,
            "guaranteed": False,
            "unsound": self.unsound,
        }
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # divergence is found below, and named
            row |= self._learn(number, phase, drawn, batch)
        bad = [
            name for name, value in self._packed().items() if value.dtype.kind == "f" and not np.isfinite(value).all()
        ]
        if bad:
            raise _require.fail(where, "finite parameters after an update", f"divergence in {', '.join(bad)}")
        self._book.left = batch.left
        self.logger.rows.append(row)
        self._book.asked = None

    def learn(
        self, epochs: int, callback: Callable[[Self], object] | None = None, *, progress_bar: bool = False
    ) -> Self:
        """`epochs` more batches on the plants: ask, fly, tell.

        Args:
            epochs: how many.
            callback: called with the learner after each; False ends the loop.
            progress_bar: draws one on the terminal.
        """
        steps = range(_require.count(f"{type(self).__name__}.learn", "epochs", epochs, minimum=0))
        for _ in track(steps, type(self).__name__) if progress_bar else steps:
            self.tell(self.rollout(self.ask()))
            if callback is not None and callback(self) is False:
                break
        return self

    # ------------------------------------------------------------------ files
    def _packed(self) -> dict[str, Array]:
        return {f"{name}/{key}": np.asarray(v) for name, part in self._parts.items() for key, v in part.state().items()}

    def _header(self) -> dict[str, Any]:
        about = {"learner": type(self).__name__, "seed": self.seed, "parts": _saved.fingerprints(self)}
        return {**about, "rows": self.logger.rows, "falsified": None, "counts": {}}

    def save(self, folder: str | Path) -> Path:
        """Writes log, fingerprints of the arguments and all that decides how it goes on: ``learner.json`` and arrays."""
        left = {f"left/{name}": value for name, value in self._book.left.items()}
        return _saved.write(folder, self._header(), [], {**self._packed(), **left})

    def load(self, folder: str | Path) -> Self:
        """Goes on where a saved baseline of the same arguments and seed stood. This one must be new.

        Raises:
            ValueError: naming what is torn, foreign or different.
        """
        where = f"{type(self).__name__}.load"
        if self.told or self._book.asked is not None:
            raise _require.fail(where, "a new learner", f"one in use, told {self.told} batches")
        header, _, kept = _saved.read(where, folder, self._header(), batches=True)
        for name, part in self._parts.items():
            part.load({key[len(name) + 1 :]: value for key, value in kept.items() if key.startswith(f"{name}/")})
        self._book.left = {key[5:]: value for key, value in kept.items() if key.startswith("left/")}
        self.logger.rows[:] = header["rows"]
        return self

    def with_(self, **changes: Any) -> Self:
        """A new learner with some arguments replaced. It was told nothing."""
        return replace(self, **changes)  # type: ignore[type-var]

    def __repr__(self) -> str:
        about = f"{self.preset}, seed {self.seed}, {self.told} of {self.budget} batches"
        return f"{type(self).__name__}({self.system.name}, {about}, heuristic: {self.unsound})"

    def _repr_html_(self) -> str:
        names = ("epoch", "phase", "steps", "violations", "cost", "reward")
        rows = [tuple(row.get(name, "") for name in names) for row in self.logger.rows[-20:]]
        return table(repr(self), rows, head=names)
