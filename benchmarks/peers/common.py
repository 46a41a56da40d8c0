"""What adapters share. An adapter is a module with

PACKAGES    distributions whose versions are reported
write(corpus, dest, options)        make the contender's own dataset at `dest`
open(corpus, dest, options)         an iterable whose every iteration is a shuffled epoch of batches
count(batch)                        its samples
payloads(corpus, batch)             the bytes that arrived, for the digest
expected(corpus, dest, options)     what the digest of an epoch must be
state(corpus, dest, options, fraction)      optional: the state after that part of an epoch
resume(corpus, dest, options, state)        optional: as `loader`, from that state

options: batch, workers, and codec or whatever else a question gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.corpora import Corpus, document_payload, image_payload

Options = dict[str, Any]


def same(batch: Any) -> Any:
    """A collate function for samples of different sizes: the list itself."""
    return batch


def count(batch: Any) -> int:
    """The samples of a list or a tensor."""
    return len(batch)


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """For batches of rows of tokens, or of dicts with id and text, or image and label."""
    if corpus.kind == "tokens":
        yield from token_payloads(corpus, batch)
    elif corpus.kind == "documents":
        for row in batch:
            yield document_payload(row["id"], row["text"])
    else:
        for row in batch:
            yield image_payload(row["image"], row["label"])


def token_payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """The rows of a tensor in the corpus's dtype."""
    # uint16 tensors have few operations: to int64 first.
    for row in batch.long().numpy().astype(corpus.dtype):
        yield row.tobytes()


def expected(corpus: Corpus, dest: str, options: Options) -> dict[str, Any]:
    """The corpus as it is."""
    return {"count": corpus.count, "bytes": corpus.bytes, "digest": corpus.digest}


def samples(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Documents or images as dicts."""
    if corpus.kind == "documents":
        yield from corpus.documents()
    else:
        for path, label in corpus.images():
            with open(path, "rb") as file:
                yield {"image": file.read(), "label": label}
