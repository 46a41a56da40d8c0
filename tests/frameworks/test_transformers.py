"""Hugging Face's Trainer: DDP, and its own checkpoints. Its models load what we have saved, as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import shardstream as ss
from shardstream.cli.app import run
from tests.frameworks.contract import GivenDirectly, Saves, SharedData


class TestTransformers(SharedData, GivenDirectly, Saves):
    script = "transformers_loop"

    @staticmethod
    def kills(length: int) -> list[tuple[int, int]]:
        # And at the end of an epoch: the Trainer takes an epoch without a batch for the end of the data.
        return [(length - 3, length - 1), (length, length + 2)]


SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_layer": 2, "n_embd": 32, "n_head": 2},  # with tied weights
    "Llama": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "kind"), [("GPT2", "GPT2LMHeadModel"), ("Llama", "LlamaForCausalLM")])
def test_a_checkpoint_is_what_from_pretrained_loads(tmp_path: Path, name: str, kind: str) -> None:
    config = getattr(transformers, f"{name}Config")(vocab_size=101, **SIZES[name])
    model = getattr(transformers, kind)(config)
    optim = torch.optim.AdamW(model.parameters())
    tokens = torch.arange(10)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optim.step()
    saves = ss.Checkpoints(str(tmp_path / "run"))
    saves.save(1, {"model": model, "optim": optim})
    saves.wait()
    assert run(["checkpoint", str(tmp_path / "run"), "export", str(tmp_path / "exported")]) == 0
    for folder in (saves.folder(1), str(tmp_path / "exported")):
        loaded, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not any(told.values())
        mine, theirs = model.state_dict(), loaded.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_weights_of_a_real_model() -> None:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.submodule_search_locations
    [file] = Path(spec.submodule_search_locations[0]).glob("data/*.safetensors")
    mine, theirs = ss.load_weights(str(file)), load_file(file)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
