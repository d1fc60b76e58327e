"""A posterior frozen for an episode, tabulated on a grid: what makes a planning step of millions of queries cheap.

The residual of a plant depends on few inputs. Mean and std of the posterior are computed once per episode on a
regular grid of them and interpolated linearly, at a cost that does not depend on n. `error` measures how far it is from the
model; `proven_error` bounds that for an exact `GP` (theory §5.10). The table itself may propose, never certify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gpsafe import _require
from gpsafe.confidence.ranges import Interpolation, interpolation
from gpsafe.models._prior import PlainKnown, with_derivatives
from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.models.gp import GP, Prior
from gpsafe.rkhs.kernels import stationary
from gpsafe.sets import Box


@dataclass(frozen=True, slots=True)
class TableError:
    """Distance of a table to its model at random points of the grid's box; sampled, so `max` is a lower estimate.

    Attributes:
        mean_max, mean_rms, std_max, std_rms: per state, (nx,), units of the state.
        points: number of test points.
    """

    mean_max: tuple[float, ...]
    mean_rms: tuple[float, ...]
    std_max: tuple[float, ...]
    std_rms: tuple[float, ...]
    points: int


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """x⁺ = known(x, u) + interpolated residual mean, with interpolated std: a :class:`DynamicsModel`. See :meth:`build`.

    Beyond the box the residual and std of the nearest face are used; periodic axes wrap around.

    Attributes:
        model: what was tabulated.
        known: known part, exact.
        axes: coordinates of z = (x, u) that the table depends on.
        lower, step, cells: of the grid, (d,).
        strides: row of a node = index · strides, (d,).
        periodic: per axis.
        corners: rows of a cell's corners relative to its first one, (2^d,).
        values: one row per node, (·, 2 nx): mean of the residual, std.
        noise_std: of the model.
    """

    model: DynamicsModel
    known: Prior
    axes: tuple[int, ...]
    lower: tuple[float, ...]
    step: tuple[float, ...]
    cells: tuple[int, ...]
    strides: tuple[int, ...]
    periodic: tuple[bool, ...]
    corners: Tensor
    values: Tensor
    noise_std: Tensor

    @staticmethod
    def build(
        model: DynamicsModel,
        known: Prior,
        box: Box,
        *,
        counts: Sequence[int],
        axes: Sequence[int] | None = None,
        periodic: Sequence[int] = (),
        chunk: int = 16384,
    ) -> Table:
        """Evaluates `model` at the nodes of a regular grid over `box`.

        Args:
            model: its prediction minus `known`, and its std, must not depend on the other coordinates of z.
            known: (x, u) → x⁺, subtracted before and added back exactly after interpolation.
            box: of the tabulated coordinates, (d,). A periodic axis spans one period.
            counts: nodes per axis, ≥ 2; a periodic axis has `counts` nodes per period.
            axes: coordinates of z = (x, u) to tabulate over (default: all); the others are set to 0.
            periodic: those of `axes` that wrap around.
            chunk: points per call of the model.
        """
        nz = model.nx + model.nu
        chosen = tuple(range(nz)) if axes is None else tuple(axes)
        if len(set(chosen)) != len(chosen) or not chosen or not all(0 <= i < nz for i in chosen):
            raise _require.fail("Table", f"distinct axes in 0..{nz - 1}", chosen)
        if box.dim != len(chosen) or len(counts) != len(chosen):
            raise _require.fail("Table", f"a box and counts of dimension {len(chosen)}", (box.dim, tuple(counts)))
        if not set(periodic) <= set(chosen):
            raise _require.fail("Table", f"periodic axes among {chosen}", tuple(periodic))
        wraps = tuple(i in periodic for i in chosen)
        for count in counts:
            _require.count("Table", "counts", count, minimum=2)
        nodes = torch.tensor(counts) + torch.tensor(wraps)  # the first node of a periodic axis again at its end
        cells = (nodes - 1).to(box.lower)
        step = (box.upper - box.lower) / cells
        axis = [lo + h * torch.arange(n).to(h) for lo, h, n in zip(box.lower, step, nodes.tolist(), strict=True)]
        grid = torch.cartesian_prod(*axis).reshape(-1, len(chosen))
        z = grid.new_zeros(grid.shape[0], nz)
        z[:, list(chosen)] = grid
        parts, noise = [], grid.new_zeros(model.nx)
        with torch.no_grad():
            for part in z.split(chunk):
                x, u = part[:, : model.nx], part[:, model.nx :]
                prediction = model.predict(x, u)
                parts.append(torch.cat([prediction.mean - known(x, u), prediction.std], dim=-1))
                noise = prediction.noise_std
        strides = nodes.flip(0).cumprod(0).flip(0) // nodes
        unit = torch.cartesian_prod(*[torch.arange(2)] * len(chosen)).reshape(-1, len(chosen))
        corners = (unit * strides).sum(-1).to(box.lower.device)
        numbers = (tuple(v.tolist()) for v in (box.lower, step, cells.long(), strides))
        return Table(
            model, known, chosen, *numbers, corners=corners, values=torch.cat(parts), noise_std=noise, periodic=wraps
        )

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.model.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.model.nu

    @property
    def box(self) -> Box:
        """Box of the grid, in the tabulated coordinates."""
        lower, step, cells = (torch.tensor(v, dtype=torch.float64) for v in (self.lower, self.step, self.cells))
        return Box(lower, lower + step * cells)

    def condition(self, data: object) -> Table:
        """A table is frozen: condition the model and build again."""
        raise _require.fail("Table.condition", "a call of Table.build on a conditioned model", type(data).__name__)

    def residual(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolated residual mean and std, both (*b, nx)."""
        shape = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        base, weights = None, None
        for k, i in enumerate(self.axes):  # one contiguous column per axis: long inner loops
            column = (x[..., i] if i < self.nx else u[..., i - self.nx]).expand(shape).reshape(-1)
            cells = self.cells[k]
            position = (column - self.lower[k]) * (1.0 / self.step[k])
            position = position.remainder(cells) if self.periodic[k] else position.clamp(0.0, cells)
            low = position.floor().clamp_max_(cells - 1.0)
            fraction = position.sub_(low)
            both = torch.stack([1.0 - fraction, fraction])
            weights = both if weights is None else (weights.unsqueeze(1) * both).flatten(0, 1)
            base = low.mul_(self.strides[k]) if base is None else base.add_(low, alpha=self.strides[k])
        assert base is not None and weights is not None
        rows = base.nan_to_num_(0.0).long()  # a NaN goes on through its weights
        found = functional.embedding_bag(
            rows.unsqueeze(-1) + self.corners, self.values, per_sample_weights=weights.mT.contiguous(), mode="sum"
        )
        found = found.reshape(*shape, 2 * self.nx)
        return found[..., : self.nx], found[..., self.nx :]

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """known(x, u) + interpolated mean; interpolated std."""
        mean, std = self.residual(x, u)
        return Prediction(self.known(x, u) + mean, std, self.noise_std)

    def proven_error(self) -> Interpolation:
        """Per state, (nx,): within the box the interpolated residual mean errs by at most `mean`, and the model's std is at
        most the interpolated one plus `std`.

        Raises:
            ValueError: unless the model is an exact `GP` whose own known part was tabulated out, and whose kernels see the
                tabulated coordinates only.
        """
        model, where = self.model, "Table.proven_error"
        known = with_derivatives(self.known, self.nx, self.nu)  # as GP.create takes a prior
        own = isinstance(model, GP) and (
            known is model.prior or (isinstance(known, PlainKnown) and known == model.prior)
        )
        if not own or not isinstance(model, GP):
            raise _require.fail(where, "a table of a GP less its own prior", type(model).__name__)
        step = torch.zeros(self.nx + self.nu, dtype=torch.float64)
        step[list(self.axes)] = torch.tensor(self.step, dtype=torch.float64)
        found = interpolation(model, step)
        for kernel in model.kernels:
            form = stationary(kernel)
            seen = range(len(step)) if form is None or form.dims is None else form.dims.tolist()
            if not set(seen) <= set(self.axes):
                raise _require.fail(where, f"kernels of the tabulated coordinates {self.axes}", tuple(seen))
        size = self.values.abs().amax(0)  # weights and places of points are rounded
        rounding = 64 * torch.finfo(torch.float64).eps * len(self.axes) * (max(self.cells) + 2 ** len(self.axes)) * size
        mean, std = (model.embed(value) for value in (found.mean, found.std))
        return Interpolation(mean + rounding[: self.nx], std + rounding[self.nx :])

    def error(self, points: int, *, generator: torch.Generator) -> TableError:
        """Distance to the model at uniform points of the box."""
        z = torch.zeros(points, self.nx + self.nu, dtype=torch.float64)
        z[:, list(self.axes)] = self.box.sample(points, generator)
        x, u = z[:, : self.nx], z[:, self.nx :]
        exact, near = self.model.predict(x, u), self.predict(x, u)
        gaps = [(near.mean - exact.mean).abs(), (near.std - exact.std).abs()]
        numbers = [tuple(v.tolist()) for g in gaps for v in (g.amax(0), g.square().mean(0).sqrt())]
        return TableError(*numbers, points=points)
