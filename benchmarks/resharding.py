"""Bytes that ranks read when they load what another number of ranks saved, with ss.Checkpoints.

    python -m benchmarks.resharding --size 64MB

One job of 8 ranks (gloo). For each number of ranks, as many of them save tensors that are sharded along
dimension 0, as FSDP2 does, or 1, as tensor parallelism does. Their sizes are such that shards are uneven.
Then each number loads it, in each layout. "read" is what all ranks of a load have read of the files, over the
bytes of the state; every value that is loaded is compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from shardstream.format.sizes import human_size, parse_size

WORLDS = (1, 2, 3, 4, 8)
LAYOUTS = {"dim 0": 0, "dim 1": 1}
RESULTS = Path(__file__).parent / "results" / "resharding"


def shapes(size: int) -> dict[str, tuple[int, int]]:
    """Pairs of matrices whose sizes few numbers divide, as many as make the size."""
    one = {"up": (2730, 1021), "down": (1021, 2730)}
    count = max(1, size // sum(4 * a * b for a, b in one.values()))
    return {f"{n}.{name}": shape for n in range(count) for name, shape in one.items()}


def tensors(size: int, mesh: Any, dim: int, fill: bool) -> dict[str, Any]:
    """The state of this rank: DTensors that are sharded along a dimension."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    found = {}
    for number, (name, shape) in enumerate(shapes(size).items()):
        step = -(-shape[dim] // mesh.size())
        first = min(mesh.get_local_rank() * step, shape[dim])
        rows = min(step, shape[dim] - first)
        index = torch.arange(first, first + rows, dtype=torch.float32)
        other = torch.arange(shape[1 - dim], dtype=torch.float32)
        place = (index[:, None], other[None, :]) if dim == 0 else (other[:, None], index[None, :])
        local = place[0] * 4096 + place[1] + number if fill else torch.zeros_like(place[0] + place[1])
        found[name] = DTensor.from_local(
            local.contiguous(), mesh, [Shard(dim)], run_check=False, shape=torch.Size(shape),
            stride=(shape[1], 1),
        )  # fmt: skip
    return found


def job(folder: str, size: int, worlds: tuple[int, ...]) -> list[dict[str, Any]]:
    """What all ranks of this process's group measure together; on the first one all of it."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    import shardstream as ss

    rank, found = dist.get_rank(), []
    groups = {n: dist.new_group(list(range(n))) for n in worlds}
    meshes = {n: DeviceMesh("cpu", list(range(n))) for n in worlds}
    total = sum(4 * a * b for a, b in shapes(size).values())
    for before in worlds:
        for layout, dim in LAYOUTS.items():
            url = f"{folder}/{before}-{dim}"
            if rank < before:
                saves = ss.Checkpoints(url, memory="64MiB", group=groups[before])
                saves.save(1, {"x": tensors(size, meshes[before], dim, True)})
                saves.wait()
            dist.barrier()
            for after in worlds:
                for other, to in LAYOUTS.items():
                    if rank < after:
                        saves = ss.Checkpoints(url, group=groups[after])
                        state = {"x": tensors(size, meshes[after], to, False)}
                        assert saves.load(state) == 1
                        expected = tensors(size, meshes[after], to, True)
                        for name, value in expected.items():
                            assert torch.equal(state["x"][name].to_local(), value.to_local()), (url, name)
                        read = torch.tensor(saves._loading.bytes_read)  # noqa: SLF001 - not for users
                        dist.all_reduce(read, group=groups[after])
                        row = {"saved": before, "as": layout, "loaded": after, "to": other}
                        found.append({**row, "read": int(read) / total})
                    dist.barrier()
    return found


def rank_of(rank: int, port: int, folder: str, size: int, queue: Any) -> None:
    """One process."""
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=max(WORLDS), rank=rank)
    found = job(folder, size, WORLDS)
    if rank == 0:
        queue.put(found)
    dist.barrier()


def table(found: list[dict[str, Any]]) -> str:
    """The figures as a table: a row for what was saved, a column for what loads it."""
    columns = [(n, to) for to in LAYOUTS for n in WORLDS]
    lines = [
        "| saved by | " + " | ".join(f"{n}, {to}" for n, to in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    cells = {(r["saved"], r["as"], r["loaded"], r["to"]): f"{r['read']:.3f}" for r in found}
    for layout in LAYOUTS:
        for n in WORLDS:
            row = (cells[n, layout, after, to] for after, to in columns)
            lines += [f"| {n}, {layout} | {' | '.join(row)} |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="64MB", help="bytes of the state")
    given = parser.parse_args()
    size = parse_size(given.size)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=rank_of, args=(rank, port, folder, size, queue))
            for rank in range(max(WORLDS))
        ]
        for process in processes:
            process.start()
        found = queue.get(timeout=600)
        for process in processes:
            process.join()
    total = sum(4 * a * b for a, b in shapes(size).values())
    most = max(each["read"] for each in found)
    text = (
        f"`python -m benchmarks.resharding --size {given.size}`: {human_size(total)} of state. Bytes that "
        f"all ranks read, over the bytes of the state; at most {most:.3f}.\n\n{table(found)}\n"
    )
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.md").write_text(f"# Loading with another number of ranks\n\n{text}")
    (RESULTS / "results.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
