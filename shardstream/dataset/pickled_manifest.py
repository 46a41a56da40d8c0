"""The manifest that a dataset was opened with: it goes along when the dataset is sent."""

from __future__ import annotations

from typing import Any

import zstandard

from shardstream.format.manifest import Manifest
from shardstream.format.manifest_files import join, load

__all__ = ["PickledManifest"]


class PickledManifest:
    """A manifest that is small in a pickle, and is unpacked when it is first asked for.

    A process that read the store's manifest instead might find a newer one, and another order with it.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest: Manifest | None = manifest
        self._packed = b""

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        if self._manifest is None:
            self._manifest = load(zstandard.decompress(self._packed))
        return self._manifest

    @property
    def loaded(self) -> Manifest | None:
        """The manifest, if it is in memory as it is."""
        return self._manifest

    def __deepcopy__(self, memo: Any) -> PickledManifest:
        return self  # nothing in it changes

    def __getstate__(self) -> bytes:
        if not self._packed:
            assert self._manifest is not None
            self._packed = zstandard.compress(join(self._manifest), 1)
        return self._packed

    def __setstate__(self, state: bytes) -> None:
        self._manifest, self._packed = None, state
