"""From the items that units build to the batches, or the single items, that a user gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from shardstream.errors import note

__all__ = ["BatchMaker", "Collate", "Finish"]

Collate = Callable[[list[Any]], Any]  # a user's function, from a list of samples to a batch
Finish = Callable[[Any], Any]  # from what a unit builds to a batch


class BatchMaker(ABC):
    """How one dataset makes batches.

    Attributes:
        aliases: Names under which fields of a batch are found for one more version, and their names now.
    """

    aliases: Mapping[str, str] = MappingProxyType({})

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def views(self) -> bool:
        """Whether batches have views of memory of this process, which no other process can get."""
        return False

    @property
    @abstractmethod
    def transforms(self) -> bool:
        """Whether samples pass through a user's transform."""

    @abstractmethod
    def watching(self) -> bool:
        """Whether it is still to be seen if a transform draws from a global generator."""

    @property
    @abstractmethod
    def cheap(self) -> bool:
        """Whether making a batch is little more than copying bytes, so that it is as large as they are."""

    @abstractmethod
    def collated(self, collate: Collate | None) -> Finish:
        """The function that makes batches by `collate`, or by the dataset's own way."""

    @abstractmethod
    def singles(self, built: Any) -> tuple[Any, Exception | None]:
        """The items in front of the first that fails, as `items` takes them, and the error of that one."""

    @abstractmethod
    def items(self, made: Any) -> Iterable[Any]:
        """The single items of what `singles` made."""

    def listed(self, built: Any) -> Any:
        """What `singles` made; its error is raised."""
        made, error = self.singles(built)
        if error is not None:
            raise error
        return made

    def noting(self, collate: Collate) -> Collate:
        """A user's `collate` whose errors name the batch."""

        def collated(items: list[Any]) -> Any:
            # Looked up first: the user's function may change the samples, and the list.
            count, ends = len(items), [_key(item) for item in (*items[:1], *items[-1:])]
            try:
                return collate(items)
            except Exception as error:
                named = f", samples {ends[0]!r} to {ends[-1]!r}," if ends and None not in ends else ""
                note(error, f"in the collate of {count} items{named} of {self._url}")
                raise

        return collated


def _key(item: Any) -> Any:
    """The key of a sample; None if it has none."""
    return item.get("__key__") if isinstance(item, dict) else None
