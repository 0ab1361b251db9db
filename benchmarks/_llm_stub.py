"""What the stub of an OpenAI-compatible server answers: texts made from a hash of the prompt, and faults on demand.

Its error messages repeat the prompt and the key, as those of some servers do: neither may ever come out on the
client's side.
"""

import asyncio
import json
import random
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol

FAULTS = {
    "timeout": "no reply until the client gives up",
    "drop": "the connection is closed, before or after the headers",
    "truncate": "half of the body, then the connection is closed",
    "garbage": "200 and a body that is not JSON",
    "nochoice": "200 without choices",
    "empty": "200 with an empty text",
    "echo": "200 with the prompt as text",
    "think": "200 with a reasoning block before the text",
    "cutoff": "200 with half of the text, finish_reason length",
    "filter": "200 without text, finish_reason content_filter",
    "quota": "429 of an account that is out of quota",
}
"""What `--faults` knows; any status from 400 on is a fault too; 429, 503 and 504 come with Retry-After."""

BLOCK = 16
"""Tokens per block of the simulated prefix cache; a token is a word."""

SUBJECTS = ("The reader", "This viewer", "The customer", "This person")
VERBS = ("leans toward", "keeps returning to", "rates highly", "has a lasting taste for")
TASTES = ("slow dramas", "clever thrillers", "warm comedies", "classic westerns", "quiet mysteries", "bold adventures")
MAKERS = ("well known studios", "independent makers", "European directors", "first-time authors", "veteran crews")
ASIDES = ("rarely finishes long series", "avoids loud sequels", "is patient with old works", "is wary of remakes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the stub behaves."""

    latency_s: float = 0.0
    """Seconds from a call to its reply."""
    model: str = "stub"
    api_key: str | None = None
    refusal: int = 401
    """Status of a call with another key."""
    context_tokens: int | None = None
    faults: str = ""
    """Names with their shares, for example `timeout=0.05,429=0.05`."""
    seed: int = 0
    retry_after: str = "1"
    """Value of the header Retry-After; `date`: a date one second ahead; `none`: no header."""
    usage: str = "full"
    """`full`, `null` (no details) or `none` (no usage)."""
    refused_key: str | None = None
    """A key of the body that is answered with 400, as OpenAI's newer models do with max_tokens."""
    models_status: int = 200
    """Status of GET /models."""


def answer_text(prompt: str) -> str:
    """Return the text for a prompt: plain English that is the same each time and repeats nothing of the prompt."""
    draw = random.Random(zlib.crc32(prompt.encode()))
    first, second = draw.sample(TASTES, 2)
    return (
        f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {first} by {draw.choice(MAKERS)}, with some room for {second}."
        f" About {draw.randint(2, 9)} of ten choices were liked. Someone like this {draw.choice(ASIDES)}"
        f" and {draw.choice(ASIDES)}; profile {draw.getrandbits(32):08x}."
    )


class PrefixCache:
    """Blocks of words that were seen after the same beginning."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def cached(self, words: list[str]) -> int:
        """Return how many of the first words are cached, and cache all whole blocks."""
        key, hits, is_hit = 0, 0, True
        for left in range(0, len(words) - BLOCK + 1, BLOCK):
            key = hash((key, *words[left : left + BLOCK]))
            is_hit = is_hit and key in self._seen
            hits += is_hit
            self._seen.add(key)
        return hits * BLOCK


class Counts:
    """What the stub was asked for since it started, or since POST /reset."""

    def __init__(self) -> None:
        self.calls = self.max_in_flight = self.repeated = self.answered_again = 0
        self.statuses: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.prompts: set[int] = set()
        self.answered: set[int] = set()

    def take(self, prompt: int) -> None:
        """Count a call by the hash of its prompt."""
        self.calls += 1
        self.repeated += prompt in self.prompts
        self.prompts.add(prompt)

    def as_json(self, *, in_flight: int) -> dict[str, Any]:
        """Return all counts; `answered_again` are good answers to prompts that had one before."""
        return {
            "calls": self.calls,
            "statuses": dict(self.statuses),
            "faults": dict(self.faults),
            "in_flight": in_flight,
            "max_in_flight": self.max_in_flight,
            "distinct_prompts": len(self.prompts),
            "repeated_prompts": self.repeated,
            "answered_prompts": len(self.answered),
            "answered_again": self.answered_again,
        }


class Line(Protocol):
    """A connection, as the stub needs it."""

    timer: asyncio.TimerHandle | None

    def begin_call(self) -> None:
        """Count a call in flight."""
        ...

    def end_call(self) -> None:
        """Count it no more."""
        ...

    def reply(self, status: int, payload: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response; a payload that is a text goes out as it is, anything else as JSON."""
        ...

    def send_part(self, status: int, payload: Any, *, share: float | None) -> None:
        """Send the headers and a share of the body (None: nothing at all), and close."""
        ...


@dataclass(kw_only=True, slots=True)
class Call:
    """One chat call under way."""

    fault: str
    request: dict[str, Any]
    prompt: str
    prompt_hash: int
    words: list[str]


class Stub:
    """The server's state; its connections hand their requests to `handle`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()
        self.in_flight = 0
        self._cache = PrefixCache()
        self._fault_draw, self._drop_draw = random.Random(settings.seed), random.Random(settings.seed)
        self._faults = [(name, float(share)) for name, _, share in _pairs(settings.faults)]
        unknown = [name for name, _ in self._faults if name not in FAULTS and not _is_status(name)]
        if unknown:
            raise SystemExit(f"fault {unknown[0]!r} is not known. Known are statuses from 400 on, {', '.join(FAULTS)}.")

    def handle(self, connection: Line, head: bytes, body: bytes) -> None:
        """Answer one request, now or after the latency."""
        method, path = head.split(b" ", 2)[:2]
        if path.endswith(b"/chat/completions"):
            self._chat(connection, head, body)
        elif path.endswith(b"/models"):
            connection.reply(*self._models(head))
        elif path == b"/counts":
            connection.reply(200, self.counts.as_json(in_flight=self.in_flight))
        elif path == b"/reset" and method == b"POST":
            self.counts = Counts()
            connection.reply(200, {})
        else:
            connection.reply(404, {"detail": "Not Found"})

    def finish(self, connection: Line, call: Call, status: int, payload: Any, headers: Mapping[str, str]) -> None:
        """Send what the call's fault makes of its reply."""
        if call.fault:
            self.counts.faults[call.fault] += 1
        if call.fault == "timeout":
            return  # the connection stays open, and the call in flight, until the client closes it
        connection.end_call()
        self.counts.statuses[str(status)] += 1
        if status == 200 and call.fault in {"", "think"}:  # noqa: PLR2004
            self.counts.answered_again += call.prompt_hash in self.counts.answered
            self.counts.answered.add(call.prompt_hash)
        if call.fault == "drop":
            connection.send_part(status, payload, share=self._drop_draw.choice((None, 0.0)))
        elif call.fault == "truncate":
            connection.send_part(status, payload, share=0.5)
        elif call.fault == "garbage":
            connection.reply(200, "<html>busy</html>")
        else:
            connection.reply(status, payload, headers=headers)

    def _chat(self, connection: Line, head: bytes, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.settings.latency_s  # what is worked out until then takes no time of its own
        request = json.loads(body)
        prompt = "\n".join(message["content"] for message in request["messages"])
        call = Call(fault=self._fault(), request=request, prompt=prompt, prompt_hash=hash(prompt), words=prompt.split())
        self.counts.take(call.prompt_hash)
        refusal = self._refusal(head, call)
        if refusal is not None:
            self.counts.statuses[str(refusal[0])] += 1
            connection.reply(*refusal)
            return
        connection.begin_call()
        self.counts.max_in_flight = max(self.counts.max_in_flight, self.in_flight)
        connection.timer = loop.call_at(due, self.finish, connection, call, *self._reply(call))

    def _fault(self) -> str:
        point = self._fault_draw.random()
        for name, share in self._faults:
            point -= share
            if point < 0:
                return name
        return ""

    def _models(self, head: bytes) -> tuple[int, Any]:
        denied = self._denied(head)
        if denied is not None:
            return denied
        if self.settings.models_status >= 400:  # noqa: PLR2004
            return _error(self.settings.models_status, "no list of models here")
        card = {"id": self.settings.model, "object": "model", "max_model_len": self.settings.context_tokens}
        return self.settings.models_status, {"object": "list", "data": [card]}

    def _denied(self, head: bytes) -> tuple[int, Any] | None:
        key = header_of(head, b"authorization").removeprefix("Bearer ")
        if self.settings.api_key in {None, key}:
            return None
        return _error(self.settings.refusal, f"Incorrect API key provided: {key}.", code="invalid_api_key")

    def _refusal(self, head: bytes, call: Call) -> tuple[int, Any] | None:
        """Return the error that every call of this kind gets, whatever its fault."""
        denied = self._denied(head)
        if denied is not None:
            return denied
        nasty = f"Your key is {header_of(head, b'authorization')} and your prompt was: {call.prompt}"
        model, limit, refused = call.request["model"], self.settings.context_tokens, self.settings.refused_key
        if model != self.settings.model:
            return _error(404, f"The model `{model}` does not exist. {nasty}", code="model_not_found")
        if refused in call.request:
            return _error(400, f"Unsupported parameter. {nasty}", code="unsupported_parameter", param=refused)
        if limit is not None and len(call.words) + _output_limit(call.request) > limit:
            message = f"This model's maximum context length is {limit} tokens. {nasty}"
            return _error(400, message, code="context_length_exceeded", param="messages")
        return None

    def _reply(self, call: Call) -> tuple[int, Any, Mapping[str, str]]:
        if _is_status(call.fault):
            error = _error(int(call.fault), f"Try again later. Your prompt was: {call.prompt}", code="overloaded")
            return (*error, self._retry_after() if call.fault in {"429", "503", "504"} else {})
        if call.fault == "quota":
            return (*_error(429, f"You exceeded your quota. {call.prompt}", code="insufficient_quota"), {})
        return 200, self._completion(call), {}

    def _retry_after(self) -> Mapping[str, str]:
        value = self.settings.retry_after
        if value == "none":
            return {}
        return {"Retry-After": formatdate(time.time() + 1, usegmt=True) if value == "date" else value}

    def _completion(self, call: Call) -> dict[str, Any]:
        text, reason = answer_text(call.prompt), "stop"
        words = text.split()
        limit = _output_limit(call.request)
        if call.fault == "cutoff" or len(words) > limit:
            text, reason = " ".join(words[: min(len(words) // 2, limit)]), "length"
        elif call.fault in {"empty", "filter"}:
            text, reason = "", "stop" if call.fault == "empty" else "content_filter"
        elif call.fault == "echo":
            text = call.request["messages"][-1]["content"]
        elif call.fault == "think":
            text = f"<think>\nThe user wants a text of me. Let me see.\n</think>\n\n{text}"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {
            "id": f"chatcmpl-{self.counts.calls}",
            "object": "chat.completion",
            "created": 0,
            "model": self.settings.model,
            "choices": [] if call.fault == "nochoice" else [choice],
            **self._usage(call, output=len(text.split())),
        }

    def _usage(self, call: Call, *, output: int) -> dict[str, Any]:
        given, cached = len(call.words), self._cache.cached(call.words)
        if self.settings.usage == "none":
            return {}
        details = {"cached_tokens": cached} if self.settings.usage == "full" else None
        usage = {"prompt_tokens": given, "completion_tokens": output, "total_tokens": given + output}
        return {"usage": {**usage, "prompt_tokens_details": details}}


def header_of(head: bytes, name: bytes) -> str:
    """Return a header of a request, by its name in lower case."""
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip().decode() if at >= 0 else ""


def _error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def _output_limit(request: Mapping[str, Any]) -> int:
    return int(request.get("max_completion_tokens") or request.get("max_tokens") or 10_000)


def _is_status(name: str) -> bool:
    return name.isdecimal() and 400 <= int(name) <= 599  # noqa: PLR2004


def _pairs(faults: str) -> list[tuple[str, str, str]]:
    return [fault.strip().partition("=") for fault in faults.split(",") if fault.strip()]
