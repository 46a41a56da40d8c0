"""Pickles for other machines, in which names of environment variables stand for secrets.

A cluster keeps what it is sent: in an object store, in logs, on disk. So a secret of `storage_options` is
never sent. If an environment variable has its value, the name is sent, and each worker looks it up.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from shardstream.errors import OptionError
from shardstream.storage.secrets import SHORTEST_SECRET, names_secret, url_has_secret

__all__ = ["Sealer", "opened"]

_SENT = (
    "the options of pack go to other processes, which do not run the main module: {error}. "
    "Give plain values, or classes and functions of a module in a file of its own"
)


class Sealer:
    """Pickles objects for workers.

    Args:
        storage_options: The options of all stores.

    Attributes:
        variables: The names of the environment variables that workers need.

    Raises:
        OptionError: There is a secret that no environment variable has.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None) -> None:
        self._names: dict[str, str] = {}  # by secret
        values = {value: name for name, value in sorted(os.environ.items(), reverse=True)}
        for where, secret in _secrets(storage_options or {}):
            name = values.get(secret) if isinstance(secret, str) else None
            if name is None:
                raise OptionError(
                    f"storage_options: {where} is a secret, which does not go to other machines. Set an "
                    "environment variable to it, here and on all of them, and give its value, as in "
                    f"{{{where.rpartition('.')[2]!r}: os.environ['MY_SECRET']}}: then only the name of the "
                    "variable is sent. Or leave it out, if workers find credentials by themselves"
                )
            self._names[secret] = name
        self.variables = tuple(sorted(set(self._names.values())))

    def seal(self, message: object) -> bytes:
        """The pickle of an object.

        Raises:
            OptionError: It cannot be pickled, or a secret is within it.
        """
        file = io.BytesIO()
        try:
            _Pickler(file, self._names).dump(message)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(_SENT.format(error=error)) from error
        data = file.getvalue()
        for secret, name in self._names.items():
            if secret.encode() in data:  # a part of a longer text, such as a URL
                raise OptionError(
                    f"the value of {name}, a secret of storage_options, is a part of another option or URL, "
                    "which goes to other machines; give secrets by storage_options alone"
                )
        return data


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Mapping[str, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, obj: object) -> str | None:
        return self._names.get(obj) if type(obj) is str else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: str) -> str:
        try:
            return os.environ[name]
        except KeyError:
            raise OptionError(f"the environment variable {name} is not set") from None


def opened(data: bytes) -> Any:
    """The object of a pickle that a `Sealer` made.

    Raises:
        OptionError: It cannot be made here, or an environment variable is missing.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(_SENT.format(error=f"{type(error).__name__}: {error}")) from error


def _secrets(options: object, where: str = "", secret: bool = False) -> Iterator[tuple[str, Any]]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            inner = f"{where}.{name}" if where else str(name)
            yield from _secrets(value, inner, secret or names_secret(str(name)))
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _secrets(value, where, secret)
    elif (secret and not _is_harmless(options)) or (isinstance(options, str) and url_has_secret(options)):
        yield where, options


def _is_harmless(value: object) -> bool:
    """Whether a value is no secret although the name of its option says so: token="anon", or a path."""
    if isinstance(value, str):
        return len(value) < SHORTEST_SECRET or value == "google_default" or os.path.isfile(value)
    return value is None or isinstance(value, (bool, int, float))
