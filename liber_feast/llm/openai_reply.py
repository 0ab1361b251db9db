"""What the replies of an OpenAI-compatible server mean: answers, and what can be done about errors.

A server's message may repeat the prompt or the key. It is looked at to tell the kind of an error, and dropped: reasons
are our own words.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from liber_feast.interest_config import INTEREST
from liber_feast.llm.chat import ChatAnswer, ErrorKind

BUSY = frozenset({409, 425, 429})
"""Statuses below 500 of calls that may succeed later."""

LOST = frozenset({408, 502, 504, 524})
"""Statuses of calls whose answer did not come back through a proxy or in time; the model may have worked on it."""

INVALID, NOWHERE = frozenset({400, 422}), frozenset({404, 405})
"""Statuses of calls that cannot be made as they are, and of paths that take none."""

NO_QUOTA = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "exceeded_current_quota_error"}
)
NO_MODEL = frozenset({"model_not_found", "invalid_model", "model_decommissioned", "model_not_available"})
NO_KEY = frozenset({"invalid_api_key", "api_key_invalid", "incorrect_api_key", "authentication_error"})
UNSUPPORTED, CONTENT_FILTER = "unsupported_parameter", "content_filter"
"""Codes of errors, the same at OpenAI and those who follow it."""

MOST_TOKENS = 10**8
"""A count of tokens above it is nonsense."""

# What those who have no code for it say instead. A message has to begin so: further on it may repeat a prompt, and no
# prompt may stop a run. LiteLLM puts a path before its words.
_BEFORE = r"\s*(?:\{'error': ')?(?:/[\w/]+: )?(?:the |your )?(?:provided |requested |specified )?"
_NO_KEY_WORDS = re.compile(
    rf"{_BEFORE}(?:api[ _-]?key (?:is )?(?:not valid|not found|invalid|incorrect|expired|missing)"
    r"|(?:invalid|incorrect|expired|missing|no|not a valid) api[ _-]?key)",
    re.IGNORECASE,
)
_NO_MODEL_WORDS = re.compile(
    rf"{_BEFORE}(?:model\W*(?:does not|do not|doesn't|not) exist|model\W*(?:is |was )?not (?:found|available|supported)"
    r"|model\W*(?:has been|is|was) (?:decommissioned|deprecated|removed|retired)"
    r"|(?:invalid|unknown|unsupported|no such) model\b|\W*is not a valid model)",
    re.IGNORECASE,
)
_NO_QUOTA_WORDS = re.compile(
    rf"{_BEFORE}(?:credit balance is too low|insufficient (?:balance|credits?|quota))", re.IGNORECASE
)

# The words of OpenAI, vLLM, SGLang, llama.cpp, TGI, Mistral, Gemini and Anthropic.
_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size)|maximum (?:model|input|prompt) length|too many (?:input )?tokens"
    r"|(?:prompt|input) is too long|input token count|inputs. tokens|string_above_max_length|input_tokens",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What an error may say of a server; nothing of it is secret."""

    address: str
    """Without credentials and query."""
    model: str
    api_key_env: str | None
    """The name of the environment variable that holds the key; None: no key was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerError:
    """An error reply, as far as it follows OpenAI's; `words` are all its texts, never to be shown."""

    status: int
    codes: Collection[str]
    """Its code and its type, in small letters."""
    parameter: str | None
    """The key of the request's body that it names."""
    words: str
    message: str = ""
    """What it says in prose, never to be shown either."""

    def has(self, codes: Collection[str]) -> bool:
        """Return whether it has one of `codes`."""
        return not set(codes).isdisjoint(self.codes)


def read_error(status: int, body: bytes) -> ServerError:
    """Read the body of a reply that is no success, whatever it is."""
    found = _json(body)
    if isinstance(found, list) and found:  # Gemini's
        found = found[0]
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        words = error if isinstance(error, str) else body.decode(errors="replace")
        return ServerError(status=status, codes=(), parameter=None, words=words, message=words)
    codes = tuple(str(error[key]).lower() for key in ("code", "type") if error.get(key) is not None)
    named = error.get("param")
    parameter = re.split(r"[.\[]", named.removeprefix("body."))[0] if isinstance(named, str) else None
    said = error.get("message", error.get("detail", ""))
    words = f"{' '.join(codes)} {named} {said}"
    return ServerError(status=status, codes=codes, parameter=parameter, words=words, message=str(said))


def judge(error: ServerError, *, server: Server, body_keys: Collection[str]) -> tuple[ErrorKind, str]:
    """Return what can be done about an error, and why the call gave no answer.

    `body_keys` are the keys of the body that all calls share: one that the server refuses, it always refuses.
    """
    status = error.status
    if (reason := _fatal_reason(error, server=server, body_keys=body_keys)) is not None:
        return ErrorKind.FATAL, reason
    if status in LOST:
        return ErrorKind.LOST, f"no answer came back from the server ({status})"
    if status in BUSY:
        return ErrorKind.BUSY, f"the server is busy ({status})"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ErrorKind.BUSY, f"the server failed ({status})"
    if _is_too_long(error):
        return ErrorKind.TOO_LONG, f"the prompt is too long for the model ({status})"
    is_filtered = CONTENT_FILTER in error.codes
    refusal = "the server's content filter refuses the prompt" if is_filtered else "the server refuses the call"
    return ErrorKind.BAD_CALL, f"{refusal} ({status})"


