"""RKHS twins: plants x⁺ = known(x, u) + Σ α_i k(z_i, ·) + w whose RKHS norm is exact (theory §1 (b))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.rkhs import RKHSFunction, interpolate
from gpsafe.sets import Box
from gpsafe.systems.base import Cost, KnownPart, System, measured


@short
@dataclass(frozen=True, slots=True, eq=False)
class TwinError:
    """Distance of a twin to its physics at test points of the box: sampled, so `max` is a lower estimate.

    Attributes:
        max: largest |twin − physics| per learned output, (p,), in units of the state.
        rms: root mean square, (p,).
        points: number of test points.
    """

    max: Tensor
    rms: Tensor
    points: int


@short
@dataclass(frozen=True, slots=True, eq=False)
class RKHSTwin:
    """A plant exactly in the hypothesis class: x⁺_j = known_j + residual_j for j in outputs, else known_j.

    The plant `physics` gives everything but the dynamics (cost, reward, boxes, noise, horizon). States that
    are not in `outputs` follow the known part alone.

    Attributes:
        physics: the system that was interpolated.
        known: known part of the mean.
        residual: one exact-norm function of z = (x, u) per learned output (p of them).
        outputs: learned state indices.
        rkhs_norm: (p,), upper end of ‖residual_j‖_k: √(αᵀKα) with the rounding error of its evaluation added.
        twin_error: distance to the physics over `region`.
        region: box of z on which the twin was built; outside it the residual returns to 0.
    """

    physics: System
    known: KnownPart
    residual: tuple[RKHSFunction, ...]
    outputs: tuple[int, ...]
    rkhs_norm: Tensor
    twin_error: TwinError
    region: Box
    name: str

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Kernel of each residual."""
        return tuple(f.kernel for f in self.residual)

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.physics.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.physics.nu

    @property
    def state_box(self) -> Box:
        """As the physics."""
        return self.physics.state_box

    @property
    def input_box(self) -> Box:
        """As the physics."""
        return self.physics.input_box

    @property
    def noise_std(self) -> Tensor:
        """As the physics, (nx,)."""
        return self.physics.noise_std

    @property
    def initial_state(self) -> Tensor:
        """As the physics, (nx,)."""
        return self.physics.initial_state

    @property
    def horizon(self) -> int:
        """As the physics."""
        return self.physics.horizon

    @property
    def cost(self) -> Cost:
        """As the physics."""
        return self.physics.cost

    @property
    def budget(self) -> float:
        """As the physics."""
        return self.physics.budget

    @property
    def angles(self) -> tuple[int, ...]:
        """State indices that are angles, as the physics says."""
        return getattr(self.physics, "angles", ())

    def residual_fn(self, z: Tensor) -> Tensor:
        """Residual of the learned outputs, (*b, nx + nu) → (*b, p)."""
        return torch.stack([f(z) for f in self.residual], dim=-1)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, nx), (*b, nu) → (*b, nx)."""
        x, u = measured(self, x, u)
        base = self.known(x, u)
        residual = self.residual_fn(torch.cat([x, u], dim=-1))
        columns = list(base.unbind(-1))
        for i, j in enumerate(self.outputs):
            columns[j] = columns[j] + residual[..., i]
        return torch.stack(columns, dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """As the physics."""
        return self.physics.reward(x, u)


def centers(box: Box, counts: Sequence[int]) -> Tensor:
    """Regular grid including the faces, (Π counts, d); a count of 1 takes the middle of its axis."""
    if len(counts) != box.dim:
        raise _require.fail("centers", f"{box.dim} counts", tuple(counts))
    axes = []
    for low, high, count in zip(box.lower.tolist(), box.upper.tolist(), counts, strict=True):
        _require.count("centers", "count", count)
        axes.append(
            torch.linspace(low, high, count, dtype=torch.float64)
            if count > 1
            else torch.tensor([0.5 * (low + high)], dtype=torch.float64)
        )
    return torch.cartesian_prod(*axes).reshape(-1, box.dim)


def _split(z: Tensor, nx: int) -> tuple[Tensor, Tensor]:
    return z[..., :nx], z[..., nx:]


def _learned(outputs: Sequence[int], nx: int) -> tuple[int, ...]:
    return _require.positions("twin", "outputs", outputs, nx)


def _product(system: System) -> Box:
    both = (system.state_box, system.input_box)
    return Box(torch.cat([b.lower for b in both]), torch.cat([b.upper for b in both]))


def _probe(region: Box, count: int) -> Tensor:
    """Uniform points of the box with fixed seed, a quarter of them moved to a random face."""
    generator = torch.Generator().manual_seed(0)
    points = region.sample(count, generator)
    face = torch.rand(count, dtype=torch.float32, generator=generator) < 0.25
    axis = torch.randint(region.dim, (count,), generator=generator)
    high = torch.rand(count, dtype=torch.float32, generator=generator) < 0.5
    end = torch.where(high, region.upper[axis], region.lower[axis]).unsqueeze(-1)
    moved = face.unsqueeze(-1) & (torch.arange(region.dim) == axis.unsqueeze(-1))
    return torch.where(moved, end, points)


def exact_twin(
    system: System,
    known: KnownPart,
    *,
    residual: Sequence[RKHSFunction],
    outputs: Sequence[int],
    region: Box | None = None,
    test_points: int = 20_000,
    name: str | None = None,
) -> RKHSTwin:
    """A twin from given functions, with its distance to the system's mean measured.

    Args:
        system: the physics.
        known: known part.
        residual: one function of z = (x, u) per learned output.
        outputs: learned state indices.
        region: box of z (default: state box × input box).
        test_points: random points (fixed seed, a quarter of them on faces) at which the distance is measured.
        name: default: system.name + "-twin".
    """
    learned = _learned(outputs, system.nx)
    if len(residual) != len(learned):
        raise _require.fail("twin", f"{len(learned)} residual functions", len(residual))
    region = region or _product(system)
    z = _probe(region, _require.count("twin", "test_points", test_points))
    physics = (system.mean(*_split(z, system.nx)) - known(*_split(z, system.nx)))[:, list(learned)]
    gap = torch.stack([f(z) for f in residual], dim=-1) - physics
    error = TwinError(gap.abs().amax(0), gap.square().mean(0).sqrt(), test_points)
    norms = torch.tensor([f.norm_upper for f in residual], dtype=torch.float64)
    return RKHSTwin(system, known, tuple(residual), learned, norms, error, region, name or f"{system.name}-twin")


def twin(
    system: System,
    known: KnownPart,
    *,
    kernels: Kernel | Sequence[Kernel],
    outputs: Sequence[int],
    counts: Sequence[int],
    region: Box | None = None,
    ridge: float = 1e-10,
    test_points: int = 20_000,
    name: str | None = None,
) -> RKHSTwin:
    """The RKHS twin of a system: kernel interpolation of mean − known on a grid of z = (x, u).

    Args:
        system: the physics; its `mean` is sampled on the grid.
        known: known part.
        kernels: one per learned output, or one for all.
        outputs: learned state indices; the others must equal the known part (checked on the grid).
        counts: grid points per axis of z; 1 for an axis the kernel ignores.
        region: box of z (default: state box × input box).
        ridge: of the interpolation, relative to the kernel's variance; part of the definition.
        test_points, name: see :func:`exact_twin`.

    Raises:
        ValueError: bad shapes, or a state outside `outputs` that the known part does not reproduce to 1e-9.
    """
    learned = _learned(outputs, system.nx)
    given = (kernels,) * len(learned) if isinstance(kernels, Kernel) else tuple(kernels)
    if len(given) != len(learned):
        raise _require.fail("twin", f"{len(learned)} kernels", len(given))
    region = region or _product(system)
    points = centers(region, counts)
    target = system.mean(*_split(points, system.nx)) - known(*_split(points, system.nx))
    others = [j for j in range(system.nx) if j not in learned]
    worst = float(target[:, others].abs().max()) if others else 0.0
    if worst > 1e-9:
        raise _require.fail("twin", f"states {others} equal to the known part", f"a difference of {worst:.3g}")
    residual = [interpolate(k, points, target[:, j], ridge=ridge) for k, j in zip(given, learned, strict=True)]
    return exact_twin(
        system, known, residual=residual, outputs=learned, region=region, test_points=test_points, name=name
    )
