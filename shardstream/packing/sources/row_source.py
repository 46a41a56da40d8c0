"""What the sources of tables share: the options of their rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from shardstream.packing.sources.base import SourceOptions, TokenDtype
from shardstream.packing.sources.rows import Rows
from shardstream.storage.store import Options

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RowSource"]


@dataclass(frozen=True)
class RowSource:
    """The part of a source of tables that does not depend on their files.

    See `Rows` for what becomes the key and the fields of a sample.

    Args:
        rows: Makes samples of rows.
        storage_options: Options for the stores of the input.
    """

    rows: Rows = field(default_factory=Rows)
    storage_options: Options = field(default=None, repr=False)
    takes: ClassVar[frozenset[str]] = frozenset({"text_key", "keep", "column", "key"})

    @classmethod
    def make(cls, options: SourceOptions) -> Self:
        return cls(Rows.make(options), options.storage_options)

    @property
    def token_dtype(self) -> TokenDtype | None:
        """How tokens are stored that are there already; None if samples are no tokens.

        Only formats that take the option `dtype` can hold tokens.
        """
        return self.rows.token_dtype if "dtype" in self.takes else None

    def options(self) -> dict[str, Any]:
        return self.rows.options()
