"""What vLLM says of a failed step: with our plugin nothing that a user wrote, without it more."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import sys
from types import SimpleNamespace
from vllm import SamplingParams
from vllm.logging_utils.dump_input import dump_engine_exception
from vllm.plugins import load_general_plugins
from vllm.v1.core.sched.output import NewRequestData
if sys.argv[1] == "with":
    load_general_plugins()
request = NewRequestData(
    req_id="1", prompt_token_ids=[1, 2], mm_features=[], pooling_params=None, block_ids=([0],),
    sampling_params=SamplingParams(stop=["a-users-word"]), num_computed_tokens=0, lora_request=None,
)
dump_engine_exception("the config", SimpleNamespace(scheduled_new_reqs=[request]), None)
"""


def said(how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAYS, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_failed_step_is_described_without_its_users_words() -> None:
    assert "a-users-word" in said("without"), "vLLM keeps users' words to itself now"
    ours = said("with")
    assert "the config" in ours
    assert "a-users-word" not in ours
