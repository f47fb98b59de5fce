"""Two small tasks of lm-evaluation-harness, multiple choice and free answers, and their group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHOICES = """
task: likings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
WORDS = """
task: answers_of_a_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
GROUP = """
group: both_kinds
task: [likings, answers_of_a_word]
"""


def write_tasks(folder: Path, questions: Sequence[dict[str, Any]]) -> Path:
    """The folder for `--include-path`; questions have `question`, `choices` and `answer`."""
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "likings.yaml").write_text(CHOICES.format(data=data))
    (folder / "answers_of_a_word.yaml").write_text(WORDS.format(data=data))
    (folder / "both_kinds.yaml").write_text(GROUP)
    return folder
