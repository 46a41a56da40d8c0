"""Conversations: the text that a chat template makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import shardstream as ss
from shardstream.errors import OptionError, SourceError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {% if message['role'] == 'tool' %}{{ raise_exception('role tool') }}{% endif %}\n"
    "<{{ message['role'] }}>{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi \u2713"}, {"role": "assistant", "content": "<yo>"}]
# As transformers 4.57 renders it.
TEXT = "<s><user>hi \u2713</s>\n<assistant><yo></s>\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer_config.json"
    eos = {"content": "</s>", "lstrip": False, "special": True}
    path.write_text(
        json.dumps({"bos_token": "<s>", "eos_token": eos, "pad_token": None, "chat_template": TEMPLATE})
    )
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(source: Path, dest: Path, **options: Any) -> list[Any]:
    ss.pack(source, dest, workers=1, **options)
    return list(ss.StreamingDataset(str(dest), shuffle=False))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_messages_become_text(tmp_path: Path, config: Path, format: str) -> None:
    rows = [{"id": "a", "messages": MESSAGES, "n": 1}]
    source = tmp_path / f"in.{format}"
    if format == "jsonl":
        lines(source, *rows)
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), source)
    found = packed(source, tmp_path / "out", chat_template=str(config))
    assert found == [{"__key__": "a", "txt": TEXT, "json": {"id": "a", "n": 1}}]


def test_a_template_alone_and_another_key(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    source = lines(tmp_path / "in.jsonl", {"conversation": MESSAGES})
    options = {"chat_template": str(tmp_path / "chat.jinja"), "text_key": "conversation"}
    (found,) = packed(source, tmp_path / "out", **options)
    assert found["txt"] == "[user] hi \u2713[assistant] <yo>"


def test_one_of_several_templates_and_tools(tmp_path: Path, config: Path) -> None:
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{ tools | tojson }}"}]
    config.write_text(json.dumps({"chat_template": several}))
    source = lines(tmp_path / "in.jsonl", {"messages": MESSAGES, "tools": [{"name": "<a>"}]})
    (found,) = packed(source, tmp_path / "out", chat_template=str(config), keep=[])
    assert found["txt"] == '[{"name": "<a>"}]'


def test_text_goes_to_the_tokenizer(tmp_path: Path, config: Path) -> None:
    source = lines(tmp_path / "in.jsonl", {"messages": MESSAGES})
    manifest = ss.pack(source, tmp_path / "out", chat_template=str(config), tokenizer="bytes", eos=256)
    assert manifest.tokens == len(TEXT.encode()) + 1


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hi", "no list of messages"),
        (["hi"], "no list of messages"),
        ([{"role": "tool", "content": ""}], "the chat template refuses the messages: role tool"),
    ],
)
def test_what_is_no_conversation_is_a_reject(tmp_path: Path, config: Path, messages: Any, why: str) -> None:
    source = lines(tmp_path / "in.jsonl", {"messages": messages})
    with pytest.raises(SourceError, match=rf"in\.jsonl.*{re.escape(why)}"):
        ss.pack(source, tmp_path / "out", chat_template=str(config), workers=1)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ strftime_now('%Y') }}", "asks for the time"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_a_template_has_no_time_and_no_way_out(tmp_path: Path, template: str, why: str) -> None:
    (tmp_path / "chat.jinja").write_text(template)
    source = lines(tmp_path / "in.jsonl", {"messages": MESSAGES})
    with pytest.raises(SourceError, match=why):
        ss.pack(source, tmp_path / "out", chat_template=str(tmp_path / "chat.jinja"), workers=1)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jinja", "{% for %}", "an error in the template"),
        ("a.json", "{", "no configuration of a tokenizer"),
        ("a.json", "[]", "no configuration of a tokenizer"),
        ("a.json", "{}", "it has no chat_template"),
    ],
)
def test_a_file_without_a_template_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    source = lines(tmp_path / "in.jsonl", {"messages": MESSAGES})
    with pytest.raises(OptionError, match=rf"{re.escape(name)}: {why}"):
        ss.pack(source, tmp_path / "out", chat_template=str(tmp_path / name))
    with pytest.raises(OptionError, match="gone"):
        ss.pack(source, tmp_path / "out", chat_template=str(tmp_path / "gone"))
