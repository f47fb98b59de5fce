"""The environment variables under which vLLM runs here, set before anything imports vLLM.

Owns nothing else: what the engine is told through arguments is `vllm.py`'s. Variables that the
operator has set stay as they are, except those that would open doors.
"""

from __future__ import annotations

import os

DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Uploads are checked with products of small matrices, beside the engine's steps: threads for
    # them gain nothing and wait by spinning on the engine's cores.
    "OPENBLAS_NUM_THREADS": "1",
    # On one CPU the worker lives inside the engine's process: one import of everything less,
    # seconds of every start. vLLM honours it on CPUs only together with the `uni` executor.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

# Adapters arrive through the admin API only: with runtime updating vLLM would load from any path
# a client names, and would keep a lock for ever for each unknown name. Its store of responses is
# one for all tenants, and never emptied.
FORCED = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_SERVER_DEV_MODE": "0",
    "VLLM_ENABLE_RESPONSES_API_STORE": "0",
}

# The entry point of `cpu_lora.py`: without it, base requests on a CPU get others' adapters.
CORRECTION = "bapo_cpu_lora"


def prepare() -> None:
    """Set the variables of this process, which the engine's processes inherit."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(FORCED)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and CORRECTION not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [allowed, CORRECTION]))


def trace_over_http() -> None:
    """Have vLLM send its spans as we send ours; it would take gRPC by itself."""
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    os.environ.setdefault("OTEL_SERVICE_NAME", "bapo-server")
