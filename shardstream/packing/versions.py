"""The versions of the packages that the bytes of one pack depend on."""

from __future__ import annotations

from shardstream.packing.engines import nodes
from shardstream.packing.job import Job

__all__ = ["versions"]

_ALWAYS = ("shardstream", "python", "zstandard", "zstd", "numpy", "msgspec")
_OF_FORMAT = dict.fromkeys(("parquet", "arrow", "hf"), ("pyarrow",))
_OF_OPTION = {"resize": ("pillow",), "chat_template": ("jinja2",)}
_OF_TOKENIZER = ("tokenizers", "tiktoken")


def versions(job: Job) -> dict[str, str]:
    """The version of each package that decides which bytes a pack writes, by the name of the package.

    What a process with other versions writes is sound, but it may not be the same.
    """
    options = job.source.options()
    names = [*_ALWAYS, *_OF_FORMAT.get(job.source.name, ())]
    for option, packages in _OF_OPTION.items():
        names += packages if options.get(option) is not None else ()
    names += _OF_TOKENIZER if job.tokenizer is not None else ()
    here = nodes.versions()
    return {name: here.get(name, "not installed") for name in names}
