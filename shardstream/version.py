"""The version: pyproject.toml reads it here, and so do the command, manifests and unfinished packs."""

__version__ = "0.1.0"