def _is_too_long(error: ServerError) -> bool:
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return True
    return error.status in INVALID and _TOO_LONG.search(error.words) is not None


def _fatal_reason(error: ServerError, *, server: Server, body_keys: Collection[str]) -> str | None:
    """Return why no call can succeed, and what to do; None: others may."""
    status, address, reason = error.status, server.address, None
    if _is_out_of_quota(error):
        reason = f"the account at {address} is out of quota ({status}). Raise its limit, or wait for the next period."
    elif _is_keyless(error) and server.api_key_env is None:
        reason = f"{address} wants an API key ({status}). Name its environment variable in {INTEREST}.api_key_env."
    elif _is_keyless(error):
        reason = f"{address} refuses the API key ({status}). Correct the environment variable {server.api_key_env}."
    elif status == HTTPStatus.FORBIDDEN:
        key = f"the API key in {server.api_key_env}" if server.api_key_env else "calls without an API key"
        reason = f"{address} does not allow {key} to use the model {server.model!r} ({status}). Ask for access to it."
    elif _is_nowhere(error, model=server.model):
        reason = (
            f"{address} does not know the model {server.model!r}, or takes no chat calls ({status})."
            f" Correct {INTEREST}.model or {INTEREST}.base_url."
        )
    elif status in INVALID and error.parameter in body_keys and not _is_too_long(error):
        reason = f"{address} refuses the parameter {error.parameter!r} ({status}). Correct it in {INTEREST}."
    return reason


def _is_out_of_quota(error: ServerError) -> bool:
    if error.status == HTTPStatus.PAYMENT_REQUIRED:
        return True
    if error.status not in {*INVALID, HTTPStatus.TOO_MANY_REQUESTS}:
        return False
    return error.has(NO_QUOTA) or _NO_QUOTA_WORDS.match(error.message) is not None


def _is_keyless(error: ServerError) -> bool:
    if error.status == HTTPStatus.UNAUTHORIZED:
        return True
    return error.status in INVALID and (error.has(NO_KEY) or _NO_KEY_WORDS.match(error.message) is not None)


def _is_nowhere(error: ServerError, *, model: str) -> bool:
    """Return whether the model is not known, or the path takes no calls; the model's name may stand anywhere."""
    if error.status in NOWHERE:
        return True
    said = error.message.replace(model, "")
    return error.status in INVALID and (error.has(NO_MODEL) or _NO_MODEL_WORDS.match(said) is not None)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Return how long the server asks to wait: `retry-after-ms`, else `Retry-After` in seconds or as a date.

    Header names are looked up as they are written here, so `headers` has to ignore their case.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1_000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp(), 0.0)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return max(number, 0.0) if math.isfinite(number) else None


def read_answer(
    body: bytes, *, call_id: int, seconds: float, input_estimate: Callable[[], int], max_output_tokens: int
) -> ChatAnswer | None:
    """Return the answer of a successful reply; None: there is none in it.

    Where the server does not say how many tokens a call took, `input_estimate` and the most output stand for them.
    """
    found = _json(body)
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(message := choice.get("message"), dict):
        return None
    usage = _table(found, "usage")
    input_tokens = _count(usage, "prompt_tokens")
    if input_tokens is None:
        input_tokens = input_estimate()
    output_tokens = _count(usage, "completion_tokens")
    cached_tokens = _count(_table(usage, "prompt_tokens_details"), "cached_tokens") or 0
    return ChatAnswer(
        call_id=call_id,
        text=_text(message.get("content")),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        input_tokens=input_tokens,
        output_tokens=max_output_tokens if output_tokens is None else output_tokens,
        cached_tokens=min(cached_tokens, input_tokens),
        seconds=seconds,
    )


def model_context(body: bytes, *, model: str) -> tuple[bool, int | None]:
    """Return whether a list of models has `model`, and the context that vLLM states for it."""
    found = _json(body)
    cards = found.get("data") if isinstance(found, dict) else None
    for card in cards if isinstance(cards, list) else []:
        if isinstance(card, dict) and card.get("id") == model:
            return True, _count(card, "max_model_len") or None
    return False, None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _table(found: Any, key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _count(found: Mapping[str, Any], key: str) -> int | None:
    """Return a count; None: it is not said, or nonsense."""
    value = found.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= MOST_TOKENS else None


def _text(content: Any) -> str:
    """Return a message's content, which some servers send in parts; half a letter, which nobody can store, as `?`."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""
