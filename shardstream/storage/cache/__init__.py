"""Blocks that stay on this machine: in memory and on the SSD."""
