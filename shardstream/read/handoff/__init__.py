"""Batches on their way to their consumer: another process, other ranks, a device."""
