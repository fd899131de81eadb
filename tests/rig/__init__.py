"""Whole fleets of real processes in one folder: what the end-to-end tests, the demo and the benchmarks stand on."""
