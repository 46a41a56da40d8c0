"""What stands between documents of tokens."""

from __future__ import annotations

import warnings
from typing import Literal

from shardstream.errors import OptionError

__all__ = ["NO_EOS", "Eos", "token_id"]

Eos = int | Literal["none"] | None
NO_EOS = (
    "no end of document: with a tokenizer and no eos, texts are glued together. Give eos, a token id, or "
    "eos='none' if that is meant; the next version will refuse to guess"
)


def token_id(eos: Eos, tokenizer: str | None, stacklevel: int) -> int | None:
    """The token id that ends each document, or None.

    Args:
        eos: The option. None is a warning if there is a tokenizer; "none" says that it is meant.
        tokenizer: The option, or None.
        stacklevel: Of the warning, as `warnings.warn` counts from here.

    Raises:
        OptionError: "none" without a tokenizer.
    """
    if eos != "none" and eos is not None:
        return eos
    if eos == "none" and tokenizer is None:
        raise OptionError("eos='none' needs a tokenizer: it says that documents of tokens have no end")
    if eos is None and tokenizer is not None:
        warnings.warn(NO_EOS, FutureWarning, stacklevel)
    return None
