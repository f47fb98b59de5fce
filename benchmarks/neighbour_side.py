"""A naive neighbour's process: `transformers` and PEFT, one base, `set_adapter` for each request.

Reads "REQUESTS TOKENS" lines and answers each with "done" when every adapter has had so many
requests, in turn and one after the other, as such a process answers; the first line that it writes
is "ready".

    python -m benchmarks.neighbour_side cpu BASE ADAPTER...
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    device, base, *adapters = sys.argv[1:]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
    model = PeftModel.from_pretrained(plain, adapters[0], adapter_name="0")
    for number, folder in enumerate(adapters[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    model.eval()
    print("ready", flush=True)
    for line in sys.stdin:
        requests, tokens = map(int, line.split())
        for request in range(requests):
            for number in range(len(adapters)):
                model.set_adapter(str(number))
                prompt = torch.tensor([[5 + number, 6 + request, 7, 8]], device=device)
                with torch.inference_mode():
                    model.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        do_sample=False,
                        min_new_tokens=tokens,
                        max_new_tokens=tokens,
                    )
        print("done", flush=True)


if __name__ == "__main__":
    main()
