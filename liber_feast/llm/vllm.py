"""A language model in this process: `vllm.LLM.chat`, chunk by chunk, with its prefix cache on.

A thread of its own runs one chunk after the other, so that the answers of a chunk are checked and committed while the
next one runs. Prompts are sorted within a chunk: static text stands first in them, so those that share the most of it
are neighbors, and all but the first find it in the prefix cache.

What the model's `generation_config.json` asks for holds here as it does on vLLM's server, so that both answer alike;
the engine argument `generation_config: vllm` turns it off.
"""

import copy
import dataclasses
import difflib
import inspect
import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from queue import Empty, SimpleQueue
from textwrap import shorten
from threading import Condition, Thread
from typing import Any

from pydantic import ValidationError

from liber_feast.errors import BackendRefused, BackendUnreachable, ConfigError, MissingExtra, one_line
from liber_feast.interest_config import INTEREST, OWN_ENGINE, OWN_SAMPLING
from liber_feast.llm.chat import ChatAnswer, ChatCall, ChatError, ChatResult, ErrorKind
from liber_feast.prompt import Message

# vLLM logs to stdout, where our commands write their results. It reads this when it is imported.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")

try:
    from jinja2 import TemplateError
    from vllm import LLM, EngineArgs, SamplingParams
    from vllm.exceptions import VLLMClientError, VLLMServerError
    from vllm.sampling_params import StructuredOutputsParams
except ModuleNotFoundError as error:
    raise MissingExtra(package=error.name or "vllm", extra="vllm") from error
except (ImportError, OSError) as error:  # a library below it is missing or was built for another machine
    raise ConfigError(f"vLLM is installed and cannot be loaded: {one_line(error)}") from error

SECRET = "hf_token"
"""An engine argument that is not for files."""

HEARTBEAT_S = 1.0
"""How often a call that waits looks whether the engine is still there."""

LONGEST_COMPLAINT = 300
"""Characters of an error of vLLM that are quoted; some give advice in many sentences."""

SAMPLING_KEYS: tuple[str, ...] = SamplingParams.__struct_fields__

_BAD_PROMPT = (VLLMClientError, ValueError, TemplateError)
_BROKEN_ENGINE = (VLLMServerError, RuntimeError, AssertionError, TypeError, LookupError, OSError)


