"""Test configuration: Hypothesis profiles and one thread per worker."""

import os

import torch
from hypothesis import HealthCheck, settings

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=20, deadline=None, suppress_health_check=quiet)
settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("nightly", max_examples=2000, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
torch.set_num_threads(1)
