"""Prompts measured by a model's own tokenizer and chat template."""

import json
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from liber_feast.errors import ConfigError
from liber_feast.llm.fit import estimate_tokens, most_tokens
from liber_feast.llm.tokenizer import open_token_counter
from tests.llm_server import backend_at, messages_of

TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<turn>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def tokenizer_in(folder: Path, *, template: str | None) -> str:
    words = Tokenizer(models.WordLevel({"<turn>": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_tokens_are_counted_with_the_chat_template(tmp_path: Path) -> None:
    messages = messages_of("one two three")
    words = sum(len(message["content"].split()) for message in messages)
    with backend_at("http://127.0.0.1:1/v1", tokenizer=tokenizer_in(tmp_path, template=TEMPLATE)) as backend:
        assert backend.count_tokens(messages) == words + 3
        assert backend.most_tokens(messages) == words + 3


def test_without_a_tokenizer_tokens_are_estimated() -> None:
    with backend_at("http://127.0.0.1:1/v1") as backend:
        assert backend.count_tokens(messages_of("one")) == estimate_tokens(messages_of("one"))
        assert backend.most_tokens(messages_of("one")) == most_tokens(messages_of("one"))


@pytest.mark.parametrize("template", [None, NO_SYSTEM], ids=["none", "without system messages"])
def test_a_tokenizer_needs_a_template_that_takes_our_messages(tmp_path: Path, template: str | None) -> None:
    with pytest.raises(ConfigError, match="has no chat template that takes a system and a user message"):
        open_token_counter(tokenizer_in(tmp_path, template=template))


def test_code_that_a_tokenizer_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("y\n" * 9))  # whoever is asked says yes
    folder = Path(tokenizer_in(tmp_path, template=TEMPLATE))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["foreign.Foreign", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ran = folder / "ran"
    (folder / "foreign.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Foreign: ...\n")
    with suppress(ConfigError):
        open_token_counter(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["no/such/folder/of/ours", "nobody/no-such-model"])
def test_a_tokenizer_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer: '{name}' cannot be loaded") as refused:
        open_token_counter(name)
    assert "\n" not in str(refused.value)
