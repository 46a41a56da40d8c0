"""The versions of the packages that the bytes of a dataset depend on."""

from __future__ import annotations

import importlib.metadata

from shardstream.packing.job import Job
from shardstream.version import __version__

__all__ = ["versions"]

_ALWAYS = ("zstandard", "numpy", "msgspec")
_OF_FORMAT = dict.fromkeys(("parquet", "arrow", "hf"), ("pyarrow",))
_OF_OPTION = {"resize": ("pillow",), "chat_template": ("jinja2",)}
_OF_TOKENIZER = ("tokenizers", "tiktoken")


def versions(job: Job) -> dict[str, str]:
    """The version of each package that decides which bytes a pack writes, by the name of the package.

    What a process with other versions writes is sound, but it may not be the same.
    """
    import zstandard

    options = job.source.options()
    names = [*_ALWAYS, *_OF_FORMAT.get(job.source.name, ())]
    for option, packages in _OF_OPTION.items():
        names += packages if options.get(option) is not None else ()
    names += _OF_TOKENIZER if job.tokenizer is not None else ()
    library = ".".join(map(str, zstandard.ZSTD_VERSION))
    found = {name: _version(name) for name in names}
    return {"shardstream": __version__, **found, "the zstd library": library}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
