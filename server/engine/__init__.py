"""The engine room: what runs vLLM, here (`vllm.py`) and in its worker (`worker.py` and others)."""
