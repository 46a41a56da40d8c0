"""Which blocks are asked for, and when."""
