"""Hypothesis strategies shared by all tests."""

from hypothesis import settings
from hypothesis import strategies as st


def dear(examples: int = 8) -> settings:
    """For a test whose examples cost much: so many of them where the profile has twenty."""
    return settings(max_examples=max(1, settings().max_examples * examples // 20))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a torch.Generator; the tensors themselves are drawn from it."""
    return st.integers(0, 2**31 - 2)


# --------------------------------------------------------------------------------- kernels and data
def make_kernel(name: str, dim: int):
    """One kernel of each kind on `dim` inputs, length-scales about 1."""
    import gpytorch

    from gpsafe.rkhs import kernels

    scales = [0.7 + 0.3 * i for i in range(dim)]
    last = [dim - 1]
    return {
        "rbf": lambda: kernels.rbf(scales, 1.7),
        "rbf-isotropic": lambda: kernels.rbf(0.8, 0.3),
        "matern-1/2": lambda: kernels.matern(0.5, scales, 1.2),
        "matern-3/2": lambda: kernels.matern(1.5, scales, 0.6),
        "matern-5/2": lambda: kernels.matern(2.5, scales, 2.0),
        "linear": lambda: kernels.linear(scales),
        "rbf-restricted": lambda: kernels.rbf(0.9, 1.1, dims=last),
        "additive": lambda: kernels.additive(
            kernels.matern(2.5, scales, 0.8), kernels.linear(0.5, dims=last), kernels.rbf(1.3, 0.4, dims=[0])
        ),
        "rational-quadratic": lambda: kernels.freeze(gpytorch.kernels.RQKernel()),
        "product": lambda: kernels.product(kernels.rbf(0.9, 1.4), kernels.linear(0.8)),
        "product-scaled": lambda: kernels.freeze(
            gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel() * gpytorch.kernels.LinearKernel())
        ),
        "periodic": lambda: kernels.periodic([2.3 + i for i in range(dim)], 1.1, 0.9),
    }[name]()


CLOSED_KERNELS = (
    "rbf",
    "rbf-isotropic",
    "matern-1/2",
    "matern-3/2",
    "matern-5/2",
    "linear",
    "rbf-restricted",
    "additive",
)
GENERIC_KERNELS = ("rational-quadratic", "product", "product-scaled", "periodic")
ALL_KERNELS = CLOSED_KERNELS + GENERIC_KERNELS


def kernel_names(names: tuple[str, ...] = ALL_KERNELS) -> st.SearchStrategy[str]:
    """Names for `make_kernel`."""
    return st.sampled_from(names)