class VllmBackend:
    """`ChatBackend` over an engine of this process; `chunk_size` calls run together.

    Raises:
        ConfigError: an unknown engine argument or sampling parameter, or a value that vLLM does not take.
        BackendRefused: the model cannot be loaded.
    """

    def __init__(
        self,
        *,
        model: str,
        dtype: str,
        max_model_len: int | None,
        tensor_parallel_size: int,
        engine: Mapping[str, Any],
        chunk_size: int,
        temperature: float,
        max_output_tokens: int,
        sampling: Mapping[str, Any],
        answer_schema: Mapping[str, Any] | None = None,
    ) -> None:
        own: dict[str, Any] = {"temperature": temperature, "max_tokens": max_output_tokens}
        if answer_schema is not None:
            own["structured_outputs"] = {"json": dict(answer_schema)}
        _check_keys(engine, known=_engine_keys() - {*OWN_ENGINE}, block="engine", of="vllm.LLM")
        _check_keys(sampling, known={*SAMPLING_KEYS} - {*OWN_SAMPLING}, block="sampling", of="vllm.SamplingParams")
        _sampling_params(own, sampling)  # a bad value is found before the model is loaded
        self._model = model
        self._llm: Any = _start(
            model,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            engine=engine,
        )
        self._sampling = _sampling_params(self._llm.model_config.get_diff_sampling_param(), own, sampling)
        # A tokenizer is not for two threads at once: the engine's thread sets how its own one cuts texts.
        self._chat_template: str | None = self._llm.chat_template
        self._tokenizer: Any = copy.deepcopy(self._llm.get_tokenizer())
        self._counted: tuple[Sequence[Message], int] = ((), 0)
        self._chunk_size = chunk_size
        self.max_in_flight = 2 * chunk_size
        self.max_output_tokens = max_output_tokens
        self.context_tokens: int | None = int(self._llm.model_config.max_model_len)
        self._waiting: deque[ChatCall] = deque()
        self._is_closed = False
        self._changed = Condition()  # guards the two above
        self._done: SimpleQueue[Sequence[ChatResult] | BaseException] = SimpleQueue()
        self._uncollected_count = 0
        self._worker = Thread(target=self._work, name="vllm", daemon=True)
        self._worker.start()

    def check(self) -> bool:
        """Render a prompt; the model is there, so there is nobody to ask.

        Raises:
            BackendRefused: the model has no chat template, or one that takes no system message.
        """
        messages: list[Message] = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        try:
            self.count_tokens(messages)
        except _BAD_PROMPT as error:
            raise BackendRefused(
                f"The chat template of model {self._model!r} cannot be used: {_first_line(error)}"
                f" Take a model that was tuned to follow instructions, or set {INTEREST}.engine.chat_template."
            ) from error
        return True

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt in tokens, with the model's chat template."""
        ids = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        self._counted = messages, len(ids)
        return len(ids)

    def most_tokens(self, messages: Sequence[Message]) -> int:
        """Return what `count_tokens` says, which is exact."""
        counted, count = self._counted
        return count if counted is messages else self.count_tokens(messages)

    def submit(self, calls: Sequence[ChatCall]) -> None:
        """Queue calls for the next chunks."""
        self._uncollected_count += len(calls)
        with self._changed:
            self._waiting.extend(calls)
            self._changed.notify()

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatResult]:
        """Return the results of the chunks that have ended, waiting for the first at most `timeout_s` if one is due.

        Raises:
            BackendUnreachable: the engine broke down.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        results: list[ChatResult] = []
        while self._uncollected_count and not results:
            left_s = deadline - time.monotonic()
            try:
                results += _results_of(self._done.get(timeout=max(0, min(left_s, HEARTBEAT_S))))
            except Empty:
                self._check_heart()
                if left_s <= HEARTBEAT_S:
                    break
        while not self._done.empty():
            chunk = self._done.get()
            if isinstance(chunk, BaseException) and results:  # what is there is paid for; the error comes next time
                self._done.put(chunk)
                break
            results += _results_of(chunk)
        self._uncollected_count -= len(results)
        return results

    def close(self) -> None:
        """Give up the calls that wait, let the running chunk end, and shut the engine down."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._llm is not None and not self._is_dead():
            self._worker.join()
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None

    def _is_dead(self) -> bool:
        """Whether the engine was a process of its own and is gone; vLLM then waits for its answers for good."""
        resources = getattr(self._llm.llm_engine.engine_core, "resources", None)
        return bool(getattr(resources, "engine_dead", False))

    def _check_heart(self) -> None:
        if self._is_dead() or not self._worker.is_alive():
            raise BackendUnreachable("vLLM's engine is gone; its log may say why.")

    def _work(self) -> None:
        """Run chunk after chunk until there is nothing more to come."""
        try:
            while calls := self._next_chunk():
                self._done.put(self._chat(calls))
        except _BROKEN_ENGINE as error:
            self._done.put(error)
        except BaseException as error:
            self._done.put(error)
            raise

    def _next_chunk(self) -> list[ChatCall]:
        """Wait for calls, and return at most `chunk_size` of them in the order in which they share most; []: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            count = 0 if self._is_closed else min(len(self._waiting), self._chunk_size)
            calls = [self._waiting.popleft() for _ in range(count)]
        return sorted(calls, key=lambda call: [message["content"] for message in call.messages])

    def _chat(self, calls: Sequence[ChatCall]) -> list[ChatResult]:
        """Run calls together; where one cannot be run, halve them until it stands alone.

        A call's seconds are those of the `LLM.chat` that it ran in.
        """
        start = time.perf_counter()
        try:
            outputs = self._llm.chat([list(call.messages) for call in calls], self._sampling, use_tqdm=False)
        except _BAD_PROMPT as error:
            if len(calls) == 1:
                return [self._refused(calls[0], error=error)]
            half = len(calls) // 2
            return [*self._chat(calls[:half]), *self._chat(calls[half:])]
        seconds = time.perf_counter() - start
        return [_answer(call, output, seconds=seconds) for call, output in zip(calls, outputs, strict=True)]

    def _refused(self, call: ChatCall, *, error: Exception) -> ChatError:
        """Return why a call cannot be run, without vLLM's words: they may repeat the prompt."""
        try:
            is_too_long = self.context_tokens is not None and self.count_tokens(call.messages) >= self.context_tokens
        except _BAD_PROMPT:
            is_too_long = False
        if is_too_long:
            reason = f"prompt longer than the {self.context_tokens} tokens of the model"
            return ChatError(call_id=call.call_id, kind=ErrorKind.TOO_LONG, reason=reason)
        reason = f"vLLM does not take the prompt ({type(error).__name__})"
        return ChatError(call_id=call.call_id, kind=ErrorKind.BAD_CALL, reason=reason)


