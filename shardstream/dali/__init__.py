"""Batches decoded by NVIDIA DALI."""
