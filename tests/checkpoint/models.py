"""Small models, optimizers and states that the tests of checkpoints save and load."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Model", "equal", "stepped", "trained"]


class Model(nn.Module):
    """A little of everything: tied weights, buffers, odd sizes, 0-d and empty parameters, several dtypes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(13, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.rand(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.rand(5, 3).to(torch.bfloat16), requires_grad=False)
        self.register_buffer("counts", torch.arange(7, dtype=torch.int16) + seed)
        self.register_buffer("mask", torch.rand(9) > 0.5)
        self.register_buffer("turned", torch.rand(4, 6).t())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(self.norm(x)) * self.scale + self.empty.sum()


def stepped(model: nn.Module, optim: torch.optim.Optimizer, steps: int = 1, seed: int = 0) -> None:
    """Train for so many steps on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optim.zero_grad()
        tokens = torch.randint(0, 13, (8,), generator=generator)
        nn.functional.cross_entropy(model(tokens), tokens).backward()
        optim.step()


def trained(seed: int = 0, steps: int = 3) -> tuple[Model, torch.optim.Optimizer]:
    """A model and its optimizer after so many steps."""
    model = Model(seed)
    optim = torch.optim.AdamW(model.parameters(), lr=0.01)
    stepped(model, optim, steps, seed)
    return model, optim


def equal(one: Any, other: Any) -> bool:
    """Whether two nested states are the same, bit by bit, types included."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other or (one != one and other != other))
