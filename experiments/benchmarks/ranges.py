"""Ranges over boxes: time and relative gap, against sampling the same boxes, and against one cell of theory §5.3."""

from __future__ import annotations

import math
from time import process_time

import torch
from torch import Tensor

from gpsafe.confidence import ranges
from gpsafe.confidence.functionals import jet, taylor_modulus
from gpsafe.models import GP
from gpsafe.rkhs import kernels

from .common import Record, Settings, benchmark, paired, ratio, summary

DATA, DIM = 300, 3
SCALES = (0.6, 0.7, 0.8)
NOISE = 0.01
SAMPLES = 64  # points a box of the comparison by sampling, which proves nothing


def learned(nu: float) -> GP:
    """300 data in [−1, 1]³."""
    generator = torch.Generator().manual_seed(0)
    kernel = kernels.rbf(SCALES) if math.isinf(nu) else kernels.matern(nu, SCALES)
    z = 2 * torch.rand(DATA, DIM, dtype=torch.float64, generator=generator) - 1
    noise = NOISE * torch.randn(DATA, 1, dtype=torch.float64, generator=generator)
    y = torch.sin(2 * z[:, :1]) * torch.cos(2 * z[:, 1:2]) + 0.5 * z[:, 2:] + noise
    return GP.regression(kernel, dim=DIM, noise_std=NOISE).condition_on(z, y)


def boxes(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Of that share of the region's side, anywhere in it."""
    generator = torch.Generator().manual_seed(1)
    lower = (2 - 2 * share) * torch.rand(count, DIM, dtype=torch.float64, generator=generator) - 1
    return lower, lower + 2 * share


def one_cell(model: GP, lower: Tensor, upper: Tensor) -> dict[str, Tensor]:
    """Widths of what theory §5.3 alone encloses from the centre, (N,)."""
    form = kernels.stationary(model.kernels[0])
    assert form is not None
    center, radius = 0.5 * (lower + upper), 0.5 * (upper - lower)
    found = jet(model, center)
    rest = taylor_modulus(form, (radius / form.lengthscale).square().sum(-1).sqrt())
    slope = (found.mean[:, 0, 1:].abs() * radius).sum(-1)
    columns = found.cov[:, 0, 1:, 1:].diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    return {
        "mean": 2 * (slope + model.posterior_norm() * rest),
        "std": 2 * ((columns * radius).sum(-1) + rest),
    }


@benchmark("ranges")
def enclosures(settings: Settings) -> Record:
    """10 000 boxes at n = 300, d = 3, tolerance 1 %."""
    rows = []
    count, rounds = (50, 1) if settings.quick else (10_000, max(1, settings.rounds // 9))
    for nu in (math.inf, 2.5):
        model = learned(nu)
        for share in (0.05, 0.01):
            lower, upper = boxes(count, share)
            cell = one_cell(model, lower, upper)
            for name, run, index in (("mean", ranges.mean, 0), ("std", ranges.std, 1)):
                start = process_time()
                found = run(model, (lower, upper))
                seconds = process_time() - start
                some = slice(0, max(count // 20, 1))
                part = lower[some], upper[some]
                unit = torch.rand(SAMPLES, *part[0].shape, dtype=torch.float64)
                points = part[0] + (part[1] - part[0]) * unit
                timed = paired(
                    {
                        "ranges": lambda run=run, model=model, part=part: run(model, part),
                        "sampling": lambda model=model, points=points: model.posterior(points),
                    },
                    rounds,
                )
                values = model.posterior(points)[index][..., 0]
                sampled = (values.amax(0) - values.amin(0)) / (found.upper - found.lower)[some, 0]
                rows.append(
                    {
                        "kernel": "rbf" if math.isinf(nu) else f"matern {nu}",
                        "of": name,
                        "side_of_region": share,
                        "boxes": count,
                        "cpu_s": seconds,
                        "gap": {"median": float(found.gap.median()), "max": float(found.gap.max())},
                        "share_within_1_percent": float((found.gap <= 0.01).double().mean()),
                        "us_per_box": summary(timed["ranges"], 1e6 / len(part[0])),
                        "times_sampling": ratio(timed["ranges"], timed["sampling"]),
                        "sampled_width_over_enclosure": float(sampled.median()),
                        "one_cell_over_enclosure": float((cell[name] / (found.upper - found.lower)[:, 0]).median()),
                    }
                )
    return {
        "what": f"ranges to 1 % over boxes, n = {DATA}, d = {DIM}, one thread; sampling: {SAMPLES} points a box, no proof",
        "rows": rows,
    }
