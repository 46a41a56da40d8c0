"""Checkpoints of models and optimizers, written so that they can be loaded again."""
