"""Tokens: how they are cut into blocks, and batches of blocks."""
