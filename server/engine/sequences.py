"""What the engine counts of each sequence, handed to the meter of the request that asks for it.

Owns a subclass of vLLM's output processor that notes a sequence when it is added, and nothing
afterwards: vLLM keeps its counters as tokens come, for its own metrics, and here they are only
kept in reach. So a stream costs the same with and without a meter, and an answer whose client has
gone is counted, too. What vLLM adds outside of a request (the canary's questions) has no meter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest

from server.meter import metered


class EngineSequence:
    """`server.meter.Sequence` over vLLM's counters of one sequence."""

    def __init__(self, processor: OutputProcessor, request_id: str, is_first: bool) -> None:
        state = processor.request_states[request_id]
        self._processor = processor
        self._request_id = request_id
        self._stats = state.stats
        self.prompt_tokens = int(state.prompt_len) if is_first else 0

    @property
    def completion_tokens(self) -> int:
        return int(self._stats.num_generation_tokens)

    @property
    def first_token_at(self) -> float | None:
        if not self._stats.num_generation_tokens:
            return None
        return float(self._stats.arrival_time + self._stats.first_token_latency)

    @property
    def decode_seconds(self) -> float:
        return float(self._stats.last_token_ts - self._stats.first_token_ts)

    @property
    def in_flight(self) -> bool:
        return self._request_id in self._processor.request_states


class CountedOutputs(OutputProcessor):  # type: ignore[misc]  # vLLM is untyped to us
    """vLLM's output processor; a new sequence is noted in its request's meter."""

    def add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None = None,
        request_index: int = 0,
        queue: RequestOutputCollector | None = None,
    ) -> None:
        super().add_request(request, prompt, parent_req, request_index, queue)
        if meter := metered():
            sequence = EngineSequence(self, request.request_id, is_first=request_index == 0)
            meter.sequences.append(sequence)


def told(metadata: Any) -> Callable[[], tuple[int, int] | None]:
    """The usage that an answer states, once it has; `metadata` is vLLM's of the request."""

    def usage() -> tuple[int, int] | None:
        stated = metadata and metadata.final_usage_info
        return stated and (stated.prompt_tokens, stated.completion_tokens or 0)

    return usage
