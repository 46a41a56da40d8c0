"""Samples: where their bytes lie, and batches of them."""
