"""Tokenizers: text to arrays of token ids."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import OptionError, SourceError, require

# The splitting pattern that tiktoken publishes for cl100k_base. Files of ranks do not contain a pattern.
_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
Tokens = NDArray[Any]


class Tokenizer:
    """Turns texts into token ids. Its pickle is its specification, from which it is loaded again.

    Args:
        spec: What `load_tokenizer` was given.
        name: The name of the tokenizer, for messages and for the manifest.
        fingerprint: A checksum of its content, by which a change is noticed.
        vocab_size: How many token ids there are.
    """

    def __init__(self, spec: str, name: str, fingerprint: str, vocab_size: int) -> None:
        self.spec = spec
        self.name = name
        self.fingerprint = fingerprint
        self.vocab_size = vocab_size

    def dtype(self, eos: int | None = None) -> np.dtype[Any]:
        """uint16 if all token ids and `eos` fit into it, else uint32.

        Raises:
            OptionError: `eos` is negative, or a token id does not fit into 32 bits.
        """
        if eos is not None and eos < 0:
            raise OptionError(f"eos={eos} must be a token id, at least 0")
        largest = max(self.vocab_size - 1, eos or 0)
        if largest >= 1 << 32:
            raise OptionError(f"token id {largest} does not fit 32 bits")
        return np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """The token ids of each text. No special tokens are added."""
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Bytes that are no text become replacement characters."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.spec, self.fingerprint)


class _Bytes(Tokenizer):
    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


class _Json(Tokenizer):
    def __init__(self, spec: str, path: str) -> None:
        module = require("tokenizers", "tokenize")
        content = _content(path)
        try:
            self._engine = module.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise OptionError(f"{path} is not a tokenizers JSON file: {error}") from error
        # A file may ask for truncation and padding. Both would change the tokens that are stored.
        self._engine.no_truncation()
        self._engine.no_padding()
        size = max(self._engine.get_vocab().values(), default=-1) + 1
        super().__init__(spec, os.path.basename(path), hashlib.sha256(content).hexdigest(), size)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        dtype = self.dtype()
        try:
            found = self._engine.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise SourceError(f"the tokenizer {self.name} cannot encode a text: {error}") from error
        return [np.array(encoding.ids, dtype) for encoding in found]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._engine.decode(list(tokens), skip_special_tokens=False))


class _Tiktoken(Tokenizer):
    def __init__(self, spec: str, engine: Any, fingerprint: str) -> None:
        self._engine = engine
        super().__init__(spec, engine.name, fingerprint, engine.n_vocab)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        dtype = self.dtype()
        return [np.array(self._engine.encode_ordinary(text), dtype) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._engine.decode([token for token in tokens if token < self.vocab_size]))


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a specification.

    Args:
        spec: "bytes", a tokenizers .json file, a .tiktoken file or the name of an encoding of tiktoken.

    Raises:
        OptionError: There is no such tokenizer, or its file is damaged.
        MissingExtraError: The package for it is not installed.
    """
    if spec == "bytes":
        return _Bytes(spec, spec, hashlib.sha256(b"bytes").hexdigest(), 256)
    if spec.endswith(".json"):
        return _Json(spec, spec)
    if spec.endswith(".tiktoken"):
        return _ranks(spec)
    return _named(spec)


def _reload(spec: str, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(spec)
    if tokenizer.fingerprint != fingerprint:
        raise OptionError(f"tokenizer {spec} has changed since packing began; pack again")
    return tokenizer


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise OptionError(f"tokenizer {path}: {error.strerror}") from error


def _ranks(path: str) -> Tokenizer:
    tiktoken = require("tiktoken", "tokenize")
    content = _content(path)
    # The file is read here: the loader of tiktoken has a cache by path, and would miss a change of the file.
    try:
        pairs = [line.split() for line in content.splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        name = os.path.basename(path)
        # tiktoken panics if a rank occurs twice, or later, at a text with a byte that has no rank.
        if len(set(ranks.values())) != len(ranks) or any(bytes([n]) not in ranks for n in range(256)):
            raise ValueError("it needs all 256 single bytes, and no rank twice")
        engine = tiktoken.Encoding(name, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
    except Exception as error:
        raise OptionError(f"{path} is not a tiktoken ranks file: {error}") from error
    return _Tiktoken(path, engine, hashlib.sha256(_PATTERN.encode() + b"\0" + content).hexdigest())


def _named(name: str) -> Tokenizer:
    tiktoken = require("tiktoken", "tokenize")
    if name not in tiktoken.list_encoding_names():
        raise OptionError(
            f"unknown tokenizer {name!r}: give bytes, a tokenizers .json file, a .tiktoken file or "
            f"one of {', '.join(sorted(tiktoken.list_encoding_names()))}"
        )
    try:
        engine = tiktoken.get_encoding(name)
    except Exception as error:  # requests raises what it likes
        raise OptionError(
            f"tiktoken cannot fetch {name!r} ({type(error).__name__}); give a ranks file (*.tiktoken)"
        ) from error
    digest = hashlib.sha256(name.encode())
    for token in engine.token_byte_values():
        digest.update(b"%d " % engine.encode_single_token(token) + token + b"\n")
    return _Tiktoken(name, engine, digest.hexdigest())
