"""Conversations as text: the chat template of a tokenizer.

A template is Jinja. What it may use is as the package transformers has it (chat_template_utils.py), in a
sandbox: templates come from hubs. It can have no time, since the same input must give the same bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from shardstream.errors import OptionError, SourceError, require

__all__ = ["ChatTemplate"]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Args:
        text: The template.
        tokens: Pairs of a name such as "bos_token" and its text, which the template may use.
    """

    text: str
    tokens: tuple[tuple[str, str], ...] = ()

    @classmethod
    def load(cls, path: str) -> ChatTemplate:
        """The template in a file.

        Args:
            path: The `tokenizer_config.json` of a tokenizer, or a template alone (.jinja). Of several
                templates it is the one called "default".

        Raises:
            OptionError: It cannot be read, or has no template, or an error is in the template.
            MissingExtraError: jinja2 is not installed.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"chat_template {path}: {error}") from error
        tokens: tuple[tuple[str, str], ...] = ()
        if path.endswith(".json"):
            text, tokens = _of_config(path, text)
        found = cls(text, tokens)
        try:
            _compiled(text)
        except Exception as error:  # jinja2 raises what it likes
            if isinstance(error, ImportError):
                raise
            raise OptionError(f"chat_template {path}: an error in the template: {error}") from error
        return found

    def digest(self) -> str:
        """A checksum of the template and its tokens, for the manifest."""
        import hashlib  # a worker without a template does not need it

        return hashlib.sha256(json.dumps([self.text, self.tokens]).encode()).hexdigest()

    def render(self, messages: Any, row: Mapping[str, Any]) -> str:
        """The text of a conversation.

        Args:
            messages: A list of objects with `role` and `content`.
            row: The row that they are in. The template may use its `tools` and `documents`.

        Raises:
            SourceError: It is no conversation, or the template refuses it.
        """
        if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
            raise SourceError("no list of messages, which are objects with role and content")
        # A table has all keys in all messages.
        messages = [
            {name: value for name, value in each.items() if value is not None or name == "content"}
            for each in messages
        ]
        try:
            return str(
                _compiled(self.text).render(
                    messages=messages,
                    tools=row.get("tools"),
                    documents=row.get("documents"),
                    add_generation_prompt=False,
                    **dict(self.tokens),
                )
            )
        except Exception as error:  # a template raises what it likes
            raise SourceError(f"the chat template refuses the messages: {error}") from error


def _of_config(path: str, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The template and the special tokens of a tokenizer_config.json."""
    try:
        config = json.loads(text)
        found = config.get("chat_template")
        if isinstance(found, list):
            found = {each["name"]: each["template"] for each in found}.get("default")
        tokens = {name: config[name] for name in config if name.endswith("_token")}
        plain = {name: each["content"] if isinstance(each, dict) else each for name, each in tokens.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"chat_template {path}: no configuration of a tokenizer ({error!r})") from error
    if not isinstance(found, str):
        raise OptionError(
            f"chat_template {path}: it has no chat_template; give the chat_template.jinja, if there is one"
        )
    return found, tuple(sorted((name, each) for name, each in plain.items() if isinstance(each, str)))


@functools.lru_cache(8)
def _compiled(text: str) -> Any:
    jinja2, sandbox = require("jinja2", "chat"), require("jinja2.sandbox", "chat")
    extension: Any = require("jinja2.ext", "chat").Extension

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def no_time(_: str) -> None:
        raise jinja2.TemplateError("it asks for the time, so that each pack would give other text")

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    class Generation(extension):  # type: ignore[misc]
        """{% generation %}, which marks what a model has said: its text is as it is."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = no_time
    return environment.from_string(text)
