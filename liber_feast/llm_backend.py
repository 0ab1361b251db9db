"""The LLM of the interest block: checked before anything is written, opened when a text needs it."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from liber_feast.errors import BackendRefused, ConfigError, MissingExtra, PromptError
from liber_feast.estimate import Estimator
from liber_feast.interest_config import INTEREST, LlmConfig, OpenAIConfig, VllmConfig
from liber_feast.llm.fit import estimate_tokens
from liber_feast.llm.parts_answer import answer_schema
from liber_feast.memory import Memory
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.parts import PLAIN
from liber_feast.prompt import Prompt, load_prompt

if TYPE_CHECKING:
    from liber_feast.estimate import CountTokens
    from liber_feast.llm.chat import ChatBackend
    from liber_feast.llm.chat_learner import ChatLearner

DEFAULT_KEY = "OPENAI_API_KEY"
"""The variable of OpenAI's own API, used where neither address nor variable is configured."""

ATTEMPTS_IN_PROCESS = 1
"""Calls for one text in this process, which is never busy and loses no call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedLlm:
    """An LLM beside a memory: who asks it, what it may spend, and what more would cost."""

    learner: "ChatLearner"
    ledger: MemoryLedger
    open_estimator: Callable[[], Estimator]
    """Counts prompts as the model does, where a tokenizer is at hand; loading it takes seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfiguredLlm:
    """An LLM that can be opened: its package is installed and its key is known."""

    config: LlmConfig
    prompt: Prompt
    api_key: str | None = field(repr=False)

    def open(self, memory: Memory, *, clock: Callable[[], int]) -> OpenedLlm:
        """Return the learner of a memory; the server or the model is opened with the first call."""
        from liber_feast.llm.chat_learner import ChatLearner  # noqa: PLC0415 (the extractive backend needs none of it)
        from liber_feast.llm.rate_limit import RateLimits  # noqa: PLC0415

        config, rates, max_attempts = self.config, RateLimits(), ATTEMPTS_IN_PROCESS
        if isinstance(config, OpenAIConfig):
            max_attempts = config.max_attempts
            rates = RateLimits(
                requests_per_minute=config.requests_per_minute, tokens_per_minute=config.tokens_per_minute
            )
        ledger = open_ledger(config, memory, prompt=self.prompt, clock=clock)
        learner = ChatLearner(
            prompt=self.prompt,
            model=config.model,
            open_backend=self.open_backend,
            ledger=ledger,
            rates=rates,
            prices=config.dollar_prices(),
            max_attempts=max_attempts,
        )
        return OpenedLlm(
            learner=learner, ledger=ledger, open_estimator=lambda: open_estimator(config, prompt=self.prompt)
        )

    def open_backend(self) -> "ChatBackend":
        """Open a connection to the server, or the model in this process.

        Raises:
            BackendRefused: it cannot be opened as it is configured, or its package is not whole.
        """
        try:
            if isinstance(self.config, OpenAIConfig):
                return _open_server(self.config, api_key=self.api_key)
            return _open_model(self.config)
        except (ConfigError, MissingExtra) as error:  # found only now, when behaviors may wait for what they are due
            raise BackendRefused(error.message) from error


def configure_llm(config: LlmConfig, *, base: Path) -> ConfiguredLlm:
    """Check what can be checked without a call; `base` is the folder that relative paths are relative to.

    Raises:
        MissingExtra: the backend's package is not installed.
        ConfigError: the environment has no API key.
        PromptError: the prompt template cannot be used.
    """
    if importlib.util.find_spec(config.backend) is None:  # the package, the extra and the backend share a name
        raise MissingExtra(package=config.backend, extra=config.backend)
    prompt = open_prompt(config.prompt, base=base, form=config.form)
    if not prompt.asks:
        raise PromptError(f"prompt {config.prompt} has no table [parts], and {INTEREST}.form is {config.form!r}.")
    return ConfiguredLlm(config=config, prompt=prompt, api_key=_api_key(config))


def open_prompt(name: str, *, base: Path, form: str = PLAIN) -> Prompt:
    """Return the template that the interest block names, for texts of a form.

    Raises:
        PromptError: it cannot be used.
    """
    return load_prompt(str(base / name) if name.endswith(".toml") else name).in_form(form)


def open_ledger(config: LlmConfig, memory: Memory, *, prompt: Prompt, clock: Callable[[], int]) -> MemoryLedger:
    """Return where the calls of a memory are written down."""
    return MemoryLedger(
        memory,
        budget=config.limits(),
        prices=config.dollar_prices(),
        model=config.model,
        prompt_version=prompt.version,
        clock=clock,
    )


def open_estimator(config: LlmConfig, *, prompt: Prompt) -> Estimator:
    """Return what counts prompts as the model does, where its tokenizer is at hand.

    Raises:
        ConfigError: the configured tokenizer cannot be loaded.
        MissingExtra: it needs a package that is not installed.
    """
    return Estimator(config=config, prompt=prompt, count_tokens=_token_counter(config))


def _token_counter(config: LlmConfig) -> "CountTokens":
    if isinstance(config, OpenAIConfig):
        name = config.tokenizer
    else:
        name = config.model if Path(config.model).is_dir() else None
    if name is None:
        return estimate_tokens
    from liber_feast.llm.tokenizer import open_token_counter  # noqa: PLC0415 (transformers takes seconds to load)

    return open_token_counter(name)


def _api_key(config: LlmConfig) -> str | None:
    """Return the key that the environment holds; the one place that reads it.

    Raises:
        ConfigError: the variable is not set, or holds what cannot be sent.
    """
    if not isinstance(config, OpenAIConfig):
        return None
    name = config.api_key_env or (DEFAULT_KEY if config.base_url is None else None)
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        hint = "" if config.api_key_env else f"; for a server of your own set {INTEREST}.base_url"
        raise ConfigError(f"The environment variable {name} is not set. Set it to the server's API key{hint}.")
    if not (key.isascii() and key.isprintable() and " " not in key):  # a header cannot carry it
        raise ConfigError(
            f"The environment variable {name} holds spaces or characters that no API key has. Set it anew."
        )
    return key


def _open_server(config: OpenAIConfig, *, api_key: str | None) -> "ChatBackend":
    from liber_feast.llm.openai import OpenAIBackend  # noqa: PLC0415 (imported only where it is configured)

    return OpenAIBackend(
        model=config.model,
        base_url=config.base_url,
        api_key=api_key,
        api_key_env=config.api_key_env or (DEFAULT_KEY if config.base_url is None else None),
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout_s,
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        context_tokens=config.context_tokens,
        tokenizer=config.tokenizer,
        extra_body=config.extra_body,
        answer_schema=answer_schema(config.form),
    )


def _open_model(config: VllmConfig) -> "ChatBackend":
    from liber_feast.llm.vllm import VllmBackend  # noqa: PLC0415 (imported only where it is configured)

    return VllmBackend(
        model=config.model,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        tensor_parallel_size=config.tensor_parallel_size,
        engine=config.engine,
        chunk_size=config.chunk_size,
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        sampling=config.sampling,
        answer_schema=answer_schema(config.form),
    )
