"""Checkpoints: safetensors files under a random name, with checksums, committed by one manifest."""