def _results_of(chunk: Sequence[ChatResult] | BaseException) -> Sequence[ChatResult]:
    if isinstance(chunk, _BROKEN_ENGINE):
        cause = shorten(
            f"{type(chunk).__name__}: {one_line(chunk)}".rstrip(":. "), LONGEST_COMPLAINT, placeholder=" ..."
        )
        raise BackendUnreachable(f"vLLM's engine broke down ({cause}). Its log may say more.") from chunk
    if isinstance(chunk, BaseException):
        raise chunk
    return chunk


def _answer(call: ChatCall, output: Any, *, seconds: float) -> ChatAnswer:
    best = output.outputs[0]
    return ChatAnswer(
        call_id=call.call_id,
        text=best.text,
        finish_reason=best.finish_reason or "",
        input_tokens=len(output.prompt_token_ids),
        output_tokens=len(best.token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        seconds=seconds,
    )


def _start(
    model: str, *, dtype: str, max_model_len: int | None, tensor_parallel_size: int, engine: Mapping[str, Any]
) -> Any:
    arguments = {"enable_prefix_caching": True, **engine}
    try:
        return LLM(
            model,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            **arguments,
        )
    except (*_BAD_PROMPT, *_BROKEN_ENGINE, OSError, TypeError, AssertionError) as error:
        raise BackendRefused(
            f"vLLM cannot start with model {model!r}: {_first_line(error)} Correct {INTEREST}: model, dtype,"
            " max_model_len, tensor_parallel_size or engine."
        ) from error


def _engine_keys() -> set[str]:
    """Return every argument of `vllm.LLM` by name."""
    named = inspect.signature(LLM.__init__).parameters.keys() - {"self", "kwargs"}
    return named | {field.name for field in dataclasses.fields(EngineArgs)}


def _check_keys(given: Mapping[str, Any], *, known: Set[str], block: str, of: str) -> None:
    for key in given:
        if key == SECRET:
            raise ConfigError(f"{INTEREST}.{block}.{key}: keys do not stand in files. Set HF_TOKEN in the environment.")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{INTEREST}.{block}: {of} has no argument {key!r} that can be set here.{hint}")


def _sampling_params(*layers: Mapping[str, Any]) -> Any:
    """Return sampling parameters; where a key is in several layers, the last holds."""
    merged = {key: value for layer in layers for key, value in layer.items()}
    try:
        if isinstance(merged.get("structured_outputs"), Mapping):
            merged["structured_outputs"] = StructuredOutputsParams(**merged["structured_outputs"])
        return SamplingParams(**merged)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise ConfigError(f"{INTEREST}.sampling: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return vLLM's complaint about a configuration as one line; pydantic's without its preface and its links."""
    line = one_line(error)
    if isinstance(error, ValidationError):
        found = error.errors()[0]
        line = ": ".join([*(str(part) for part in found["loc"][:1]), " ".join(found["msg"].split())])
    return shorten(line.removeprefix("Value error, ").rstrip("."), LONGEST_COMPLAINT, placeholder=" ...") + "."
