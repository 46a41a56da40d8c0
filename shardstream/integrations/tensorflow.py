"""TensorFlow: a loader as a tf.data.Dataset of whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shardstream.dataset import OrderedDataset
from shardstream.dataset.arguments import Last
from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.loader import LoaderOptions, StreamingLoader
from shardstream.read.samples.batch import Ragged

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["to_tf"]

Values = dict[str, Any]


class _Options(LoaderOptions, total=False):
    last: Last
    collate: Callable[[list[Any]], Any] | None


def to_tf(
    source: StreamingLoader[Any] | OrderedDataset[Any],
    batch_size: int | None = None,
    *,
    replicas: int = 1,
    **options: Unpack[_Options],
) -> Any:
    """A tf.data.Dataset of the batches of a StreamingLoader; iterating it again is the next epoch.

    A batch is a dict: tensors as they are, bytes and str as tf.string [B]. Numbers have the same dtype.

    tf.data reads ahead of the training loop. So do not save `loader.state_dict()`, but
    `position.after(loader, start, steps)`: `start` is the loader's state before the loop, and `steps` are the
    batches that were trained on since.

    Args:
        source: A loader, or a dataset of which a loader is made.
        batch_size: Of the loader that is made.
        replicas: Cut each batch into so many of equal size, for a strategy whose replicas take turns: all of
            them then see the same number of batches. The batch size must be a multiple of it.
        options: Of the loader that is made; see `StreamingLoader`.

    Returns:
        A tf.data.Dataset.

    Raises:
        OptionError: The options do not fit together, or a batch has something that TensorFlow does not know.
    """
    import tensorflow as tf

    loader = _loader(source, batch_size, options)
    replicas = whole_number("replicas", replicas, 1)
    if loader.batch_size % replicas or (replicas > 1 and loader.last == "short"):
        raise OptionError(
            f"a batch of {loader.batch_size} with last={loader.last!r} does not divide among "
            f"replicas={replicas}: use a multiple, and last='drop' or 'pad'"
        )

    def batches() -> Iterator[Values]:
        for batch in loader:
            values = {name: _array(name, value) for name, value in batch.items()}
            for part in range(replicas):
                # Rows part, part + replicas, ...: the positions that a rank of its own would have.
                yield {name: value[part::replicas] for name, value in values.items()}

    signature = {name: _spec(tf, value) for name, value in _first(loader).items()}
    found = tf.data.Dataset.from_generator(batches, output_signature=signature)
    # Distributed strategies shard a dataset that they are given; this one is sharded.
    off = tf.data.Options()
    off.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return found.with_options(off)


def _loader(
    source: StreamingLoader[Any] | OrderedDataset[Any], batch_size: int | None, options: Mapping[str, Any]
) -> StreamingLoader:
    if isinstance(source, StreamingLoader):
        if batch_size is not None or options:
            raise OptionError("a StreamingLoader has its batch_size and options already: leave them out here")
        return source
    if batch_size is None:
        raise OptionError("batch_size is missing: give it, or a StreamingLoader instead of a dataset")
    return StreamingLoader(source, batch_size, **options)


def _first(loader: StreamingLoader) -> Values:
    """A batch, for its fields, dtypes and shapes; the loader is then at the same place as before."""
    state = loader.state_dict()
    loader.load_state_dict({**state, "position": 0})
    try:
        batches = iter(loader)
        batch = next(batches, None)
        del batches
    finally:
        loader.load_state_dict(state)
    if not isinstance(batch, dict):
        raise OptionError(
            f"an epoch of {loader.ds.url} begins with {type(batch).__name__}, not with a batch that is a dict"
        )
    return {name: _array(name, value) for name, value in batch.items()}


def _array(name: str, value: Any) -> Any:
    """A column as numpy knows it; bytes and str as objects, which TensorFlow takes for strings."""
    if isinstance(value, (Ragged, list)):
        wrong = next((one for one in value if not isinstance(one, (bytes, str))), b"")
        if not isinstance(wrong, (bytes, str)):
            raise OptionError(
                f"field {name!r} has a {type(wrong).__name__} in a batch that is no tensor; a "
                f"tf.data.Dataset has tensors and strings alone: choose fields=, "
                f"or make values of one shape with transform="
            )
        column = np.empty(len(value), object)
        column[:] = list(value)
        return column
    return np.asarray(value)


def _spec(tf: Any, column: Any) -> Any:
    dtype = tf.string if column.dtype == object else tf.as_dtype(column.dtype)
    return tf.TensorSpec((None, *column.shape[1:]), dtype)
