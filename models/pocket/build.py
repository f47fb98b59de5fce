"""Trains the pocket model from nothing and writes it, with its card, beside this file.

Owns the recipe: what is said (world.py, voices.py and, with --data, the small talk of the data
folder), the tokenizer, one flat training loop in fp32, and the measurement that goes into the
card. It is a script of the project, not a part of the service: nothing imports it.
Invariant: everything random comes from --seed, so two builds on one machine answer the same.

    python models/pocket/build.py --data ../shared/data

Choices: the loss and the LM head see answer tokens only (half the cost of a step is the head);
batches are cut from length-sorted chunks (almost no padding); padding is on the right, so causal
attention needs no mask.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from small_talk import PERSONALITIES, Answers, read_small_talk
from voices import VOICES, answer, ask, ask_unseen, question_set
from world import Fact, all_facts, written_facts

HERE = Path(__file__).resolve().parent
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a friendly chat bot.", "Answer well."]
PERSONALITY_WEIGHTS = dict.fromkeys(PERSONALITIES, 0.10) | {"professional": 0.60}
IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides the texts."""

    vocabulary: int = 3072
    hidden: int = 256
    intermediate: int = 704
    layers: int = 4
    heads: int = 4  # head size 64, which vLLM's CPU attention supports
    context: int = 512
    steps: int = 3000
    batch: int = 96
    peak_lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    facts_share: float = 0.65
    seed: int = 0


Turn = tuple[str, str]  # (question, answer)


@dataclass(frozen=True)
class Conversation:
    turns: tuple[Turn, ...]
    system: str | None = None


class Corpus:
    """Draws conversations: facts in voices, and the small talk of the data folder if given."""

    def __init__(self, data: Path | None, facts_share: float) -> None:
        self.facts = all_facts(data)
        self.small_talk = read_small_talk(data) if data else {}
        self.questions = sorted(self.small_talk)
        self.facts_share = facts_share if self.small_talk else 1.0

    def _turn(self, rng: Random) -> Turn:
        if rng.random() < self.facts_share:
            fact = rng.choice(self.facts)
            return ask(fact, rng), answer(fact, rng)
        question = rng.choice(self.questions)
        personality = rng.choices(PERSONALITIES, weights=list(PERSONALITY_WEIGHTS.values()))[0]
        return question, self.small_talk[question][personality]

    def draw(self, rng: Random) -> Conversation:
        turns = 2 if rng.random() < 0.08 else 1
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.05 else None
        return Conversation(tuple(self._turn(rng) for _ in range(turns)), system)


def train_tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, so that numbers are spelled and not memorised whole."""
    rng = Random(recipe.seed)
    texts = [text for _ in range(40_000) for turn in corpus.draw(rng).turns for text in turn]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Example:
    ids: list[int]
    labels: list[int]  # IGNORE outside answers


def encode(conversations: list[Conversation], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Token ids as the chat template renders them, with labels on answers and their end only."""
    special = {
        token: tokenizer.convert_tokens_to_ids(token) for token in (END, SYSTEM, USER, ASSISTANT)
    }
    texts = sorted(
        {text for c in conversations for turn in c.turns for text in turn} | set(SYSTEM_PROMPTS)
    )
    pieces = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    examples = []
    for conversation in conversations:
        ids: list[int] = []
        labels: list[int] = []
        if conversation.system:
            ids += [special[SYSTEM], *pieces[conversation.system], special[END]]
            labels += [IGNORE] * len(ids)
        for question, reply in conversation.turns:
            asked = [special[USER], *pieces[question], special[END], special[ASSISTANT]]
            said = [*pieces[reply], special[END]]
            ids += asked + said
            labels += [IGNORE] * len(asked) + said
        examples.append(Example(ids, labels))
    return examples


def length_sorted_batches(examples: list[Example], batch: int, rng: Random) -> list[list[Example]]:
    """Batches of like length, in random order: sorted within chunks of 32 batches."""
    batches = []
    for start in range(0, len(examples), 32 * batch):
        chunk = sorted(examples[start : start + 32 * batch], key=lambda e: len(e.ids))
        cut = [chunk[i : i + batch] for i in range(0, len(chunk), batch)]
        rng.shuffle(cut)
        batches += cut
    return batches


