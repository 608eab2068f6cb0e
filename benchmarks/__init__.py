"""Benchmarks: slower than tests, run by hand, their figures published beside them."""
