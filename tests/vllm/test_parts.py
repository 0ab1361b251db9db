"""Texts in parts on the real engine and its server: answers are held to the schema, and plain ones to none."""

import subprocess
import sys
from pathlib import Path

import pytest

from liber_feast.llm.chat import ChatAnswer, ChatBackend, ChatCall
from liber_feast.llm.openai import OpenAIBackend
from liber_feast.llm.parts_answer import answer_schema
from liber_feast.parts import PARTS, PLAIN
from liber_feast.prompt import load_prompt
from tests.test_prompt import sample, summary_request
from tests.vllm.parts import MAX_OUTPUT_TOKENS, ask, open_engine
from tests.vllm.server import MODEL, VllmServer

BEGINNING = '{"likes":"'
IN_PROCESS = """
from benchmarks import _vllm_cpu
_vllm_cpu.set_environment()
import sys
from tests.vllm.test_parts import beginning_of, open_parts
print(beginning_of(open_parts(sys.argv[1])))
"""


def open_parts(model: Path | str) -> ChatBackend:
    return open_engine(model, answer_schema=answer_schema(PARTS))


def beginning_of(backend: ChatBackend) -> str:
    """Return the first letters of an answer to the question for parts, without spaces."""
    messages = load_prompt("movielens").in_form(PARTS).render_summary(summary_request(sample("movielens", which=0)))
    try:
        (answer,) = ask(backend, [ChatCall(call_id=0, messages=messages)])
    finally:
        backend.close()
    assert isinstance(answer, ChatAnswer), answer
    return "".join(answer.text.split())[: len(BEGINNING)]


@pytest.mark.parametrize("form", [PLAIN, PARTS])
def test_the_server_holds_answers_in_parts_to_the_schema(server: VllmServer, form: str) -> None:
    backend = OpenAIBackend(
        model=MODEL,
        base_url=server.base_url,
        api_key=None,
        api_key_env=None,
        max_concurrency=1,
        timeout_s=60.0,
        temperature=0.0,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        context_tokens=None,
        tokenizer=None,
        extra_body={},
        answer_schema=answer_schema(form),
    )
    assert (beginning_of(backend) == BEGINNING) == (form == PARTS)


def test_the_engine_in_a_process_holds_answers_in_parts_to_the_schema(model: Path) -> None:
    # A process of its own: two engines of one process share what the first one that ends takes away.
    command = [sys.executable, "-c", IN_PROCESS, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == BEGINNING
