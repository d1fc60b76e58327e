"""What people run: checks and their verification, experiments, stored results, reports. Knows nothing of Gaussian processes."""
