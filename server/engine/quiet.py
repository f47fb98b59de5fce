"""What vLLM's log must not say: anything that a user wrote.

Owns a filter on one of vLLM's loggers. When a step of the engine fails, vLLM describes its
requests: of prompts and answers the lengths, but sampling parameters whole, with the stop words,
choices and schemas that users sent. What failed, and where, is in the lines around it and stays.
"""

from __future__ import annotations

import logging

DUMP = "vllm.logging_utils.dump_input"


def keep_texts_out() -> None:
    """In this process, whenever vLLM's logging is configured. Can be called again."""
    logging.getLogger(DUMP).addFilter(_describes_no_request)


def _describes_no_request(record: logging.LogRecord) -> bool:
    return "scheduler output" not in str(record.msg)
