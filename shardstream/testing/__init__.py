"""Contract suites for people who add a store, a source or a dataset: pytest classes to subclass.

Only this package needs pytest, which shardstream does not install.

Example:
    A test module of your own; pytest collects the subclass with all its tests::

        from shardstream.testing import StoreContract

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store(self, tmp_path):
                return MyStore(tmp_path)
"""

import pytest

# Before the modules are imported, so that a failed assert shows its values.
pytest.register_assert_rewrite(
    "shardstream.testing.datasets", "shardstream.testing.sources", "shardstream.testing.stores"
)

from shardstream.testing.datasets import DatasetContract  # noqa: E402
from shardstream.testing.sources import SourceContract  # noqa: E402
from shardstream.testing.stores import ReadOnlyStoreContract, StoreContract  # noqa: E402

__all__ = ["DatasetContract", "ReadOnlyStoreContract", "SourceContract", "StoreContract"]
