"""Answers from vLLM, in a process of its own: for base answers by the thousand.

Owns that process and the lines that go in and out. Refuses what the answers are for. The
process ends when the answers are there, so its memory is free again for training; each
batch is handed over as it is done, so a killed run loses no more than one.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from training.encoding import Tokens
from training.errors import ModelError
from training.generation import Completion

ANSWERS_A_BATCH = 512
MEMORY_SHARE = 0.5
"""Of a GPU, for vLLM: the base that is to be trained is already on it."""
KV_CACHE_BYTES = 2**30
"""Of a CPU's memory, for the keys and values of running answers."""


def complete_with_vllm(
    model: str,
    prompts: Sequence[Tokens],
    *,
    stops: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    on_batch: Callable[[list[int], list[Completion]], None],
) -> None:
    """One answer a prompt from the model in folder `model`, told in batches as they are done.

    A sampled answer depends on its own seed and prompt. Raises ModelError where vLLM does
    not start or stops.
    """
    request = {
        "model": model,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "stops": list(stops),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "training.vllm_generation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    complaints: list[str] = []
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("a process without pipes")
    reader = threading.Thread(target=complaints.extend, args=(process.stderr,), daemon=True)
    reader.start()
    with process:
        try:
            json.dump(request, process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended; its own words follow
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    on_batch(*_batch_of(json.loads(line)))
        except BaseException:
            process.kill()
            raise
    reader.join()
    if process.returncode != 0:
        reason = next((line.strip() for line in reversed(complaints) if line.strip()), "no reason")
        raise ModelError(
            f"vLLM did not answer ({reason}); set anchor_engine: transformers to do without it."
        )


def _batch_of(record: dict[str, Any]) -> tuple[list[int], list[Completion]]:
    answers = [
        Completion(tuple(tokens), "stop" if reason == "stop" else "length")
        for tokens, reason in zip(record["tokens"], record["reasons"], strict=True)
    ]
    return record["indices"], answers


def _serve_one_request() -> None:
    """The other side: a request on standard input, answers on standard output."""
    import os

    request = json.load(sys.stdin)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # this process is the engine's own

    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.platforms import current_platform

    from training.config import bf16_pays

    settings: dict[str, Any] = {"gpu_memory_utilization": MEMORY_SHARE}
    if current_platform.is_cpu():
        settings = {
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "distributed_executor_backend": "uni",
            "dtype": "auto" if bf16_pays(cpu=True) else "float32",
            "enforce_eager": True,
        }
    engine = LLM(request["model"], generation_config="vllm", **settings)
    prompts, seeds = request["prompts"], request["seeds"]
    for start in range(0, len(prompts), ANSWERS_A_BATCH):
        indices = list(range(start, min(start + ANSWERS_A_BATCH, len(prompts))))
        found = engine.generate(
            [TokensPrompt(prompt_token_ids=prompts[i]) for i in indices],
            [
                SamplingParams(
                    temperature=request["temperature"],
                    seed=seeds[i],
                    max_tokens=request["max_new_tokens"],
                    stop_token_ids=request["stops"],
                    detokenize=False,
                )
                for i in indices
            ],
            use_tqdm=False,
        )
        answers = [output.outputs[0] for output in found]
        record = {
            "indices": indices,
            "tokens": [list(answer.token_ids) for answer in answers],
            "reasons": [answer.finish_reason for answer in answers],
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    _serve_one_request()
