"""Count a prompt's tokens as the model does, by its tokenizer and chat template."""

from collections.abc import Callable, Sequence
from typing import Any

from liber_feast.errors import ConfigError, MissingExtra
from liber_feast.interest_config import INTEREST
from liber_feast.prompt import Message

try:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer
except ImportError as error:
    raise MissingExtra(package=error.name or "transformers", extra="encode") from error

KEY = f"{INTEREST}.tokenizer"
PROBE: Sequence[Message] = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"})


def open_token_counter(name: str) -> Callable[[Sequence[Message]], int]:
    """Return a function that counts the tokens of a prompt; `name` is a local folder or a hub id.

    A hub id is looked for in the local cache before the network. Code that a tokenizer brings is not run.

    Raises:
        ConfigError: there is no such tokenizer, or it has no chat template for a system and a user message.
    """
    tokenizer = _load(name)

    def count(messages: Sequence[Message]) -> int:
        return len(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))

    try:
        count(PROBE)
    except (ValueError, TemplateError) as error:
        raise ConfigError(
            f"{KEY}: {name!r} has no chat template that takes a system and a user message. Name the tokenizer of a"
            " chat model, or leave it out: prompts are then measured by a high estimate."
        ) from error
    return count


def _load(name: str) -> Any:
    failed: Exception | None = None
    for is_offline in (True, False):
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=is_offline, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            failed = error
    raise ConfigError(
        f"{KEY}: {name!r} cannot be loaded ({type(failed).__name__}). Name a folder or a hub id that exists."
    ) from failed
