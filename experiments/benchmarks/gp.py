"""Benchmarks of the GP: evaluation, low-rank evaluation, appending; against GPyTorch on the same model."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from gpsafe.models import GP, LowRankGP
from gpsafe.models.views import as_gpytorch
from gpsafe.rkhs import kernels

from .common import Record, Settings, benchmark, dgemm, paired, ratio, summary

OUTPUTS = 4
POINTS, HORIZON = 1000, 50
NOISE = 0.01


def problem(n: int, dim: int, lengthscale: float, *, seed: int = 0) -> tuple[GP, Tensor]:
    """A posterior on n data in [−2, 2]^dim with four ARD-RBF outputs, all length-scales different; and query
    points.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = [[lengthscale * (1 + 0.05 * j + 0.02 * i) for i in range(dim)] for j in range(OUTPUTS)]
    chosen = [kernels.rbf(scale, 1.0, dims=range(dim)) for scale in scales]
    # Regression of four outputs on z: with fewer than four inputs the state is padded by dimensions that no kernel sees.
    model = GP.create(chosen, NOISE**2, nx=OUTPUTS, nu=max(dim - OUTPUTS, 0), noise_std=NOISE)
    total = max(dim, OUTPUTS)
    z = 4 * torch.rand(n, total, dtype=torch.float64, generator=generator) - 2
    phases = torch.arange(OUTPUTS, dtype=torch.float64)
    noise = NOISE * torch.randn(n, OUTPUTS, dtype=torch.float64, generator=generator)
    targets = torch.sin(z[:, :dim].sum(-1, keepdim=True) / lengthscale + phases) + noise
    queries = 4 * torch.rand(HORIZON, POINTS, total, dtype=torch.float64, generator=generator) - 2
    return model.condition_on(z, targets), queries


# ------------------------------------------------------------------------------------------- GPyTorch
class Batched(gpytorch.models.ExactGP):
    """All outputs as one batch of independent GPs."""

    def __init__(self, model: GP) -> None:
        assert model.inputs is not None
        assert model.targets is not None
        batch = torch.Size([model.num_outputs])
        constraint = gpytorch.constraints.Positive()
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint, batch_shape=batch).double()
        likelihood.noise = model.regularizer.reshape(-1, 1)
        inputs = model.inputs.expand(model.num_outputs, *model.inputs.shape)
        super().__init__(inputs, model.targets.mT.contiguous(), likelihood)
        self.mean_module = gpytorch.means.ZeroMean(batch_shape=batch)
        forms = [kernels.stationary(kernel) for kernel in model.kernels]
        dims = tuple(forms[0].dims.tolist())
        base = gpytorch.kernels.RBFKernel(ard_num_dims=len(dims), active_dims=dims, batch_shape=batch)
        self.covar_module = gpytorch.kernels.ScaleKernel(base, batch_shape=batch).double()
        base.lengthscale = torch.stack([form.lengthscale for form in forms]).unsqueeze(-2)
        self.covar_module.outputscale = torch.tensor([form.variance for form in forms])
        self.double().eval()

    def forward(self, z: Tensor) -> MultivariateNormal:
        """Prior."""
        return MultivariateNormal(self.mean_module(z), self.covar_module(z))


@contextlib.contextmanager
def fastest():
    """GPyTorch's exact prediction with cached factors: Cholesky at every size, no gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad(), gpytorch.settings.fast_pred_var(), gpytorch.settings.max_cholesky_size(10_000):
            yield


def gpytorch_ways(model: GP) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """GPyTorch's ways of predicting: one batched model or one per output, in chunks of several sizes; caches
    warm.
    """
    batched, separate = Batched(model), [as_gpytorch(model, j) for j in range(model.num_outputs)]

    def batch(z: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        with fastest():
            parts = [batched(part.expand(OUTPUTS, *part.shape)) for part in z.split(chunk)]
            mean = torch.cat([part.mean for part in parts], dim=-1).mT
            return mean, torch.cat([part.variance for part in parts], dim=-1).mT.sqrt()

    def loop(z: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        with fastest():
            columns = [[one(part) for part in z.split(chunk)] for one in separate]
            mean = torch.stack([torch.cat([part.mean for part in parts]) for parts in columns], dim=-1)
            std = torch.stack([torch.cat([part.variance for part in parts]).sqrt() for parts in columns], dim=-1)
            return mean, std

    return {
        f"{name}, chunks of {chunk}": (lambda z, way=way, chunk=chunk: way(z, chunk))
        for name, way in (("batched", batch), ("one per output", loop))
        for chunk in (128, 256, 512, 1000)
    }


def best_gpytorch(model: GP, z: Tensor) -> tuple[str, Callable[[Tensor], tuple[Tensor, Tensor]], dict[str, float]]:
    """The fastest of GPyTorch's ways on these points, and how long each took."""
    ways = gpytorch_ways(model)
    seconds = paired({name: (lambda way=way: way(z)) for name, way in ways.items()}, 2)
    fastest_way = min(seconds, key=lambda name: min(seconds[name]))
    return fastest_way, ways[fastest_way], {name: min(values) for name, values in seconds.items()}


