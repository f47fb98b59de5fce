"""The chat template: where answers begin and end, and what is refused rather than cut."""

import pytest
from transformers import PreTrainedTokenizerFast

from training.data import PreferencePair
from training.encoding import encode_pair, encode_pairs, encode_prompt
from training.errors import DataError, ModelError

PAIR = PreferencePair("What is rain?", "Wet.", "Water that falls.")


def test_prompt_and_answers_are_what_the_template_writes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode_pair(tokenizer, PAIR)
    assert tokenizer.decode(encoded.prompt) == "<|user|>What is rain?<|end|>\n<|assistant|>"
    # The template ends its line after <|end|>; nothing after that token is ever generated.
    assert tokenizer.decode(encoded.chosen) == "Wet.<|end|>"
    assert tokenizer.decode(encoded.rejected) == "Water that falls.<|end|>"
    assert len(encoded) == len(encoded.prompt) + sum(len(a or ()) for a in encoded.branches)


def test_an_answer_is_ended_where_the_template_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    encoded = encode_pair(tokenizer, PAIR)
    assert tokenizer.decode(encoded.chosen) == "[Wet.]<|end|>"


def test_tokens_that_merge_across_the_border_are_split_there(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # " the" is one token, so "is" + " the" differs from the prompt's "is" + " t" and so on.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} th{% endif %}"
    )
    pair = PreferencePair("what is", " the sound", " the fox")
    encoded = encode_pair(tokenizer, pair)
    assert tokenizer.decode(encoded.prompt) == "what is th"
    assert tokenizer.decode(encoded.chosen) == "e sound<|end|>"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages | length }}: {{ messages[-1]['content'] }}"
    with pytest.raises(ModelError, match="rewrites the prompt"):
        encode_pair(tokenizer, PAIR)


def test_without_a_chat_template_there_is_one_clear_sentence(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode_pair(tokenizer, PAIR)


def test_a_template_that_raises_is_a_data_error(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        encode_pair(tokenizer, PAIR)


def test_a_doubled_beginning_is_detected(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "<|bos|>{{ messages[0]['content'] }}"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}])
    with pytest.raises(DataError, match=r"<\|bos\|> twice"):
        encode_prompt(tokenizer, [{"role": "user", "content": "<|bos|>Hi"}])


def test_what_is_too_long_is_an_error_and_names_the_pair(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(DataError, match=r"Pair 1: the prompt has \d+ tokens"):
        encode_pairs(tokenizer, [PAIR], max_prompt_length=4)
    long = PreferencePair("Why?", "because " * 30, "No.")
    with pytest.raises(DataError, match=r"Pair 2: 'chosen' has \d+ tokens"):
        encode_pairs(tokenizer, [PAIR, long], max_completion_length=40)
