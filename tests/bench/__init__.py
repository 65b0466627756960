"""Benchmarks: `make bench`. Every figure is a ratio or a count taken within one run; none is asserted in a test."""
