"""Counters and histograms that are always on, in a mapped file that other processes can read."""
