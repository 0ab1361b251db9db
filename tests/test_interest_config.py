"""The interest block: every mistake is one line that names the key, and none repeats a secret."""

import traceback
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from liber_feast.budget import Budget, Limits, Prices
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import ConfigError
from liber_feast.interest_config import BLOCKS, ExtractiveConfig, OpenAIConfig, VllmConfig
from liber_feast.llm_backend import configure_llm
from liber_feast.repo import open_store
from tests import feature_repo_kit as kit

SECRET = "sk-proj-4f1deadbeef4f1deadbeef"
OPENAI: dict[str, Any] = {"backend": "openai", "model": "some-model"}
VLLM: dict[str, Any] = {"backend": "vllm", "model": "some-model"}


def interest(block: Any) -> Any:
    return LiberComputeEngineConfig(interest=block).interest


def refusal(block: Any) -> str:
    """Return the error; a program that shows it in full, causes included, shows the same line."""
    with pytest.raises(ConfigError) as caught:
        interest(block)
    assert "\n" not in caught.value.message
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "ValidationError" not in shown
    return str(caught.value.message)


def test_a_block_without_a_backend_is_extractive() -> None:
    assert interest({}) == ExtractiveConfig()
    assert interest({"prompt": "music"}) == ExtractiveConfig(prompt="music")
    assert LiberComputeEngineConfig().interest == ExtractiveConfig()


def test_a_block_is_the_one_its_backend_names() -> None:
    assert interest(OPENAI) == OpenAIConfig(model="some-model")
    assert interest({**VLLM, "engine": {"enforce_eager": True}}) == VllmConfig(
        model="some-model", engine={"enforce_eager": True}
    )


def test_prices_and_budgets_come_as_frozen_values() -> None:
    block = interest(
        {
            **OPENAI,
            "prices": {"input": 0.15, "cached_input": 0.075, "output": 0.6},
            "budget": {"run": {"calls": 0, "tokens": 10}, "day": {"dollars": 2}},
        }
    )
    assert block.dollar_prices() == Prices(input=0.15, cached_input=0.075, output=0.6)
    assert block.limits() == Budget(run=Limits(calls=0, tokens=10), day=Limits(dollars=2.0))
    assert interest(OPENAI).limits() == Budget()


def test_input_from_the_cache_costs_what_input_costs_unless_the_block_says_otherwise() -> None:
    prices = interest({**OPENAI, "prices": {"input": 2, "output": 1}}).dollar_prices()
    assert prices.nanodollars(input_tokens=10, output_tokens=0, cached_tokens=10) == 20_000
    free = interest({**OPENAI, "prices": {"input": 2, "cached_input": 0}}).dollar_prices()
    assert free.nanodollars(input_tokens=10, output_tokens=0, cached_tokens=10) == 0


