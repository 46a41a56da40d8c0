"""tf.data over TFRecord files of tf.train.Example, interleaved, shuffled and prefetched as in its guides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import torch

from benchmarks.corpora import Corpus, document_payload, image_payload
from benchmarks.peers.common import Options, expected, samples, token_payloads
from benchmarks.peers.records import stored

__all__ = ["PACKAGES", "count", "expected", "loader", "payloads", "write"]
PACKAGES = ("tensorflow-cpu",)
_FILES = 16
_BUFFER = 1000  # samples that are shuffled


def _bytes(data: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))


def _int(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _features(corpus: Corpus) -> Iterator[dict[str, tf.train.Feature]]:
    if corpus.kind == "tokens":  # as bytes, which need no decoding of numbers of many lengths
        for row in corpus.rows():
            yield {"tokens": _bytes(row.astype(stored(corpus)).tobytes())}
    elif corpus.kind == "documents":
        for row in samples(corpus):
            yield {
                "id": _bytes(row["id"].encode()),
                "text": _bytes(row["text"].encode()),
                "bytes": _int(row["bytes"]),
            }
    else:
        for row in samples(corpus):
            yield {"image": _bytes(row["image"]), "label": _int(row["label"])}


def write(corpus: Corpus, dest: str, options: Options) -> None:
    """`TFRecordWriter`, samples dealt out to several files."""
    os.makedirs(dest)
    writers = [tf.io.TFRecordWriter(f"{dest}/{number:05d}.tfrecord") for number in range(_FILES)]
    for number, features in enumerate(_features(corpus)):
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writers[number % _FILES].write(example.SerializeToString())
    for writer in writers:
        writer.close()


def loader(corpus: Corpus, dest: str, options: Options) -> Any:
    """A tf.data.Dataset of batches, whose examples are parsed a batch at a time; arrays as numpy has them."""
    text, number = tf.io.FixedLenFeature([], tf.string), tf.io.FixedLenFeature([], tf.int64)
    wanted = {
        "tokens": {"tokens": text},
        "documents": {"id": text, "text": text, "bytes": number},
        "images": {"image": text, "label": number},
    }[corpus.kind]

    def parse(records: Any) -> Any:
        found = tf.io.parse_example(records, wanted)
        if corpus.kind == "tokens":
            kind = tf.int32 if corpus.dtype == "uint32" else tf.uint16
            length = corpus.block * stored(corpus).itemsize
            found["tokens"] = tf.io.decode_raw(found["tokens"], kind, fixed_length=length)
        return found

    files = tf.data.Dataset.list_files(f"{dest}/*.tfrecord", shuffle=True, seed=1)
    made = (
        files.interleave(tf.data.TFRecordDataset, cycle_length=_FILES, num_parallel_calls=tf.data.AUTOTUNE)
        .shuffle(_BUFFER, seed=1)
        .batch(options["batch"])
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    return _Numpy(made)


class _Numpy:
    """Arrays of numpy: of tokens as a tensor of torch in the same memory."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._made.as_numpy_iterator():
            if "tokens" in batch:
                # The array must not be written to; to copy it is what a training script does, too.
                batch["tokens"] = torch.from_numpy(np.array(batch["tokens"]))
            yield batch


def count(batch: Any) -> int:
    """The samples of a dict of arrays."""
    return len(next(iter(batch.values())))


def views(batch: Any) -> Any:
    """The JPEGs of a batch."""
    return batch["image"]


def payloads(corpus: Corpus, batch: Any) -> Iterator[bytes]:
    """Of each row; texts come as bytes of UTF-8, which TensorFlow does not decode."""
    if corpus.kind == "tokens":
        yield from token_payloads(corpus, batch["tokens"])
    elif corpus.kind == "documents":
        for key, text in zip(batch["id"], batch["text"], strict=True):
            yield document_payload(key.decode(), text.decode())
    else:
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            yield image_payload(image, label)
