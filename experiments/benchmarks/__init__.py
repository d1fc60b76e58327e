"""Benchmarks: paired ratios in one run (`make bench`)."""
