"""Without its package a backend says what to install, and nothing of it is imported before."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

HEAVY = {"openai", "torch", "transformers", "vllm"}
SCRIPT = """
from liber_feast.errors import MissingExtra
try:
    import liber_feast.llm.{module}
except MissingExtra as error:
    print(error.message, error.extra)
"""


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_its_backend_says_what_to_install() -> None:
    script = SCRIPT.format(module="vllm")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "vllm is not installed. Run: pip install 'liber-feast[vllm]' vllm\n"


@pytest.mark.parametrize("module", ["chat", "chat_learner", "fit"])
def test_what_every_backend_shares_loads_none(module: str) -> None:
    script = (
        f"import sys, liber_feast.llm.{module}; print({{'vllm', 'openai', 'torch', 'transformers'}} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
