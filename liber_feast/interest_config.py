"""The blocks `batch_engine.interest` and `batch_engine.metrics`: who writes the texts, how fast, and for how much.

Values only. API keys are no values: the block names the environment variable that holds one, and no error repeats
what stands in a key where a key or an address could have been written by mistake.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from liber_feast.budget import Budget, Limits, Prices
from liber_feast.parts import PLAIN

EXTRACTIVE, OPENAI, VLLM = "extractive", "openai", "vllm"
BACKENDS = (EXTRACTIVE, OPENAI, VLLM)
INTEREST = "batch_engine.interest"

Price: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=1_000_000)]
Dollars: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=1_000_000_000)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=10**15)]
Seconds: TypeAlias = Annotated[FiniteFloat, Field(gt=0)]
Temperature: TypeAlias = Annotated[FiniteFloat, Field(ge=0)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]

UNREPEATED = ("api_key_env", "base_url", "extra_body", "engine", "sampling")
"""Keys whose values no error repeats: a secret may stand there, by mistake or not."""
SECRET_WORDS = ("key", "secret", "password", "auth", "header", "bearer", "credential")
"""Parts of an unknown key by which somebody may have written a secret into the file."""
KEY_LENGTH = 16
"""Characters from which a part of a name that mixes small letters with capitals or digits is taken for a key."""

OWN_BODY = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "temperature")
OWN_ENGINE = ("model", "dtype", "max_model_len", "tensor_parallel_size", "tokenizer")
OWN_SAMPLING = ("temperature", "max_tokens", "n")
"""What `extra_body`, `engine` and `sampling` cannot set: other keys do, or the answer could not be read."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PricesConfig(_Block):
    """Dollars per million tokens."""

    input: Price = 0.0
    cached_input: Price | None = None
    """Of input tokens that the server had in its prefix cache; null: the price of `input`."""
    output: Price = 0.0


class LimitsConfig(_Block):
    """The most that may be spent; null: no limit, 0: nothing."""

    calls: Count | None = None
    tokens: Count | None = None
    """Input and output together."""
    dollars: Dollars | None = None


class BudgetConfig(_Block):
    """Limits of one run, and of one day (UTC) over all runs and workers of a memory."""

    run: LimitsConfig = LimitsConfig()
    day: LimitsConfig = LimitsConfig()


class _InterestBlock(_Block):
    prompt: Text = "movielens"
    """A bundled template (movielens, amazon_books, amazon_products, music) or the path of a TOML file."""
    form: Literal["plain", "parts"] = PLAIN
    """`plain`: a paragraph, as in the paper; `parts`: likes and dislikes apart, tendency and counts as numbers.

    It changes the width of vectors; `liber encode` changes a memory to another form.
    """


class ExtractiveConfig(_InterestBlock):
    """No LLM: texts are made from the items' attributes and the feedback."""

    backend: Literal["extractive"] = "extractive"


class _LlmConfig(_InterestBlock):
    model: Text
    """The model's name; texts are recorded under it, and a new one writes new partitions alone."""
    temperature: Temperature = 0.0
    max_output_tokens: PositiveInt = 256
    """The most that an answer may have; a longer one is cut off, and asked for once more."""
    prices: PricesConfig = PricesConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _dollars_have_prices(self) -> Self:
        limited = self.budget.run.dollars is not None or self.budget.day.dollars is not None
        if limited and not (self.prices.input or self.prices.output):
            raise ValueError("budget limits dollars, and prices are 0: set prices, or limit calls or tokens")
        return self

    def dollar_prices(self) -> Prices:
        """Return the block `prices`."""
        return Prices(input=self.prices.input, cached_input=self.prices.cached_input, output=self.prices.output)

    def limits(self) -> Budget:
        """Return the block `budget`."""
        run, day = (
            Limits(calls=some.calls, tokens=some.tokens, dollars=some.dollars)
            for some in (self.budget.run, self.budget.day)
        )
        return Budget(run=run, day=day)


class OpenAIConfig(_LlmConfig):
    """Any server that speaks OpenAI's chat API."""

    backend: Literal["openai"] = "openai"
    base_url: str | None = None
    """The server, for example http://localhost:8000/v1; null: OpenAI's own."""
    api_key_env: str | None = None
    """The environment variable that holds the API key; null: no key, or OPENAI_API_KEY where `base_url` is null."""
    max_concurrency: PositiveInt = 64
    """Calls in flight at once, those that wait for another try included."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    timeout_s: Seconds = 60.0
    max_attempts: PositiveInt = 5
    """Calls for one text in all, where the server is busy or does not answer."""
    context_tokens: PositiveInt | None = None
    """Prompt and answer together; null: not checked before a call."""
    tokenizer: Text | None = None
    """A hub id or a local path, to count tokens as the model does; null: estimated high."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or _looks_like_a_key(name)):
            raise ValueError("must be the name of an environment variable, for example OPENAI_API_KEY, not the key")
        return name

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not _is_plain_address(url):
            raise ValueError(
                "must be an http or https address without user, password and query, for example"
                " http://localhost:8000/v1"
            )
        return url

    @field_validator("extra_body")
    @classmethod
    def _adds(cls, body: dict[str, Any]) -> dict[str, Any]:
        return _without(body, OWN_BODY)

    @model_validator(mode="after")
    def _leaves_room(self) -> "OpenAIConfig":
        _check_room(self.context_tokens, self.max_output_tokens, key="context_tokens")
        return self


