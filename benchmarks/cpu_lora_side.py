"""One side of `cpu_lora.py`: a vLLM engine in a process that decodes when it is told to.

Reads "STREAMS ADAPTERS TOKENS" lines from its input and answers each with tokens a second; the
first line that it writes is "ready". Whether our correction is in it, its environment says.

    python -m benchmarks.cpu_lora_side BASE ADAPTER...
"""

from __future__ import annotations

import sys
import time
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def decode(llm: Any, adapters: list[LoRARequest], streams: int, tokens: int) -> float:
    """Tokens a second of so many streams, the adapters in turn; none for the base."""
    chosen = [adapters[i % len(adapters)] for i in range(streams)] if adapters else None
    prompts = [{"prompt_token_ids": [5 + i, 6, 7, 8]} for i in range(streams)]
    greedy = SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens)
    began = time.perf_counter()
    llm.generate(prompts, greedy, lora_request=chosen, use_tqdm=False)
    return streams * tokens / (time.perf_counter() - began)


def main() -> None:
    base, *folders = sys.argv[1:]
    llm = LLM(
        base,
        enable_lora=True,
        max_loras=len(folders),
        max_lora_rank=16,
        kv_cache_memory_bytes=128 * 2**20,
        distributed_executor_backend="uni",
    )
    adapters = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(folders)]
    print("ready", flush=True)
    for line in sys.stdin:
        streams, count, tokens = map(int, line.split())
        print(decode(llm, adapters[:count], streams, tokens), flush=True)


if __name__ == "__main__":
    main()
