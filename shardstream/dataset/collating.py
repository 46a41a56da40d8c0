"""Batches of samples of which some lack a field, and marks at samples that pad.

torch's default collate takes the fields of a batch's first sample, and fails if another sample lacks one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from shardstream.dataset.worker_epochs import current_worker
from shardstream.errors import OptionError
from shardstream.read.engine.frames import FrameId, Need
from shardstream.read.engine.units import Unit

__all__ = ["PAD", "Marking", "Sample", "by_default_collate", "finishing", "in_data_loader", "with_padding"]

PAD = "__pad__"
_FETCH = "torch.utils.data._utils.fetch"  # the module in which a DataLoader iterates its dataset


class Sample(dict[str, Any]):
    """A sample on its way to torch's default collate, which puts None for a missing field."""


def by_default_collate(caller: FrameType) -> bool:
    """Whether the caller is a DataLoader that puts samples together by torch's default collate."""
    if caller.f_globals.get("__name__") != _FETCH or not caller.f_locals.get("auto_collation"):
        return False
    from torch.utils.data import default_collate
    from torch.utils.data._utils import collate

    if caller.f_locals.get("collate_fn") is not default_collate:
        return False
    # How torch's documentation of `default_collate` tells to add a type.
    collate.default_collate_fn_map.setdefault(Sample, _collated)
    return True


def in_data_loader(caller: FrameType | None) -> bool:
    """Whether a DataLoader asks for samples, here or in a worker process, however many calls away."""
    if current_worker() is not None:
        return True
    while caller is not None and caller.f_globals.get("__name__") != _FETCH:
        caller = caller.f_back
    return caller is not None


def _collated(samples: list[Sample], *, collate_fn_map: Any = None) -> dict[str, Any]:
    """What torch makes of each field, or the list of its values if one is None."""
    from torch.utils.data._utils.collate import collate

    def joined(values: list[Any]) -> Any:
        if any(value is None for value in values):
            return values
        return collate(values, collate_fn_map=collate_fn_map)

    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: joined([sample.get(name) for sample in samples]) for name in names}


class Marking:
    """A collate that is told which samples pad: sample["__pad__"] is True or False.

    Args:
        collate: The user's function.
        padding: Whether each sample of the batch pads; None if none does.
        pads: Whether the epoch has padding, so that there must be a place to say it.
        last: See `StreamingLoader`.
        fresh: Whether all samples are new dicts, which nobody else has. Else dicts are copied.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any],
        padding: Sequence[bool] | None,
        pads: bool,
        last: str,
        fresh: bool = False,
    ) -> None:
        self._collate, self._padding, self._pads, self._last = collate, padding, pads, last
        self._fresh = fresh

    def __call__(self, samples: list[Any]) -> Any:
        flags = self._padding or [False] * len(samples)
        if self._fresh:
            for sample, flag in zip(samples, flags, strict=True):
                sample[PAD] = flag
        else:
            samples = [
                sample | {PAD: flag} if isinstance(sample, dict) else sample
                for sample, flag in zip(samples, flags, strict=True)
            ]
        batch = self._collate(samples)
        if self._pads and not isinstance(batch, dict):
            kinds = {type(sample).__name__ for sample in samples if not isinstance(sample, dict)}
            if kinds:
                raise OptionError(
                    f"last={self._last!r} fills up the epoch's last batch with samples that came before, and "
                    f"nothing can say so: samples are {' and '.join(sorted(kinds))}, the batch is a "
                    f"{type(batch).__name__}. Let transform give dicts, which get sample['__pad__'], or "
                    f"collate a dict, which gets batch['__pad__'], or say last='drop'"
                )
        return batch


class _Padded(NamedTuple):
    """The items of the batch with padding."""

    items: Any


def finishing(plain: Callable[[Any], Any], padded: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The `finish` of a stream of which one batch, that with padding, has a `finish` of its own."""
    return lambda items: padded(items.items) if type(items) is _Padded else plain(items)


def with_padding(units: Iterable[Unit], number: int) -> Iterator[Unit]:
    """The units; the items of batch `number` of all are for the second of `finishing`."""
    for unit in units:
        count = len(unit.sizes)
        yield _PaddedUnit(unit, number) if 0 <= number < count else unit
        number -= count


class _PaddedUnit:
    """A unit of which batch `number` is the one with padding."""

    def __init__(self, unit: Unit, number: int) -> None:
        self._unit, self._number = unit, number
        self.needs: Sequence[Need] = unit.needs
        self.sizes: Sequence[int] = unit.sizes
        self.volume, self.direct, self.grows = unit.volume, unit.direct, unit.grows
        self.unverified: Sequence[FrameId] = unit.unverified
        self.prepare = unit.prepare

    def parts(self, singles: bool) -> list[Unit]:
        """The same in units of one batch each, the one with padding among them."""
        return list(with_padding(self._unit.parts(singles), self._number))

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[Any]:
        for number, items in enumerate(self._unit.build(frames)):
            yield _Padded(items) if number == self._number else items
