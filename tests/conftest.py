"""Test configuration: Hypothesis profiles and one thread per worker."""

import os
from collections.abc import Generator

import pytest
import torch
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=20, deadline=None, suppress_health_check=quiet)
settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("nightly", max_examples=2000, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Examples in docstrings are the library's: tests have none, and every worker would read all of them for nothing."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]
