"""How fast do weights become tensors: from a local file, from an object store 20 ms away, a rank's slice?

    python -m benchmarks.weights --out DIR [--size 0.6] [--rounds 5] [--peers PYTHON] [--only local]

A model of random bfloat16 numbers is made, shaped like Llama. Every load is a process of its own; rounds go
through all contenders in turn. Time runs from the call to the last tensor; imports are not in it. Every
contender tells a checksum of what it has loaded, which must be the same. Memory is the peak above that of a
process with everything imported. `--peers` is a Python with runai-model-streamer, fastsafetensors and
s3torchconnector; a contender that fails is shown as failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

LATENCY = 0.02
RANKS = 8
LOCAL = (
    "raw preadv", "ours", "ours, checksums", "ours to float32", "safetensors + copy",
    "safetensors to float32",
    "safetensors from bytes", "torch.load", "runai", "fastsafetensors",
)  # fmt: skip
STORE = ("bare obstore", "ours", "ours, checksums", "fetch + safetensors", "runai", "s3torchconnector")
PEERS = ("runai", "fastsafetensors", "s3torchconnector")
BLOCK = 8 << 20
PRELOAD = (
    "numpy", "torch", "safetensors.torch", "fsspec.asyn", "shardstream.weights.fetch",
    "shardstream.weights.load", "shardstream.weights.tensors",
)  # fmt: skip


def raw(folder: str, where: dict[str, Any]) -> Any:
    """The bytes of the file by four threads into one buffer: what the machine can do."""
    import torch

    path = f"{folder}/model.safetensors"
    size = os.path.getsize(path)
    room = torch.empty(size, dtype=torch.uint8)
    view = room.numpy().data
    file = os.open(path, os.O_RDONLY)

    def read(at: int, end: int) -> None:
        while at < end:
            at += os.preadv(file, [view[at : min(end, at + BLOCK)]], at)

    part = -(-size // 4)
    threads = [
        threading.Thread(target=read, args=(number * part, min(size, (number + 1) * part)))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return room


def bare_obstore(folder: str, where: dict[str, Any]) -> Any:
    """The bytes of the object by obstore's own call, 16 ranges at a time."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore
    import torch

    store = _obstore(where)
    size = obstore.head(store, "model.safetensors")["size"]
    room = torch.empty(size, dtype=torch.uint8)
    view = room.numpy().data

    def read(start: int) -> None:
        end = min(size, start + BLOCK)
        view[start:end] = memoryview(obstore.get_range(store, "model.safetensors", start=start, end=end))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(0, size, BLOCK)))
    return room