class VllmConfig(_LlmConfig):
    """vLLM in this process."""

    backend: Literal["vllm"] = "vllm"
    dtype: Text = "auto"
    max_model_len: PositiveInt | None = None
    """Prompt and answer together; null: the model's own."""
    tensor_parallel_size: PositiveInt = 1
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.LLM`."""
    chunk_size: PositiveInt = 512
    """Prompts that are submitted together; answers are kept while later ones run."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.SamplingParams`."""

    @field_validator("engine")
    @classmethod
    def _adds_to_engine(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return _without(arguments, OWN_ENGINE)

    @field_validator("sampling")
    @classmethod
    def _adds_to_sampling(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return _without(arguments, OWN_SAMPLING)

    @model_validator(mode="after")
    def _leaves_room(self) -> "VllmConfig":
        _check_room(self.max_model_len, self.max_output_tokens, key="max_model_len")
        return self


LlmConfig: TypeAlias = OpenAIConfig | VllmConfig


def _backend_of(block: Any) -> str:
    found = block.get("backend", EXTRACTIVE) if isinstance(block, dict) else getattr(block, "backend", None)
    return found if isinstance(found, str) else ""


InterestConfig: TypeAlias = Annotated[
    Annotated[ExtractiveConfig, Tag(EXTRACTIVE)]
    | Annotated[OpenAIConfig, Tag(OPENAI)]
    | Annotated[VllmConfig, Tag(VLLM)],
    Discriminator(_backend_of),
]
"""Who writes summaries and shifts, and from which prompt template; the key `backend` says which block it is."""


class MetricsConfig(_Block):
    """Where Prometheus finds the metrics of runs and workers."""

    textfile: Text | None = None
    """A file for node_exporter's textfile collector, written by every run; relative to the feature repo.

    Every worker process has one of its own, `-worker-N` before the ending.
    """
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Serve /metrics there as long as a run lasts; worker process N of a command serves them on this port + N."""


BLOCKS: Mapping[str, type[BaseModel]] = {EXTRACTIVE: ExtractiveConfig, OPENAI: OpenAIConfig, VLLM: VllmConfig}


def interest_problem(error: ErrorDetails) -> str:
    """Return one line for what is wrong in the block `interest`; it repeats no value that could be a secret."""
    tag, *path = [str(part) for part in error["loc"]] or [""]
    block = BLOCKS.get(tag)
    if block is None:
        return _no_backend(error["input"])
    key = ".".join([INTEREST, *path])
    if error["type"] == "missing":
        return f"{key} is missing; backend {tag!r} needs it."
    if error["type"] == "extra_forbidden":
        return _unknown(path, block=block, backend=tag)
    if error["type"] == "value_error":
        return f"{key} {error['ctx']['error']}." if path else f"{INTEREST}: {error['ctx']['error']}."
    if error["type"] == "model_type":
        return f"{key}: write keys below it."
    found = error["input"]
    is_shown = path[0] not in UNREPEATED and isinstance(found, str | int | float | None)
    return f"{key}: {error['msg']}{f', found {found!r}' if is_shown else ''}."


def _no_backend(block: object) -> str:
    if not isinstance(block, Mapping):
        return f"{INTEREST}: write keys below it, for example `backend: extractive`."
    found = block.get("backend")
    if not isinstance(found, str):
        return f"{INTEREST}.backend must be one of {', '.join(BACKENDS)}."
    close = difflib.get_close_matches(found, BACKENDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{INTEREST}.backend must be one of {', '.join(BACKENDS)}, found {found!r}.{hint}"


def _unknown(path: list[str], *, block: type[BaseModel], backend: str) -> str:
    *outer, name = path
    for part in outer:
        inner = block.model_fields[part].annotation
        block = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else block
    if not re.fullmatch(r"[A-Za-z_-]{1,40}", name):  # somebody's key, where the name of ours should be
        return f"{'.'.join([INTEREST, *outer])} has an unknown key; allowed: {', '.join(block.model_fields)}."
    key = ".".join([INTEREST, *outer, name])
    if any(word in name.lower() for word in SECRET_WORDS) and not name.startswith("api_key_"):
        hint = f"API keys come from the environment alone: name the variable in {INTEREST}.api_key_env."
        return f"unknown key {key!r}. {hint}"
    others = [other for other, fields in BLOCKS.items() if name in fields.model_fields]
    close = difflib.get_close_matches(name, block.model_fields, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if others and not outer:
        hint = f" It belongs to backend {' and '.join(others)}, not to {backend}."
    return f"unknown key {key!r}; allowed: {', '.join(block.model_fields)}.{hint}"


def _looks_like_a_key(name: str) -> bool:
    long = (part for part in name.split("_") if len(part) >= KEY_LENGTH)
    return any(re.search("[a-z]", part) and re.search("[A-Z0-9]", part) for part in long)


def _is_plain_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        return is_whole and not {"@", "?", "#"}.intersection(url) and not re.search(r"\s", url)
    except ValueError:  # a port that is no number
        return False


def _without(given: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    taken = [name for name in own if name in given]
    if taken:
        raise ValueError(f"cannot set {taken[0]!r}: the block's own keys do")
    return given


def _check_room(whole: int | None, answer: int, *, key: str) -> None:
    if whole is not None and whole <= answer:
        raise ValueError(f"{key} ({whole}) must be more than max_output_tokens ({answer}): a prompt needs room too")
