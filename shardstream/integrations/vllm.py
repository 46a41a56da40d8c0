"""vLLM: `--load-format shardstream` reads the weights of a model from any URL, checked, by many requests."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from shardstream.errors import OptionError
from shardstream.weights.fetch import fetch_weights
from shardstream.weights.load import stream_weights

__all__ = ["FORMAT", "WeightsLoader", "register"]

FORMAT = "shardstream"


def register() -> None:
    """Make the load format known: the entry point that vLLM calls in each of its processes."""
    register_model_loader(FORMAT)(WeightsLoader)


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    """What `--model-loader-extra-config` may say.

    Args:
        url: Where the weights are, see `load_weights`; None: where the model is.
        cache: See `load_weights`; None: they are not kept on this machine.
        memory: See `stream_weights`.
        storage_options: For the store.
    """

    url: str | None = None
    cache: str | None = None
    memory: str | int = "512MiB"
    storage_options: dict[str, Any] | None = None


class WeightsLoader(DefaultModelLoader):
    """vLLM's own loader, with tensors from `stream_weights`.

    A tensor is read whole by every rank, since vLLM cuts it. Experts that belong to other ranks, and tensors
    that a model says it has no use for, are not read.

    Args:
        load_config: Of vLLM. Its `model_loader_extra_config` may have "url", "cache", "memory" and
            "storage_options".

    Raises:
        OptionError: It has something else.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        plain = copy.copy(load_config)
        # vLLM's loader refuses what it does not know. It reads what a model is made of besides.
        plain.model_loader_extra_config, plain.load_format = {}, "hf"
        super().__init__(plain)
        try:
            self._ours = msgspec.convert(load_config.model_loader_extra_config or {}, _Options)
        except msgspec.ValidationError as error:
            raise OptionError(
                f"model_loader_extra_config={load_config.model_loader_extra_config!r}: {error}: "
                "it may have url, cache, memory and storage_options"
            ) from error

    def download_model(self, model_config: ModelConfig) -> None:
        """Fetch the weights to the cache, if there is one; otherwise they are read when they are needed.

        Args:
            model_config: Of vLLM.

        Raises:
            CorruptionError, OptionError, StorageError: As `fetch_weights`.
        """
        if self._ours.cache is not None:
            options = self._ours.storage_options
            fetch_weights(self._url(model_config), self._ours.cache, storage_options=options)

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the model, and of others that it is made of, on the CPU.

        Args:
            model_config: Of vLLM.
            model: It may say which tensors it has no use for, and where more of them are.

        Yields:
            (name, tensor) pairs.

        Raises:
            CorruptionError, OptionError, StorageError: As `stream_weights`.
        """
        if self.load_config.safetensors_load_strategy == "torchao":
            raise OptionError("load_format=shardstream: files of torchao are for vLLM's own loader")
        if getattr(model, "allow_patterns_overrides", None):
            raise OptionError(
                f"load_format=shardstream: {type(model).__name__} wants files of a pattern of its own: "
                "use vLLM's own loader, with the folder of fetch_weights"
            )
        self.counter_before_loading_weights = time.perf_counter()  # vLLM's log says how long it took
        unused = getattr(model, "is_unused_checkpoint_weight", None)
        yield from self._stream(self._url(model_config), unused)
        for source in getattr(model, "secondary_weights", ()):
            yield from self._get_weights_iterator(source)  # vLLM's own: of patterns, and perhaps pickles

    def _url(self, model_config: ModelConfig) -> str:
        url = self._ours.url
        if url is not None and model_config.runner_type == "draft":
            raise OptionError(
                f"load_format=shardstream: {url} is the place of the model, and there is a draft of it, too: "
                "leave url out, and serve the folders that fetch_weights gives"
            )
        model: str = url or model_config.model_weights or model_config.model
        if "://" in model or os.path.exists(model):
            return model
        return f"hf://{model}" + ("" if model_config.revision is None else f"@{model_config.revision}")

    def _stream(self, url: str, unused: Callable[[str], bool] | None) -> Iterator[tuple[str, torch.Tensor]]:
        def wanted(name: str) -> bool:
            return not (unused is not None and unused(name)) and not should_skip_weight(
                name, self.local_expert_ids
            )

        ours = self._ours
        return stream_weights(
            url, wanted, memory=ours.memory, cache=ours.cache, storage_options=ours.storage_options
        )
