"""What an engine that has died leaves in the server's process."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

from transformers import AutoTokenizer

from adapters.base import POCKET

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports' own
    from vllm.tokenizers.hf import get_cached_tokenizer, maybe_make_thread_pool
    from vllm.utils.func_utils import supports_kw

    from server.engine.vllm import let_go_of_tokenizers


def test_no_tokenizer_stays() -> None:
    """As vLLM wraps one for each engine and asks it with each chat."""
    loaded = get_cached_tokenizer(AutoTokenizer.from_pretrained(POCKET))
    tokenizer = maybe_make_thread_pool(copy.copy(loaded), copies=2)
    inside = weakref.ref(tokenizer.__reduce__()[1][0])
    supports_kw(tokenizer.apply_chat_template, "tools", allow_var_kwargs=False)
    del tokenizer
    gc.collect()
    assert inside() is not None, "vLLM has mended this: take it out of server/engine/vllm.py"
    let_go_of_tokenizers()
    gc.collect()
    assert inside() is None
