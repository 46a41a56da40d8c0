"""shardstream checkpoint"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shardstream.cli import options
from shardstream.errors import OptionError, StateError

if TYPE_CHECKING:
    from shardstream.checkpoint.retention import Run


def checkpoint(
    url: Annotated[str, typer.Argument(help="The folder of the checkpoints, as ss.Checkpoints has it.")],
    action: Annotated[
        Literal["list", "show", "verify", "export", "prune"], typer.Argument(help="What to do.")
    ] = "list",
    dest: Annotated[
        str | None, typer.Argument(metavar="[DEST]", help="export: the folder or URL to write to.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which step; the newest by default.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="verify: all steps.")] = False,
    module: Annotated[str, typer.Option(help="export: the name of the module in the state.")] = "model",
    file_size: Annotated[str, typer.Option(help="export: bytes of a file.")] = "2GiB",
    keep: Annotated[int | None, typer.Option(help="prune: how many checkpoints stay.")] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """List checkpoints, show what is in one, verify or export it, or delete old ones. Torch is not needed.

    verify reads every byte; exit code 1: damaged, with a list of files and tensors. export writes a module as
    safetensors files with an index, as transformers and vLLM load them; shards are joined. prune also deletes
    attempts that were never committed and have had no new object for 24 hours.
    """
    from shardstream.checkpoint.retention import Run

    run = Run(url, options.storage_options(storage_option))
    if action == "list":
        _list(run, json)
    elif action == "show":
        _show(run, step, json)
    elif action == "verify":
        _verify(run, step, everything, json)
    elif action == "export":
        if dest is None:
            raise OptionError("DEST is missing: shardstream checkpoint URL export DEST")
        _export(run, step, dest, module, file_size, json)
    else:
        if keep is None:
            raise OptionError("--keep is missing: shardstream checkpoint URL prune --keep 3")
        _prune(run, keep, json)


def _list(run: Run, json: bool) -> None:
    from shardstream.checkpoint.inspection import listed
    from shardstream.format.sizes import human_size

    found = listed(run)
    if json:
        options.print_json([each._asdict() for each in found])
        return
    for each in found:
        what = (
            each.damage
            or f"{each.created}  {human_size(each.bytes)}, {each.tensors:,} tensors, {each.world:,} ranks  "
            f"{each.folder}"
        )
        print(f"step {each.step:>10}  {what}")
    print(f"{len(found):,} checkpoints")


def _show(run: Run, step: int | None, json: bool) -> None:
    from shardstream.checkpoint.inspection import described, manifest_at
    from shardstream.format.sizes import human_size

    found = described(manifest_at(run, step))
    if json:
        options.print_json(found)
        return
    print(f"step {found['step']}, committed {found['created']} by {found['tool']}, {found['world']:,} ranks")
    print(f"  {human_size(found['bytes'])} in {found['files']:,} files, attempt {found['attempt']}")
    for name, counts in found["tensors"].items():
        rest = {key: value for key, value in counts.items() if key not in ("tensors", "bytes", "sharded")}
        kinds = ", ".join(f"{value:,} {key}" for key, value in rest.items())
        sharded = f", {counts['sharded']:,} of them sharded" if counts["sharded"] else ""
        print(f"  {name}: {counts['tensors']:,} tensors, {human_size(counts['bytes'])} ({kinds}){sharded}")
    for name, place in found["data"].items():
        told = ", ".join(
            f"{key} {place[key]}" for key in ("epoch", "position", "fingerprint") if key in place
        )
        print(f"  {name}: {told or place}")
    for name, value in found["values"].items():
        if name not in found["data"]:
            text = str(value)
            print(f"  {name}: {text if len(text) <= 100 else text[:97] + '...'}")


def _verify(run: Run, step: int | None, everything: bool, json: bool) -> None:
    from shardstream.checkpoint.commit import committed_steps
    from shardstream.checkpoint.inspection import manifest_at, problems

    steps = (
        committed_steps(run.open()) if everything else [manifest_at(run, None).step if step is None else step]
    )
    if not steps:
        raise StateError(f"{run.open().url}: no checkpoint is committed here")
    found = {each: problems(run, each) for each in steps}
    damaged = [text for texts in found.values() for text in texts]
    if json:
        options.print_json({"sound": not damaged, "steps": found})
    else:
        for text in damaged:
            print(text)
        for each, texts in found.items():
            print(f"step {each}: {f'damaged, {len(texts):,} found' if texts else 'sound'}")
    if damaged:
        raise typer.Exit(1)


def _export(run: Run, step: int | None, dest: str, module: str, file_size: str, json: bool) -> None:
    from shardstream.checkpoint.export import export
    from shardstream.checkpoint.files import Files
    from shardstream.checkpoint.inspection import manifest_at
    from shardstream.checkpoint.layout import step_folder
    from shardstream.format.sizes import human_size, parse_size
    from shardstream.storage.store import Store

    manifest = manifest_at(run, step)
    files = Files(run.open(step_folder(manifest.step)), manifest)
    target = Store.open(dest, run.options)
    done = export(files, target, module, parse_size(file_size, "--file-size"))
    if json:
        options.print_json({"step": manifest.step, **done._asdict()})
        return
    what = f"{done.tensors:,} tensors, {human_size(done.bytes)}, in {len(done.files):,} files"
    print(f"step {manifest.step}: {what} at {target.url}")


def _prune(run: Run, keep: int, json: bool) -> None:
    from shardstream.checkpoint.retention import prune, sweep

    if keep < 1:
        raise OptionError(f"--keep {keep} must be 1 or more")
    found: dict[str, Any] = {"steps": prune(run, keep), "attempts": sweep(run)}
    if json:
        options.print_json(found)
        return
    print(f"deleted {len(found['steps']):,} checkpoints {found['steps'] or ''}".rstrip())
    for attempt in found["attempts"]:
        print(f"deleted {attempt}, which was never committed")
