"""The engine room: what runs vLLM, in this process (`vllm.py`) and in its worker (`cpu_lora.py`)."""
