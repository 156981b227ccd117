"""Measurements, each beside a ceiling taken in the same run; `python -m benchmarks` runs them."""
