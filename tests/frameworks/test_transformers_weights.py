"""Models of transformers: what it saves is what is loaded, and it loads what a checkpoint of ours holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import shardstream as ss


@pytest.fixture
def model() -> Any:
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(7)[None]).logits
    return found


def test_what_it_saves_is_loaded(tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.device("meta"):
        meta = transformers.LlamaForCausalLM(model.config)
    ours = transformers.LlamaForCausalLM(model.config).eval()
    assert ss.load_into(ours, tmp_path) == ([], [])  # tied weights have one name in the files
    assert torch.equal(logits(ours), logits(model))
    assert ss.load_into(meta, tmp_path) == ([], [])
    assert meta.lm_head.weight is meta.model.embed_tokens.weight
    # Without its own way to files.
    kind = transformers.AutoModelForCausalLM
    given = type(model).from_pretrained(None, config=model.config, state_dict=ss.load_weights(tmp_path))
    assert torch.equal(logits(given.eval()), logits(model))
    fetched = kind.from_pretrained(ss.fetch_weights(tmp_path, tmp_path / "cache"), dtype=torch.float32)
    assert torch.equal(logits(fetched.eval()), logits(model))


def test_it_loads_a_checkpoint(tmp_path: Path, model: Any) -> None:
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(3, {"model": model})
    saves.wait()
    [index] = tmp_path.glob("**/model.safetensors.index.json")
    model.config.save_pretrained(index.parent)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(index.parent, dtype=torch.float32).eval()
    assert torch.equal(logits(loaded), logits(model))
    again = transformers.LlamaForCausalLM(model.config).eval()
    assert ss.load_into(again, next(tmp_path.glob("step-3"), index.parent)) == ([], [])
    assert torch.equal(logits(again), logits(model))