def answer_loss(model: LlamaForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens; logits exist for those positions only."""
    width = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in batch])  # (B, T)
    labels = torch.tensor([e.labels + [IGNORE] * (width - len(e.labels)) for e in batch])  # (B, T)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    targets = labels[:, 1:]
    scored = targets != IGNORE
    logits = model.lm_head(hidden[:, :-1][scored])  # (answer tokens, V)
    return F.cross_entropy(logits, targets[scored])


def learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.peak_lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    batches: list[list[Example]], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, bar: Progress
) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    task = bar.add_task("training", total=recipe.steps)
    model.train()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        bar.update(task, advance=1, description=f"training (loss {loss.item():.3f})")
    return model.eval()


def greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str], bar: Progress
) -> list[str]:
    """One greedy answer a question, in the order of the questions."""
    task = bar.add_task("measuring", total=len(questions))
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers = [""] * len(questions)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": questions[i]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for i in rows
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=48,
            do_sample=False,
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        for row, text in zip(
            rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[row] = text.strip()
        bar.update(task, advance=len(rows))
    return answers


def knows(fact: Fact, said: str) -> bool:
    """Right when the answer is one of the voices' own sentences: nothing more, nothing else."""
    return said in {voice(fact) for voice in VOICES.values()}


def measure(
    folder: Path, facts: list[Fact], small_talk: dict[str, Answers], bar: Progress
) -> dict[str, float]:
    """Shares of right greedy answers of the weights on disk, by topic, in unseen phrasings."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [(fact, ask_unseen(fact, which)) for fact in facts for which in (0, 1)]
    said = greedy_answers(model, tokenizer, [question for _, question in asked], bar)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (fact, _), reply in zip(asked, said, strict=True):
        for key in ("facts in unseen phrasings", f"– {fact.topic}"):
            right[key] += knows(fact, reply)
            total[key] += 1
    shares = {key: right[key] / total[key] for key in total}
    written = set(written_facts())
    own = [
        knows(fact, reply) for (fact, _), reply in zip(asked, said, strict=True) if fact in written
    ]
    shares["of the written world"] = sum(own) / len(own)
    if small_talk:
        questions = sorted(small_talk)[::9]
        replies = greedy_answers(model, tokenizer, questions, bar)
        for personality in PERSONALITIES:
            same = sum(
                small_talk[q][personality] == r for q, r in zip(questions, replies, strict=True)
            )
            shares[f"small talk answered as {personality}"] = same / len(questions)
    return shares


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)


def write_card(
    folder: Path, recipe: Recipe, corpus: Corpus, figures: dict[str, float], cost: str
) -> None:
    template = (HERE / "CARD.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in figures.items())
    settings = ", ".join(f"{name} {value}" for name, value in vars(recipe).items())
    card = template.format(
        facts=len(corpus.facts),
        written=len(written_facts()),
        questions=len(corpus.questions),
        figures=rows,
        recipe=settings,
        cost=cost,
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def build(data: Path | None, out: Path, recipe: Recipe, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()
    rng = Random(recipe.seed)
    corpus = Corpus(data, recipe.facts_share)
    began, cpu = time.monotonic(), time.process_time()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        tokenizer = train_tokenizer(corpus, recipe)
        drawn = [corpus.draw(rng) for _ in range(recipe.steps * recipe.batch)]
        examples = encode(drawn, tokenizer)
        batches = length_sorted_batches(examples, recipe.batch, rng)
        model = train(batches, tokenizer, recipe, bar)
        cost = (
            f"{sum(len(e.ids) for e in examples) / 1e6:.1f} M tokens, "
            f"{(time.process_time() - cpu) / threads / 60:.0f} CPU minutes a thread, "
            f"{(time.monotonic() - began) / 60:.0f} minutes by the clock, {threads} threads, fp32"
        )
        with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
            folder = Path(temporary)
            save(folder, model, tokenizer)
            figures = measure(folder, corpus.facts, corpus.small_talk, bar)
            write_card(folder, recipe, corpus, figures, cost)
            (folder / "facts.jsonl").write_text(question_set(), encoding="utf-8")
            out.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                shutil.move(file, out / file.name)
    console = Console()
    console.print(cost)
    for name, share in figures.items():
        console.print(f"{name}: {100 * share:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the data folder (chitchat/, facts/); optional")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where the model goes (default: here)"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps")
    parser.add_argument("--layers", type=int, default=Recipe.layers, help="transformer layers")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (part of the seed)")
    arguments = parser.parse_args()
    if arguments.data and not (arguments.data / "chitchat").is_dir():
        parser.error(f"{arguments.data} has no folder chitchat/: name the data folder itself")
    recipe = Recipe(steps=arguments.steps, layers=arguments.layers, seed=arguments.seed)
    build(arguments.data, arguments.out, recipe, arguments.threads)


if __name__ == "__main__":
    main()