# ----------------------------------------------------------------------------------------- benchmarks
@benchmark("gp-posterior")
def posterior(settings: Settings) -> Record:
    """Mean and std of four outputs, d = 5, at 1000 points per step of a horizon of 50."""
    rows = []
    product, flops = dgemm()
    for n in (200,) if settings.quick else (200, 500, 1000):
        model, z = problem(n, 5, 1.5)
        name, theirs, candidates = best_gpytorch(model, z[0])
        gap = max(float((a - b).abs().max()) for a, b in zip(model.posterior(z[0]), theirs(z[0]), strict=True))
        ours, other = itertools.cycle(z), itertools.cycle(z)
        seconds = paired(
            {
                "ours": lambda model=model, z=ours: model.posterior(next(z)),
                "gpytorch": lambda theirs=theirs, z=other: theirs(next(z)),
                "dgemm": product,
                "whole horizon": lambda model=model, z=z: model.posterior(z),
            },
            settings.rounds,
        )
        count = float(n * n * OUTPUTS * POINTS)  # L⁻¹k: n²/2 multiplications and as many additions
        rates = [count / t for t in seconds["ours"]]
        peaks = [flops / t for t in seconds["dgemm"]]
        fractions = sorted(rate / peak for rate, peak in zip(rates, peaks, strict=True))
        rows.append(
            {
                "n": n,
                "ours_us_per_point": summary(seconds["ours"], 1e6 / POINTS),
                "ours_whole_horizon_us_per_point": summary(seconds["whole horizon"], 1e6 / (POINTS * HORIZON)),
                "gpytorch_us_per_point": summary(seconds["gpytorch"], 1e6 / POINTS),
                "speedup_over_gpytorch": ratio(seconds["gpytorch"], seconds["ours"]),
                "gpytorch_way": name,
                "gpytorch_ways_s": candidates,
                "largest_difference": gap,
                "dgemm_gflops": {"median": sorted(peaks)[len(peaks) // 2] / 1e9, "max": max(peaks) / 1e9},
                "triangular_gflops": {"median": sorted(rates)[len(rates) // 2] / 1e9, "max": max(rates) / 1e9},
                "fraction_of_dgemm": {
                    "median": fractions[len(fractions) // 2],
                    "of_best": max(rates) / max(peaks),
                },
            }
        )
    return {
        "what": "mean and std, 4 outputs with their own length-scales, d = 5, float64, 1000 points a call",
        "flops": "n^2 a point and output: the triangular product with the inverse factor alone; kernel and mean are extra",
        "rows": rows,
    }


@benchmark("gp-low-rank")
def low_rank(settings: Settings) -> Record:
    """The low-rank posterior against the exact one and against GPyTorch, with what it costs in width."""
    rows = []
    cases = ((1, 0.5), (2, 1.0), (3, 2.5), (3, 1.5), (4, 4.0), (4, 2.5))
    n = 200 if settings.quick else 1000
    for dim, lengthscale in cases[:1] if settings.quick else cases:
        model, z = problem(n, dim, lengthscale)
        low = LowRankGP.create(model)
        _, std = model.posterior(z[0])
        _, wide, error = low.evaluate(z[0])
        name, theirs, _ = best_gpytorch(model, z[0])
        seconds = paired(
            {
                "low rank": lambda low=low, z=z: low.posterior(z[0]),
                "exact": lambda model=model, z=z: model.posterior(z[0]),
                "gpytorch": lambda theirs=theirs, z=z: theirs(z[0]),
                "create": lambda model=model: LowRankGP.create(model),
            },
            settings.rounds,
        )
        rows.append(
            {
                "n": n,
                "dim": dim,
                "lengthscale": lengthscale,
                "ranks": low.ranks,
                "low_rank_us_per_point": summary(seconds["low rank"], 1e6 / POINTS),
                "speedup_over_exact": ratio(seconds["exact"], seconds["low rank"]),
                "speedup_over_gpytorch": ratio(seconds["gpytorch"], seconds["low rank"]),
                "gpytorch_way": name,
                "create_s": summary(seconds["create"]),
                "widening": {"median": float((wide / std).median()), "max": float((wide / std).max())},
                "mean_error_over_std": {"median": float((error / std).median()), "max": float((error / std).max())},
            }
        )
    return {
        "what": "rank <= 160, data and queries uniform in [-2, 2]^d, noise 0.01, 4 outputs, 1000 points a call",
        "rows": rows,
    }


@benchmark("gp-append")
def append(settings: Settings) -> Record:
    """Ten more data for a posterior on 1000: appending, refitting, GPyTorch's fantasy model."""
    n, extra = (200 if settings.quick else 1000), 10
    model, z = problem(n, 5, 1.5)
    assert model.inputs is not None
    assert model.targets is not None
    model.posterior(z[0])
    fresh = z.reshape(-1, 5)
    values = torch.zeros(extra, OUTPUTS, dtype=torch.float64)
    empty = GP.create(model.kernels, NOISE**2, nx=4, nu=1, noise_std=NOISE)
    state: dict[str, Any] = {"factors": model, "ready": model, "step": 0}
    batched, separate = Batched(model), [as_gpytorch(model, j) for j in range(OUTPUTS)]
    with fastest():
        batched(fresh[:2].expand(OUTPUTS, 2, 5))
        for one in separate:
            one(fresh[:2])

    def points() -> Tensor:
        state["step"] += 1
        return fresh[extra * state["step"] : extra * (state["step"] + 1)]

    def ours(key: str, evaluate: bool) -> None:
        state[key] = state[key].condition_on(points(), values)  # a chain of appends, as an experiment makes it
        if evaluate:
            state[key].posterior(fresh[:1])

    def refit(evaluate: bool) -> None:
        inputs, targets = torch.cat([model.inputs, points()]), torch.cat([model.targets, values])
        whole = empty.condition_on(inputs, targets)
        if evaluate:
            whole.posterior(fresh[:1])

    def fantasy_batched() -> None:
        with fastest():
            new = points()
            batched.get_fantasy_model(new.expand(OUTPUTS, extra, 5), values.mT)

    def fantasy_separate() -> None:
        with fastest():
            new = points()
            for j, one in enumerate(separate):
                one.get_fantasy_model(new, values[:, j])

    contestants: dict[str, Callable[[], None]] = {
        "append": lambda: ours("factors", False),
        "append, then predict": lambda: ours("ready", True),
        "refit": lambda: refit(False),
        "refit, then predict": lambda: refit(True),
        "gpytorch fantasy, one per output": fantasy_separate,
        "gpytorch fantasy, batched": fantasy_batched,
    }
    failed: dict[str, str] = {}
    for name in list(contestants):
        try:
            contestants[name]()
        except (RuntimeError, ValueError) as error:
            if not name.startswith("gpytorch"):
                raise
            failed[name] = str(error).splitlines()[0][:200]
            del contestants[name]
    seconds = paired(contestants, settings.rounds)
    record: Record = {
        "what": f"10 data appended to n = {n} (growing by 10 each round), 4 outputs with their own factors, d = 5",
        "note": "append computes the new rows of the factors; 'then predict' adds weights, rows of the inverse, one point",
        "milliseconds": {name: summary(values, 1e3) for name, values in seconds.items()},
        "failed": failed,
        "speedup_over_refit": ratio(seconds["refit"], seconds["append"]),
        "speedup_over_refit_then_predict": ratio(seconds["refit, then predict"], seconds["append, then predict"]),
    }
    for name in seconds:
        if name.startswith("gpytorch"):
            record[f"speedup_over_{name}"] = ratio(seconds[name], seconds["append"])
            record[f"speedup_then_predict_over_{name}"] = ratio(seconds[name], seconds["append, then predict"])
    return record
