"""The end of an attempt: wait for its parts, put what others read beside them, and commit."""

from __future__ import annotations

import json
from collections.abc import Sequence

from shardstream.checkpoint.commit import Stopped, collect, commit, is_damaged
from shardstream.checkpoint.layout import MANIFEST, step_folder
from shardstream.checkpoint.manifest import Pending, Receipt, TensorInfo
from shardstream.checkpoint.retention import Run

__all__ = ["finish", "indexes"]


def finish(
    run: Run, pending: Pending, stopped: Stopped, patience: float, conditional: bool,
    damaged: str | None = None,
) -> None:  # fmt: skip
    """Wait for the parts of all ranks, and commit.

    Args:
        run: The checkpoints.
        pending: What the manifest has beside the receipts.
        stopped: Ends the wait.
        patience: Seconds without a new object, after which a rank is taken for dead.
        conditional: Whether the store has a conditional put.
        damaged: The damaged attempt of this step that makes room, "" if its manifest is what is damaged. What
            else is committed meanwhile stays. None: there is none.

    Raises:
        StorageError: A part did not come, or the store has failed.
        StateError: The step is committed already.
        CorruptionError: The parts do not make whole tensors.
    """
    name, attempt = step_folder(pending.step), pending.attempt
    folder = run.open(name)
    receipts = collect(folder, run.open(name, attempt), attempt, pending.world, stopped, patience)
    for text, content in (pending.texts | indexes(receipts, pending.modules)).items():
        folder.write(f"{attempt}/{text}", content.encode())
    if damaged is not None and is_damaged(folder, damaged):
        folder.delete(MANIFEST)  # not earlier: all of the new one is in the store now
    commit(
        folder, pending.step, attempt, receipts, values=pending.values, modules=pending.modules,
        data=pending.data, conditional=conditional,
    )  # fmt: skip


def indexes(receipts: Sequence[Receipt], modules: Sequence[str]) -> dict[str, str]:
    """The index of each module whose tensors lie whole in files of their own, as transformers wants it.

    Returns:
        The content of each, by its name: model.safetensors.index.json for the module "model".
    """
    found: dict[str, str] = {}
    for module in modules:
        table: dict[str, str] = {}
        size, whole = 0, True
        for receipt in receipts:
            for name, tensor in receipt.tensors.items():
                if name.startswith(f"{module}/"):
                    whole = whole and _is_whole(tensor)
                    file = receipt.files[tensor.chunks[0].file]
                    table[name.removeprefix(f"{module}/")] = file.name
        if whole and table:
            size = sum(file.bytes for r in receipts for file in r.files if file.name in table.values())
            content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
            found[f"{module}.safetensors.index.json"] = json.dumps(content, indent=1)
    return found


def _is_whole(tensor: TensorInfo) -> bool:
    return len(tensor.chunks) == 1 and tensor.chunks[0].shape == tensor.shape
