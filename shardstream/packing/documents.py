"""Documents of token ids from what a program gives: ids, or texts for a tokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shardstream.errors import OptionError
from shardstream.format.columns import NO_COLUMNS, ColumnValue
from shardstream.packing.columns import check_scalars, columns_of_sample
from shardstream.packing.sources.base import Reject, Sample
from shardstream.packing.sources.calls import sample_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from shardstream.format.manifest import Manifest
    from shardstream.packing.tokenize import Tokenizer

__all__ = ["Document", "Documents"]

Dtype = Literal["uint16", "uint32"]
_BATCH = 64  # texts that are tokenized together
_IDS = ("tokens", "input_ids")
_TEXTS = ("txt", "text")


class Document(NamedTuple):
    """A document.

    Args:
        key: Its key.
        tokens: Its token ids, [n].
        where: Where it came from, for messages.
        columns: The values that the index keeps, by name.
        missing: The names in `keep` that the sample does not have.
    """

    key: str
    tokens: npt.NDArray[np.generic]
    where: str
    columns: Mapping[str, ColumnValue] = NO_COLUMNS
    missing: tuple[str, ...] = ()


class Documents:
    """Makes documents of samples.

    Args:
        dtype: How the token ids are stored. None: uint16 if the first document is an array of uint16, else
            uint32.
        tokenizer: See `pack`. None: the samples are token ids.
        eos: The token id that is put at the end of each document, or None.
        keep: The names of values that the index keeps.

    Raises:
        OptionError: The tokenizer cannot be loaded, or `eos` is no token id.
        MissingExtraError: The package for the tokenizer is not installed.
    """

    def __init__(
        self, dtype: Dtype | None, tokenizer: str | None, eos: int | None, keep: Sequence[str] = ()
    ) -> None:
        self.dtype = dtype
        self._keep = keep
        self._first = True  # whether no sample has been looked at for what is kept
        # What is kept, or holds it, is no field of the document, but may be the text or the tokens too.
        named = {part for name in keep for part in (name, name.partition(".")[0])}
        self._beside = named - {"__key__", *_IDS, *_TEXTS}
        self._tokenizer: Tokenizer | None = None
        self._eos = eos
        self._texts: list[tuple[str, Sample]] = []
        self._ready: deque[Document] = deque()
        if tokenizer is not None:
            from shardstream.packing.tokenize import load_tokenizer

            self._tokenizer = load_tokenizer(tokenizer)
            self.dtype = "uint16" if self._tokenizer.dtype(eos).name == "uint16" else "uint32"

    def fit(self, old: Manifest, where: str) -> None:
        """Take the dtype of the dataset that is appended to. Raises OptionError if another was asked for."""
        before = old.fields[0].dtype
        if self.dtype not in (None, before):
            raise OptionError(
                f"the tokens of {where} are {before}, these would be {self.dtype}; choose another target"
            )
        self.dtype = before

    def take(self, sample: object, where: str, key: str) -> Reject | None:
        """Take a sample; see `sample_of`. Returns a Reject if it is no document, else None.

        Raises:
            SourceError: It is the first one, and what `keep` names in it is no value of a column.
        """
        if self._tokenizer is None:
            found = self._document(sample, where, key)
            if isinstance(found, Reject):
                return found
            self._ready.append(found)
            return None
        text = sample_of(self._fields(sample), where, key)
        if isinstance(text, Reject):
            return text
        columns, missing = self._columns(sample)
        text = text._replace(columns=columns, missing=missing)
        data = next((text.fields[name] for name in _TEXTS if name in text.fields), None)
        if data is None:
            return Reject(text.where, "no text (field txt) to tokenize")
        try:
            self._texts.append((data.decode(), text._replace(fields={})))
        except UnicodeDecodeError as error:
            return Reject(text.where, f"the text is not UTF-8 ({error})")
        if len(self._texts) >= _BATCH:
            self._tokenize()
        return None

    def ready(self, last: bool = False) -> Iterator[Document]:
        """The documents that are ready, each once; those that are not asked for stay.

        Args:
            last: Whether not to wait for more samples, so that all documents are made ready.
        """
        if last and self._texts:
            self._tokenize()
        while self._ready:
            yield self._ready.popleft()

    def _tokenize(self) -> None:
        import numpy as np

        assert self._tokenizer is not None
        texts, self._texts = self._texts, []
        dtype = np.dtype(self.dtype)
        end = np.array([] if self._eos is None else [self._eos], dtype)
        found = self._tokenizer.encode_batch([text for text, _ in texts])
        for (_, sample), tokens in zip(texts, found, strict=True):
            joined = np.concatenate((tokens.astype(dtype, copy=False), end))
            self._ready.append(Document(sample.key, joined, sample.where, sample.columns, sample.missing))

    def _fields(self, sample: object) -> object:
        """A sample without what is kept beside its text or tokens."""
        if not self._beside or not isinstance(sample, Mapping):
            return sample
        return {name: value for name, value in sample.items() if name not in self._beside}

    def _columns(self, sample: object) -> tuple[Mapping[str, ColumnValue], tuple[str, ...]]:
        if not self._keep:
            return {}, ()
        if self._first and isinstance(sample, Mapping):
            check_scalars(sample, self._keep)
            self._first = False
        return columns_of_sample(sample if isinstance(sample, Mapping) else {}, self._keep)

    def _document(self, sample: object, where: str, key: str) -> Document | Reject:
        value: Any = sample
        if isinstance(sample, Mapping):
            named = sample_of({one: sample[one] for one in sample if one == "__key__"}, where, key)
            if isinstance(named, Reject):
                return named
            key, where = named.key, named.where
            name = next((name for name in _IDS if name in sample), None)
            if name is None:
                return Reject(where, "no token ids (field tokens)")
            others = [
                one
                for one in sample
                if not str(one).startswith("__") and one != name and one not in self._beside
            ]
            if others:
                return Reject(
                    where,
                    f"a document holds token ids alone, and there is a field {others[0]!r}; keep=[...] makes "
                    "a small value a column",
                )
            value = sample[name]
        try:
            return Document(key, self._ids(value), where, *self._columns(sample))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            return Reject(where, str(error))

    def _ids(self, value: Any) -> npt.NDArray[np.generic]:
        """The token ids as they are stored. Raises ValueError, or what NumPy raises."""
        import numpy as np

        tokens = np.asarray(value)
        if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
            raise ValueError(f"token ids are integers, [n]; this is {tokens.dtype} {list(tokens.shape)}")
        dtype = self.dtype or ("uint16" if tokens.dtype == np.uint16 else "uint32")
        if tokens.size and tokens.dtype != np.dtype(dtype):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high > np.iinfo(dtype).max:
                wide = "; give Writer tokens='uint32'" if low >= 0 and high < 1 << 32 else ""
                raise ValueError(f"token ids {low} to {high} do not fit {dtype}{wide}")
        self.dtype = dtype
        return tokens.astype(dtype)  # a copy, since the caller may change the array
