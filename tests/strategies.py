"""Hypothesis strategies shared by all tests."""

from hypothesis import strategies as st


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a torch.Generator; the tensors themselves are drawn from it."""
    return st.integers(0, 2**31 - 2)
