"""Safe model-based reinforcement learning with guarantees that can be run."""
