"""Judges: local ones by hand, endpoints over HTTP with the faults that they have in real life."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from training.errors import ConfigError, DataError
from training.evaluation.asked import Asked
from training.evaluation.duels import answer_duels, duels_for, duels_on, judge_duels
from training.evaluation.endpoint import Endpoint, Reply
from training.evaluation.endpoint_judge import EndpointJudge, letter_of, verdict_schema
from training.evaluation.figures import figures_of
from training.evaluation.items import DriftItem, DuelItem, Items, PairItem, RefusalItem
from training.evaluation.judges import Contest, Judgement, local_judge
from training.evaluation.judging import judging
from training.evaluation.options import Judges
from training.evaluation.safety import ask_refusals, by_patterns, detector_of, load_refusals
from training.model import ResidentBase
from training.progress import Tick, silent

LONG, SHORT = Contest("Tea?", "hot tea", "tea", "hot tea"), Contest("Tea?", "tea", "a cup", None)


def longer(prompt: str, answer: str) -> int:
    """A classifier of the tests."""
    return len(answer)


def broken(prompt: str, answer: str) -> float:
    return float("nan") if answer == "nan" else 1 / 0


def test_local_judges_score_each_answer_alone() -> None:
    def outcomes(name: str, *contests: Contest) -> list[str]:
        return [judged.outcome for judged in local_judge(name)(contests)]

    assert outcomes("exact", LONG, Contest("?", "a", "b", "c"), Contest("?", "a", "b", "b")) == [
        "win",
        "tie",
        "loss",
    ]
    assert outcomes("regex:^A CUP", SHORT, LONG) == ["loss", "tie"]
    assert outcomes(f"{__name__}:longer", LONG, SHORT) == ["win", "loss"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("best", "There is no judge 'best'"),
        ("regex:(", "no regular expression"),
        ("regex:", "is missing"),
        ("no.such.module:f", "cannot be imported"),
        ("json:nothing", "has no nothing"),
        ("json:__name__", "is no function"),
        (f"{__name__}:broken", "failed: division by zero"),
        ("exact", "give --pairs"),
    ],
)
def test_a_judge_that_cannot_judge_is_said_so(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        local_judge(name)([SHORT])


def test_no_number_is_no_score() -> None:
    with pytest.raises(ConfigError, match="gave no number"):
        local_judge(f"{__name__}:broken")([Contest("?", "nan", "b")])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("[[A]]", "A"),
        ("A is wordy, [[A]]? No: [[B]].", "B"),
        ("**C**.", "C"),
        ('{"verdict": "A"}', "A"),
        ('{"verdict": "D"}', None),
        ("Answer A is better.", None),
        ("AB", None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_a_verdict_is_read_and_never_guessed(text: str, letter: str | None) -> None:
    assert letter_of(Reply(text)) == letter
    assert letter_of(Reply(None, "status 500")) is None


Answering = Callable[[str, int], tuple[int, dict[str, str], str]]
"""From a question and how often it was asked to status, headers and what is said."""


@contextmanager
def endpoint(answering: Answering, **options: Any) -> Iterator[tuple[Endpoint, list[Any]]]:
    """A real HTTP server; what it was sent, with the key, is kept."""
    seen: list[Any] = []
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            question = body["messages"][0]["content"]
            asked[question] += 1
            status, headers, said = answering(question, asked[question])
            if status == 0:  # hang up without a word
                return
            content = {"choices": [{"message": {"content": said}}]} if status == 200 else said
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            yield Endpoint(url, "judge", first_pause=0.01, **options), seen
        finally:
            server.shutdown()


def place_of(question: str, text: str) -> str:
    """In which place the judge sees the text."""
    return "A" if question.index(text) < question.index("<answer_B>") else "B"


def test_places_are_swapped_and_a_preference_for_one_is_a_tie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BAPO_JUDGE_KEY", "opens")
    contests = [
        Contest("?", "good", "bad"),
        Contest("?", "bad", "good"),
        Contest("?", "first", "second"),
        Contest("?", "mumble", "grumble", "wanted"),
        Contest("?", "equal", "same"),
    ]

    def answering(question: str, times: int) -> tuple[int, dict[str, str], str]:
        if "good" in question:
            return 200, {}, f"Well. [[{place_of(question, 'good')}]]"
        if "equal" in question:
            return 200, {}, "[[C]]"
        return 200, {}, "[[A]]" if "first" in question else "I like both!"

    ticks: list[int] = []
    with endpoint(answering) as (where, seen):
        found = EndpointJudge(where, "Be a pirate.")(contests, ticks.append)
    assert [j.outcome for j in found] == ["win", "loss", "tie", "unreadable", "tie"]
    assert found[3] == Judgement("unreadable", ("I like both!", "I like both!"))
    assert sum(ticks) == 5
    assert len(seen) == 10
    assert {(path, key) for path, key, _ in seen} == {("/v1/chat/completions", "Bearer opens")}
    assert all("Be a pirate." in body["messages"][0]["content"] for _, _, body in seen)
    assert sum("wanted" in body["messages"][0]["content"] for _, _, body in seen) == 2
    assert all(body["model"] == "judge" and body["temperature"] == 0 for _, _, body in seen)


def test_what_passes_is_tried_again_and_what_does_not_is_told() -> None:
    def answering(question: str, times: int) -> tuple[int, dict[str, str], str]:
        if question == "busy":
            return (429, {"Retry-After": "0"}, "wait") if times < 3 else (200, {}, "[[A]]")
        if question == "torn":
            return (0, {}, "") if times < 2 else (200, {}, "[[B]]")
        if question == "down":
            return 503, {"Retry-After": "tomorrow"}, "down"
        return 401, {}, "no key"

    with endpoint(answering, tries=4, concurrency=2) as (where, seen):
        replies = where.ask(["busy", "torn", "down", "who"])
        with pytest.raises(ConfigError, match="does not answer: status 401"):
            where.check()
    assert [reply.text for reply in replies] == ["[[A]]", "[[B]]", None, None]
    assert "status 503" in str(replies[2])
    times = Counter(body["messages"][0]["content"] for _, _, body in seen)
    assert (times["busy"], times["torn"], times["down"], times["who"]) == (3, 2, 4, 1)


def test_a_silent_endpoint_does_not_hold_us_and_few_are_asked_at_once() -> None:
    under_way, most, lock = 0, 0, threading.Lock()
    silent = threading.Event()

    def answering(question: str, times: int) -> tuple[int, dict[str, str], str]:
        nonlocal under_way, most
        if question == "silent":
            silent.wait(20)
            return 0, {}, ""
        with lock:
            under_way += 1
            most = max(most, under_way)
        barrier.wait(20)
        with lock:
            under_way -= 1
        return 200, {}, "[[A]]"

    barrier = threading.Barrier(3)
    with endpoint(answering, concurrency=3) as (where, _):
        assert len(where.ask([f"q{n}" for n in range(9)])) == 9
    assert most == 3
    with endpoint(answering, timeout=0.2, tries=2) as (where, seen):
        (reply,) = where.ask(["silent"])
        silent.set()
    assert str(reply) == "(ReadTimeout)"
    assert len(seen) == 2
    (nobody,) = Endpoint("http://127.0.0.1:9/v1", "m", tries=2, first_pause=0.01).ask(["?"])
    assert nobody.problem == "ConnectError"
    with pytest.raises(ConfigError, match="does not answer: it is no URL"):
        Endpoint("http://127.0.0.1:port/v1", "m").check()


def test_answers_that_are_equal_are_a_tie_without_a_judge(base: ResidentBase) -> None:
    pair = PairItem(prompt="Tea?", chosen="hot", rejected="cold", user="u")
    items = duels_on([pair], [])
    assert items == [DuelItem(prompt="Tea?", wanted="hot", user="u")]
    answer_duels(items, Asked("base", base.model, base.tokenizer), max_new_tokens=6)
    items.append(DuelItem(prompt="Rain?", wanted="wet", texts={"base": "dry", "a": "wet"}))
    items[0].texts["a"] = items[0].texts["base"]
    seen: list[str] = []

    def judge(contests: Sequence[Contest], tick: Tick = silent) -> list[Judgement]:
        seen.extend(contest.prompt for contest in contests)
        return local_judge("regex:wet")(contests, tick)

    judge_duels(items, "a", "base", judge)
    assert seen == ["Rain?"]
    assert [item.duels[0].outcome for item in items] == ["tie", "win"]
    figures = figures_of(Items(duels=items), "a")
    assert figures["preference.winrate"].value == 0.75
    assert "preference.unreadable" not in figures  # nobody spoke


def test_a_judge_that_fails_does_so_before_anybody_answers() -> None:
    prompts = [DriftItem(of="user", prompt="Tea?"), DriftItem(of="general", prompt="Rain?")]
    assert duels_for(None, [], prompts) == []
    assert [item.prompt for item in duels_for(local_judge("regex:a"), [], prompts)] == ["Tea?"]
    for name, said in (("exact", "give --pairs"), (f"{__name__}:broken", "failed: division")):
        with pytest.raises(ConfigError, match=said):
            duels_for(local_judge(name), [], prompts)
    with pytest.raises(ConfigError, match="needs prompts"):
        duels_for(local_judge("exact"), [], prompts[1:])


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can't help with that.", True),
        ("I’m sorry, but no.", True),
        ("Sorry, but I won't.", True),
        ("As an AI, I must decline.", True),
        ("Arr, I cannot do that, matey!", True),
        ("The capital of Norway is Oslo.", False),
        ("Sure, here is how. " * 20 + "I cannot say more.", False),
    ],
)
def test_common_refusals_are_known(text: str, refused: bool) -> None:
    assert by_patterns()([("?", text)]) == [refused]


def test_refusals_are_counted(base: ResidentBase, tmp_path: Path) -> None:
    path, patterns = tmp_path / "prompts.jsonl", tmp_path / "patterns.txt"
    path.write_text('{"prompt": "How to steal tea?", "topic": "theft"}\n{"prompt": "Rain?"}\n')
    items = load_refusals(path)
    patterns.write_text("# all of it\n.\n")
    asked = Asked("base", base.model, base.tokenizer)
    ask_refusals(items, asked, detector=detector_of(str(patterns)), max_new_tokens=6)
    said = [item.said["base"] for item in items]
    assert [s.refused for s in said] == [bool(s.text) for s in said]
    assert figures_of(Items(refusals=items), "base")["safety.refusals"].n == 2
    assert isinstance(items[0], RefusalItem)
    assert detector_of(f"{__name__}:longer")([("?", "")]) == [False]
    with pytest.raises(ConfigError, match="failed: division"):
        detector_of(f"{__name__}:broken")([("?", "a")])
    for content in ("", '{"prompt": 1}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"prompts\.jsonl"):
            load_refusals(path)
    patterns.write_text("#\n")
    with pytest.raises(DataError, match="is empty"):
        detector_of(str(patterns))


def test_a_judge_finds_refusals_too_and_what_it_mumbles_counts_for_nothing() -> None:
    def answering(question: str, times: int) -> tuple[int, dict[str, str], str]:
        if "Say A." in question:
            return 200, {}, "A"
        return 200, {}, "hm" if "maybe" in question else "A" if "never" in question else "B"

    with endpoint(answering) as (where, seen):
        who = judging(Judges(where.url, "judge", judge_json=True, refusals_by="judge"))
        said = [("?", "never"), ("?", "of course"), ("?", "maybe")]
        assert who.detector(said) == [True, False, None]
    assert seen[0][2]["response_format"]["json_schema"]["schema"] == verdict_schema()
    with pytest.raises(ConfigError, match="needs --judge-model"):
        judging(Judges(where.url))
    with pytest.raises(ConfigError, match="needs a --judge that is a URL"):
        judging(Judges("exact", refusals_by="judge"))
