"""Small linear algebra: factors reproduce their matrices, failures are raised."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe import linalg

EXACT = 1e-12


def spd(seed: int, n: int) -> torch.Tensor:
    root = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT + torch.eye(n, dtype=torch.float64)


@given(seeds(), st.integers(1, 12))
def test_factors_reproduce_the_matrix(seed, n):
    matrix = spd(seed, n)
    lower, reverse, root = linalg.cholesky(matrix), linalg.reverse_cholesky(matrix), linalg.psd_root(matrix)
    scale = float(matrix.abs().max())
    torch.testing.assert_close(lower @ lower.mT, matrix, rtol=0, atol=EXACT * scale * n)
    torch.testing.assert_close(reverse.mT @ reverse, matrix, rtol=0, atol=EXACT * scale * n)
    torch.testing.assert_close(root @ root.mT, matrix, rtol=0, atol=EXACT * scale * n)
    assert float(reverse.triu(1).abs().max() if n > 1 else 0.0) == 0.0


@given(seeds(), st.integers(1, 200), st.integers(1, 9))
def test_triangular_square_norms_are_the_column_norms(seed, n, blocks):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(n, n, dtype=torch.float64, generator=generator).tril()
    columns = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    expected = (lower @ columns).square().sum(0)
    torch.testing.assert_close(linalg.triangular_square_norms(lower, columns, blocks), expected, rtol=EXACT, atol=EXACT)


@given(seeds(), st.integers(1, 60), st.integers(1, 3), st.sampled_from([1, 7, 128]))
def test_blocked_substitution_and_product_are_the_plain_ones(seed, n, m, block):
    lower = torch.zeros(n + 3, n + 3, dtype=torch.float64)
    lower[:n, :n] = linalg.cholesky(spd(seed, n))
    view = lower[:n, :n]  # a strided view, as growing factors are
    rhs = torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scale = float(rhs.abs().max()) * n
    forward = linalg.substitute(view, rhs, block=block)
    backward = linalg.substitute(view, rhs, adjoint=True, block=block)
    torch.testing.assert_close(view @ forward, rhs, rtol=0, atol=EXACT * scale)
    torch.testing.assert_close(view.mT @ backward, rhs, rtol=0, atol=EXACT * scale)
    product = linalg.product_lower(rhs.mT, view, block=block)
    torch.testing.assert_close(product, rhs.mT @ view, rtol=0, atol=EXACT * scale * n)


def test_inverse_and_solve_agree():
    lower = linalg.cholesky(spd(0, 9))
    eye = torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(linalg.inverse_lower(lower) @ lower, eye, rtol=0, atol=EXACT)
    torch.testing.assert_close(linalg.solve_lower(lower, eye), linalg.inverse_lower(lower), rtol=0, atol=EXACT)


def test_an_indefinite_matrix_is_refused_with_its_eigenvalue():
    with pytest.raises(ValueError, match="smallest eigenvalue -1"):
        linalg.cholesky(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_root_of_a_singular_matrix_needs_no_jitter():
    vector = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    root = linalg.psd_root(vector @ vector.mT)
    torch.testing.assert_close(root @ root.mT, vector @ vector.mT, rtol=0, atol=EXACT * 10)


def test_gamma_bounds_the_rounding_of_a_sum():
    values = torch.full((1000,), 0.1, dtype=torch.float64)
    total = 0.0
    for value in values.tolist():
        total += value
    from fractions import Fraction

    exact = 1000 * Fraction(0.1)
    assert abs(Fraction(total) - exact) <= Fraction(linalg.gamma(1000)) * exact


def test_transformed_tensors_are_recognised():
    seen = []

    def probe(x):
        seen.append(linalg.is_transformed(x))
        return x.sum()

    probe(torch.ones(2))
    torch.func.grad(probe)(torch.ones(2))
    torch.vmap(probe)(torch.ones(2, 2))
    assert seen == [False, True, True]


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_refused_in_words(entry):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 0] = matrix[0, 1] = entry
    with pytest.raises(ValueError, match="a finite matrix"):
        linalg.cholesky(matrix)


@dear()
@given(seed=seeds(), n=st.integers(1, 12), m=st.integers(1, 12), spread=st.sampled_from([0, 40, 300]))
def test_what_a_factor_leaves_is_bounded_near_machine_precision(seed, n, m, spread):
    """Against exact rationals: never too small, and too large by less than rounding of the product would be."""
    g = torch.Generator().manual_seed(seed)
    scale = (
        torch.exp2(spread * (torch.rand(m, dtype=torch.float64, generator=g) - 0.5).round(decimals=2)) * 2.0**-spread
    )
    factor = torch.randn(n, m, dtype=torch.float64, generator=g) * scale
    matrix = factor @ factor.mT
    rows = [[Fraction(v) for v in row] for row in factor.tolist()]
    square = sum(
        (Fraction(float(matrix[i, j])) - sum(a * b for a, b in zip(rows[i], rows[j], strict=True))) ** 2
        for i in range(n)
        for j in range(n)
    )
    found = Fraction(float(linalg.residual_norm(matrix, factor)))
    assert found**2 >= square
    size = Fraction(float(factor.square().sum()))
    assert (found - size / 2**66) ** 2 <= square * (1 + Fraction(1, 10**9)) or found <= size / 2**66
