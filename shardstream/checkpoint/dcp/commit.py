"""The commit of a save by torch: what may be overwritten (nothing), what must be there, and the put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from shardstream.checkpoint.commit import collect, commit, conditional_put
from shardstream.checkpoint.dcp.folders import METADATA
from shardstream.checkpoint.dcp.items import Written
from shardstream.checkpoint.dcp.manifest import OBJECT, extra_of
from shardstream.checkpoint.dcp.places import step_in
from shardstream.checkpoint.layout import MANIFEST
from shardstream.checkpoint.manifest import Receipt
from shardstream.checkpoint.writing import PartWriter
from shardstream.errors import CorruptionError, OptionError, StateError
from shardstream.storage.store import Options, Store

__all__ = ["Attempt", "Gathered", "check_conditional", "refuse_to_overwrite"]


def refuse_to_overwrite(folder: Store) -> None:
    """Raise StateError if a folder has a checkpoint, ours or torch's."""
    for name in (MANIFEST, METADATA):
        if folder.exists(name):
            raise StateError(
                f"{folder.where(name)} exists: a checkpoint is never overwritten. Save to another folder, "
                "or delete this one first"
            )


def check_conditional(folder: Store, single_writer: bool) -> bool:
    """Whether the store refuses to overwrite an object.

    Raises:
        OptionError: It does not, and the user does not promise that there is one writer.
    """
    if single_writer:
        return False
    if not conditional_put(folder):
        raise OptionError(
            f"{folder.url}: this store cannot refuse to overwrite an object, so two jobs could overwrite "
            "each other's checkpoints: use single_writer=True if there is only one"
        )
    return True


@dataclass(frozen=True)
class Gathered:
    """What all ranks have written.

    receipts: in the order of ranks.  values: objects that are JSON, by name.
    on_disk: whether all ranks have all of it on their local disks.
    """

    receipts: list[Receipt]
    values: Mapping[str, Any]
    on_disk: bool

    @classmethod
    def of(cls, metadata: Metadata, results: list[list[WriteResult]], url: str, world: int) -> Gathered:
        """From the results that torch has gathered.

        Raises:
            CorruptionError: Something that the plan names was not written. Whether the parts of tensors are
                whole, the commit itself checks.
        """
        told = [each.storage_data for rank in results for each in rank]
        assert all(isinstance(each, Written) for each in told)
        first = sorted((each for each in told if each.receipt), key=lambda each: int(each.receipt.rank))
        values = {name: value for each in told for name, value in each.values.items()}
        receipts = [each.receipt for each in first]
        written = {name for receipt in receipts for name in receipt.tensors}
        lost = [
            name
            for name in metadata.state_dict_metadata
            if name not in values and name not in written and OBJECT + name not in written
        ]
        if lost or len(receipts) != world:
            what = ", ".join(lost[:8]) or "the parts of some ranks"
            raise CorruptionError(f"{url}: not committed: {what} were not written")
        return cls(receipts, values, all(each.on_disk for each in first))


@dataclass(frozen=True)
class Attempt:
    """A save whose files are written or on their way.

    url: the folder of the checkpoint.  name: that of the attempt.  world: how many ranks there are.
    conditional: whether the store refuses to overwrite.  patience: seconds that other ranks are waited for.
    """

    url: str
    options: Options
    name: str
    world: int
    conditional: bool
    patience: float

    def put(
        self, folder: Store, receipts: Sequence[Receipt], metadata: Metadata, gathered: Gathered,
        replace: bool = False,
    ) -> None:  # fmt: skip
        """Commit to a folder.

        Args:
            folder: The one at the URL, or the one on the local disk.
            receipts: Of all ranks.
            metadata: What the planner of the save says.
            gathered: What all ranks have written.
            replace: Whether the manifest of another attempt, which may be there, is replaced.

        Raises:
            StateError: Somebody else has committed to it meanwhile.
            CorruptionError: The parts do not make whole tensors.
        """
        extra = extra_of(Store.open(self.url, self.options).url, metadata, gathered.values)
        conditional = self.conditional or folder.local_path("") is not None
        commit(
            folder,
            step_in(self.url),
            self.name,
            receipts,
            extra=extra,
            conditional=conditional,
            replace=replace,
        )

    def put_behind(self, folder: Store, part: PartWriter, metadata: Metadata, gathered: Gathered) -> bool:
        """Wait until all files of all ranks are in the store, then commit to it.

        Args:
            part: What this rank writes. Its own errors are told by it.

        Returns:
            Whether it is committed; False if this rank's own part has failed.
        """
        part.wait()
        if part.error is None:
            inside = Store.open(f"{self.url.rstrip('/')}/{self.name}", self.options)
            receipts = collect(folder, inside, self.name, self.world, part.stopped, self.patience)
            self.put(folder, receipts, metadata, gathered)
        return part.error is None
