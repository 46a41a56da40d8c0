"""Benchmarks: one file per question, run against peers and ceilings in turn."""