def _obstore(where: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    bucket, _, prefix = where["url"].removeprefix("s3://").partition("/")
    return S3Store(
        bucket, prefix=prefix, client_options={"allow_http": True},
        config={
            "access_key_id": where["key"], "secret_access_key": where["secret"],
            "endpoint": where["endpoint"], "region": "us-east-1",
        },
    )  # fmt: skip


def _options(where: dict[str, Any]) -> dict[str, Any] | None:
    if not where:
        return None
    return {"key": where["key"], "secret": where["secret"], "endpoint_url": where["endpoint"]}


def ours(folder: str, where: dict[str, Any]) -> Any:
    import shardstream as ss

    return ss.load_weights(where.get("url") or f"{folder}/model.safetensors", storage_options=_options(where))


def ours_checked(folder: str, where: dict[str, Any]) -> Any:
    import shardstream as ss

    return ss.load_weights(where.get("url") or folder, storage_options=_options(where))


def ours_float(folder: str, where: dict[str, Any]) -> Any:
    import torch

    import shardstream as ss

    return ss.load_weights(f"{folder}/model.safetensors", dtype=torch.float32)


def safetensors_copy(folder: str, where: dict[str, Any]) -> Any:
    """As models get their weights: mapped, and copied into the parameters."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


def safetensors_float(folder: str, where: dict[str, Any]) -> Any:
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


def safetensors_bytes(folder: str, where: dict[str, Any]) -> Any:
    from safetensors.torch import load

    return load(Path(f"{folder}/model.safetensors").read_bytes())


def torch_load(folder: str, where: dict[str, Any]) -> Any:
    import torch

    return torch.load(f"{folder}/model.pt", weights_only=True)


def runai(folder: str, where: dict[str, Any]) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    if where:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": where["key"], "AWS_SECRET_ACCESS_KEY": where["secret"],
            "AWS_ENDPOINT_URL": where["endpoint"], "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(f"{where.get('url') or folder}/model.safetensors")
        return {name: tensor.clone() for name, tensor in streamer.get_tensors()}


def fastsafetensors(folder: str, where: dict[str, Any]) -> Any:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(filenames=[f"{folder}/model.safetensors"], nogds=True, device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict


def s3torchconnector(folder: str, where: dict[str, Any]) -> Any:
    from s3torchconnector import S3Checkpoint, S3ClientConfig
    from safetensors.torch import load

    os.environ |= {"AWS_ACCESS_KEY_ID": where["key"], "AWS_SECRET_ACCESS_KEY": where["secret"]}
    checkpoint = S3Checkpoint(
        region="us-east-1", endpoint=where["endpoint"], s3client_config=S3ClientConfig(force_path_style=True)
    )
    with checkpoint.reader(f"{where['url']}/model.safetensors") as reader:
        return load(reader.read())


def fetch_load(folder: str, where: dict[str, Any]) -> Any:
    """Our download to a disk, and safetensors from there."""
    from safetensors.torch import load_file

    import shardstream as ss

    path = ss.fetch_weights(where["url"], where["cache"], storage_options=_options(where))
    return {name: tensor.clone() for name, tensor in load_file(f"{path}/model.safetensors").items()}


LOADS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "raw preadv": raw, "bare obstore": bare_obstore, "ours": ours, "ours, checksums": ours_checked,
    "ours to float32": ours_float, "safetensors + copy": safetensors_copy,
    "safetensors to float32": safetensors_float, "safetensors from bytes": safetensors_bytes,
    "torch.load": torch_load, "runai": runai, "fastsafetensors": fastsafetensors,
    "s3torchconnector": s3torchconnector, "fetch + safetensors": fetch_load,
}  # fmt: skip


def child(name: str, folder: str, where: dict[str, Any]) -> dict[str, Any]:
    """One load in this process; what it took."""
    import numpy  # noqa: F401 - imports are not measured
    import safetensors.torch  # noqa: F401
    import torch

    if name == "slice":
        return slice_of_rank(where)
    if "ours" in name or "fetch" in name:
        import shardstream.weights.fetch
        import shardstream.weights.load
        import shardstream.weights.tensors  # noqa: F401
    if where:
        import obstore.store  # noqa: F401
    memory = _peak()
    cpu, started = time.process_time(), time.perf_counter()
    found = LOADS[name](folder, where)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = _peak() - memory
    total = 0
    if isinstance(found, dict):
        total = sum(int(tensor.to(torch.bfloat16).view(torch.int16).sum()) for tensor in found.values())
    return {"seconds": seconds, "cpu": cpu, "memory": memory, "sum": total}


def _peak() -> int:
    """The largest resident set of this process in bytes; getrusage would count that of the parent, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def slice_of_rank(where: dict[str, Any]) -> dict[str, Any]:
    """What rank 3 of 8 loads of a model whose parameters are sharded on dimension 0."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import shardstream as ss
    from shardstream.weights.catalog import open_catalog

    dist.init_process_group("fake", rank=3, world_size=RANKS, store=FakeStore())
    mesh = init_device_mesh("cpu", (RANKS,))
    model = torch.nn.Module()
    catalog = open_catalog(where["url"], _options(where))
    for name, info in catalog.tensors.items():
        owner = model
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        whole = torch.empty(info.shape, dtype=torch.bfloat16, device="meta")
        owner.register_parameter(leaf, torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)])))
    started = time.perf_counter()
    ss.load_into(model, where["url"], device="cpu", storage_options=_options(where))
    return {"seconds": time.perf_counter() - started}


def make_model(folder: Path, size: float) -> int:
    """A model like Llama of about `size` GB; returns its bytes."""
    import torch
    from safetensors.torch import save_file

    from shardstream.weights.check import verify_weights

    width, inner, vocab = 1024, 4096, 32_000
    layer = (2 * width * width + width * width // 2 + 3 * inner * width) * 2
    layers = max(1, int((size * 1e9 - vocab * width * 2) / layer))

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(torch.bfloat16)

    torch.manual_seed(0)
    state = {"model.embed.weight": numbers(vocab, width)}
    for number in range(layers):
        shapes = {
            "q": (width, width), "k": (width // 4, width), "v": (width // 4, width), "o": (width, width),
            "gate": (inner, width), "up": (inner, width), "down": (width, inner), "norm": (width,),
        }  # fmt: skip
        state |= {f"model.layers.{number}.{name}.weight": numbers(*shape) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "model.pt")
    verify_weights(str(folder), record=True)
    return (folder / "model.safetensors").stat().st_size


def run(python: str, name: str, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    """One load in a process of its own; of ours a fork of one that has imported everything."""
    if python == sys.executable:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_forked, args=(sender, name, str(folder), where))
        process.start()
        sender.close()
        try:
            return receiver.recv()  # type: ignore[no-any-return]
        except EOFError:
            return {"failed": "it has ended without an answer"}
        finally:
            process.join()
    arguments = json.dumps({"name": name, "folder": str(folder), "where": where})
    done = subprocess.run(
        [python, "-m", "benchmarks.weights", "--child", arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _forked(sender: Any, name: str, folder: str, where: dict[str, Any]) -> None:
    try:
        sender.send(child(name, folder, where))
    except Exception as error:  # noqa: BLE001 - it is shown in the table
        sender.send({"failed": f"{type(error).__name__}: {error}"[:200]})


def make_cold(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def table(title: str, rounds: list[dict[str, dict[str, Any]]], size: int, ceiling: str) -> list[str]:
    """Medians with the least and the largest; ratios are taken within rounds."""
    lines = [
        f"### {title}", "", f"| | s | x {ceiling} | CPU s/GB | memory x model |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name in rounds[0]:
        good = [each for each in rounds if "failed" not in each[name]]
        if not good:
            lines.append(f"| {name} | failed: {rounds[0][name]['failed']} | | | |")
            continue
        seconds = [each[name]["seconds"] for each in good]
        ratios = [each[name]["seconds"] / each[ceiling]["seconds"] for each in good]
        cpu = statistics.median(each[name]["cpu"] for each in good) / size * 1e9
        memory = statistics.median(each[name]["memory"] for each in good) / size
        lines.append(f"| {name} | {_spread(seconds)} | {_spread(ratios)} | {cpu:.2f} | {memory:.2f} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def measure(options: argparse.Namespace) -> None:
    """Measure all questions, and write the results."""
    folder = Path(tempfile.gettempdir()) / f"weights-{options.size}"
    if not (folder / "model.pt").exists():
        make_model(folder, options.size)
    size = (folder / "model.safetensors").stat().st_size
    python = dict.fromkeys(PEERS, options.peers or sys.executable)
    lines = [
        f"Model: {size / 1e9:.2f} GB, {options.rounds} rounds; load average {os.getloadavg()[0]:.1f}.",
        "",
    ]
    results: dict[str, Any] = {"bytes": size}

    def turns(
        key: str, title: str, names: tuple[str, ...], ceiling: str, before: Callable[[], dict[str, Any]]
    ) -> None:
        if options.only and key not in options.only:
            return
        names = tuple(name for name in names if options.peers or name not in PEERS)
        rounds = []
        for number in range(options.rounds + 1):
            found = {name: run(python.get(name, sys.executable), name, folder, before()) for name in names}
            sums = {each["sum"] for each in found.values() if each.get("sum")}
            assert len(sums) <= 1, f"contenders have loaded other numbers: {found}"
            if number:  # the first one warms up
                rounds.append(found)
            print(
                key,
                number,
                {name: round(each.get("seconds", -1), 3) for name, each in found.items()},
                flush=True,
            )
        results[key] = rounds
        lines.extend(table(title, rounds, size, ceiling))

    turns("local", "A local file in the page cache", LOCAL, "raw preadv", dict)

    def cold() -> dict[str, Any]:
        make_cold(folder)
        return {}

    turns("cold", "A local file that is not in the page cache", LOCAL, "raw preadv", cold)
    if not options.only or {"store", "slice", "machine"} & set(options.only):
        _measure_store(options, folder, size, turns, lines, results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "weights.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "weights.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def _measure_store(
    options: argparse.Namespace,
    folder: Path,
    size: int,
    turns: Callable[..., None],
    lines: list[str],
    results: dict[str, Any],
) -> None:
    from benchmarks.store import Remote

    data = Path(tempfile.mkdtemp(prefix="weights-store-"))
    with Remote(data) as remote:
        ready = lambda: remote.ready(str(folder), LATENCY)  # noqa: E731
        turns("store", f"S3, {LATENCY * 1000:.0f} ms", STORE, "bare obstore", ready)
        if not options.only or "slice" in options.only:
            where = ready()
            found = run(sys.executable, "slice", folder, where)
            passed = remote.passed()
            results["slice"] = found | passed
            share = passed["body_bytes"] / size
            lines += [f"Rank 3 of {RANKS}, Shard(0): {share:.4f} of the file's bytes came: {found}", ""]
        if not options.only or "machine" in options.only:
            where = ready()
            arguments = json.dumps({"name": "fetch + safetensors", "folder": str(folder), "where": where})
            command = [sys.executable, "-m", "benchmarks.weights", "--child", arguments]
            started = time.perf_counter()
            ranks = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(RANKS)]
            codes = [rank.wait(600) for rank in ranks]
            seconds, passed = time.perf_counter() - started, remote.passed()
            results["machine"] = {"seconds": seconds, "codes": codes} | passed
            share = passed["body_bytes"] / size
            lines += [
                f"{RANKS} processes of one machine: {share:.4f} of the file's bytes came; {seconds:.1f} s",
                "",
            ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", type=float, default=0.6, help="GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["local", "cold", "store", "slice", "machine"])
    parser.add_argument("--peers", help="the Python of the peers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(**json.loads(options.child))))
    elif options.out is None:
        parser.error("--out is missing")
    else:
        measure(options)


if __name__ == "__main__":
    main()