@pytest.mark.parametrize("key", ["sk two words", "k\u00e9y", "sk-\x07"], ids=["a space", "an accent", "a bell"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ConfigError, match="^The environment variable SOME_KEY holds spaces or characters") as caught:
        configure_llm(interest({**OPENAI, "api_key_env": "SOME_KEY"}), base=Path())
    assert key not in caught.value.message


MISTAKES: dict[str, tuple[Any, str]] = {
    "unknown backend": (
        {"backend": "opnai"},
        "interest.backend must be one of .*, found 'opnai'. Did you mean 'openai'",
    ),
    "no backend": ({"backend": None}, r"interest\.backend must be one of extractive, openai, vllm\.$"),
    "a list of backends": ({"backend": ["openai"]}, r"interest\.backend must be one of"),
    "no block": ("openai", "batch_engine.interest: write keys below it"),
    "no model": ({"backend": "openai"}, "batch_engine.interest.model is missing; backend 'openai' needs it"),
    "empty model": ({**OPENAI, "model": ""}, "interest.model: String should have at least 1 character"),
    "a model without backend": ({"model": "x"}, "unknown key 'batch_engine.interest.model'.* openai and vllm, not to"),
    "misspelled key": ({**OPENAI, "max_concurency": 3}, "'batch_engine.interest.max_concurency'.*'max_concurrency'"),
    "misspelled limit": (
        {**OPENAI, "budget": {"run": {"call": 1}}},
        "'batch_engine.interest.budget.run.call'.*'calls'",
    ),
    "no calls at once": ({**OPENAI, "max_concurrency": 0}, "interest.max_concurrency: .*greater than 0, found 0"),
    "no rate": ({**OPENAI, "requests_per_minute": 0}, "interest.requests_per_minute: "),
    "negative rate": ({**OPENAI, "tokens_per_minute": -5}, "interest.tokens_per_minute: .*found -5"),
    "no time": ({**OPENAI, "timeout_s": 0}, "interest.timeout_s: "),
    "endless time": ({**OPENAI, "timeout_s": inf}, "interest.timeout_s: .*finite"),
    "no attempt": ({**OPENAI, "max_attempts": 0}, "interest.max_attempts: "),
    "attempts in process": ({**VLLM, "max_attempts": 3}, "'batch_engine.interest.max_attempts'.*openai, not to vllm"),
    "cold": ({**OPENAI, "temperature": -0.1}, "interest.temperature: "),
    "no temperature": ({**VLLM, "temperature": nan}, "interest.temperature: .*finite"),
    "no answer": ({**OPENAI, "max_output_tokens": 0}, "interest.max_output_tokens: "),
    "no room": ({**OPENAI, "context_tokens": 256}, r"interest: context_tokens \(256\) must be more than max_output"),
    "no room in process": ({**VLLM, "max_model_len": 9}, r"interest: max_model_len \(9\) must be more than"),
    "no chunk": ({**VLLM, "chunk_size": 0}, "interest.chunk_size: "),
    "negative price": ({**OPENAI, "prices": {"output": -1}}, "interest.prices.output: .*found -1"),
    "no price": ({**OPENAI, "prices": {"input": nan}}, "interest.prices.input: .*finite"),
    "prices of another form": ({**OPENAI, "prices": 3}, "interest.prices: write keys below it"),
    "negative calls": ({**OPENAI, "budget": {"run": {"calls": -3}}}, "interest.budget.run.calls: .*found -3"),
    "negative dollars": ({**VLLM, "budget": {"day": {"dollars": -1.5}}}, "interest.budget.day.dollars: .*found -1.5"),
    "endless dollars": ({**OPENAI, "budget": {"day": {"dollars": inf}}}, "interest.budget.day.dollars: .*finite"),
    "no scheme": ({**OPENAI, "base_url": "localhost:8000"}, "interest.base_url must be an http or https address"),
    "no port": ({**OPENAI, "base_url": "http://localhost:99999/v1"}, "interest.base_url must be"),
    "a body that changes the call": ({**OPENAI, "extra_body": {"messages": []}}, "extra_body cannot set 'messages'"),
    "an engine of another model": ({**VLLM, "engine": {"model": "x"}}, "interest.engine cannot set 'model'"),
    "sampling twice": ({**VLLM, "sampling": {"temperature": 1}}, "interest.sampling cannot set 'temperature'"),
    "a number as key": ({**OPENAI, 1: None}, "interest.1: Keys should be strings"),
}


@pytest.mark.parametrize(("block", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(block: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^feature_store.yaml: .*{message}"):
        interest(block)
    assert not [backend for backend in BLOCKS if f".{backend}." in refusal(block)]


LEAKS: dict[str, tuple[Any, str]] = {
    "as a key of ours": ({**OPENAI, "api_key": SECRET}, "'batch_engine.interest.api_key'.*from the environment alone"),
    "in a header": ({**OPENAI, "headers": {"Authorization": SECRET}}, "from the environment alone"),
    "as the name of its variable": ({**OPENAI, "api_key_env": SECRET}, "must be the name of an environment variable"),
    "as a name that could be one": ({**OPENAI, "api_key_env": f"gsk_{SECRET[8:]}"}, "not the key"),
    "in the address": ({**OPENAI, "base_url": f"https://me:{SECRET}@host/v1"}, "interest.base_url must be"),
    "in the query": ({**OPENAI, "base_url": f"https://host/v1?key={SECRET}"}, "interest.base_url must be"),
    "as the body": ({**OPENAI, "extra_body": SECRET}, "interest.extra_body: Input should be a valid dictionary"),
    "as a body that changes the call": ({**OPENAI, "extra_body": {"model": SECRET}}, "cannot set 'model'"),
    "instead of a key of ours": ({**OPENAI, SECRET: None}, "interest has an unknown key"),
    "beside what is missing": ({"backend": "openai", "extra_body": {"token": SECRET}}, "interest.model is missing"),
    "beside what does not fit": ({**OPENAI, "extra_body": {"a": SECRET}, "context_tokens": 5}, "context_tokens"),
    "in a list": ({**OPENAI, "model": [SECRET]}, "interest.model: Input should be a valid string"),
}


@pytest.mark.parametrize(("block", "message"), LEAKS.values(), ids=LEAKS)
def test_a_secret_in_the_file_is_refused_and_not_repeated(block: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        interest(block)
    refusal(block)
    assert SECRET[8:] not in refusal(block)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_key", "_K", "A" * 60, "azure_openai_key_2_of_team_7"])
def test_a_variable_may_have_any_name(name: str) -> None:
    assert interest({**OPENAI, "api_key_env": name}).api_key_env == name


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://host/path/v1/", "http://[::1]:8000/v1"])
def test_an_address_is_kept_as_it_is(url: str) -> None:
    assert interest({**OPENAI, "base_url": url}).base_url == url


@pytest.mark.parametrize("port", [0, 70000, "http"])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ConfigError, match=r"batch_engine\.metrics\.port"):
        LiberComputeEngineConfig(metrics={"port": port})


def test_the_file_of_a_repo_is_read_with_its_interest_block(tmp_path: Path) -> None:
    repo = kit.copy_feature_repo(tmp_path / "repo", interest={**OPENAI, "timeout_s": 5})
    block = open_store(repo).config.batch_engine.interest
    assert block == OpenAIConfig(model="some-model", timeout_s=5)


@pytest.mark.parametrize("part", ["run", "day"])
@pytest.mark.parametrize("block", [OPENAI, VLLM], ids=["openai", "vllm"])
def test_a_limit_in_dollars_needs_prices(block: dict[str, Any], part: str) -> None:
    budget = {part: {"dollars": 5}}
    found = refusal({**block, "budget": budget})
    assert "budget limits dollars, and prices are 0: set prices, or limit calls or tokens" in found
    for prices in ({"input": 0.15}, {"output": 0.6}):
        assert interest({**block, "budget": budget, "prices": prices}).dollar_prices() == Prices(**prices)
