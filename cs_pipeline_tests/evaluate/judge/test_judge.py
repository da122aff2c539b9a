"""The judge against a real HTTP server on this machine that plays judges with known biases."""

import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.judge.endpoint import ATTEMPTS, Endpoint, endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import (
    FEWEST_PAIRS,
    KAPPA,
    AnswerPair,
    PeopleAgreement,
    agreement_with_people,
    judge_pairs,
    may_gate,
    position_bias,
    voted_pairs,
)

PAIRS = 60
KEY = "sk-secret-of-the-test"


def made_pair(number: int) -> AnswerPair:
    rng = random.Random(number)
    answers = ["word " * rng.randint(1, 30) + f"{number}{side}" for side in "ab"]
    context = json.dumps([["customer", "hello"]]) if number % 3 == 0 else None
    return AnswerPair(f"q{number}", f"question {number}", context, "version 1", "version 2", *answers)


def made_people(pairs: list[AnswerPair]) -> dict[AnswerPair, str]:
    """What people said: a, b and ties, in no relation to the length of the answers."""
    return {pair: ("a", "b", "a", "tie", "b")[number % 5] for number, pair in enumerate(pairs)}


Reply = tuple[int, dict[str, str], bytes]


def completion(text: str) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[tuple[Endpoint, list[dict[str, Any]]]]:
    """An endpoint that answers a request's body with ``answer``, and the requests that came."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "authorization": self.headers["Authorization"], **body})
            status, headers, content = answer(body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Endpoint(f"http://127.0.0.1:{http.server_port}/v1", "judge-1", KEY), requests
        finally:
            http.shutdown()
            thread.join()


def shown(body: Mapping[str, Any]) -> dict[str, Any]:
    material: dict[str, Any] = json.loads(body["messages"][1]["content"])
    return material


def always_first(body: dict[str, Any]) -> Reply:
    return completion("A")


def longer_wins(body: dict[str, Any]) -> Reply:
    a, b = (len(shown(body)[f"answer_{side}"]) for side in "ab")
    return completion("TIE" if a == b else "**A**" if a > b else "Answer: B.".replace(":", ""))


def at_random(body: dict[str, Any]) -> Reply:
    return completion(random.Random(body["messages"][1]["content"]).choice(["A", "B", "tie"]))


def perfect(people: Mapping[AnswerPair, str]) -> Callable[[dict[str, Any]], Reply]:
    better = {pair.question: {"a": pair.answer_a, "b": pair.answer_b, "tie": None}[s] for pair, s in people.items()}

    def answer(body: dict[str, Any]) -> Reply:
        material = shown(body)
        best = better[material["question"]]
        said = "TIE" if best is None else "A" if material["answer_a"] == best else "B"
        return completion(f"<think>A or B? Both have merits.</think>\n{said}\n")

    return answer


def judged_by(answer: Callable[[dict[str, Any]], Reply], pairs: list[AnswerPair], cache: Path) -> pd.DataFrame:
    with server(answer) as (endpoint, requests):
        judged = judge_pairs(pairs, endpoint, cache, print)
    assert len(requests) == 2 * len(pairs)
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert {request["authorization"] for request in requests} == {f"Bearer {KEY}"}
    assert judged["pair_id"].tolist() == [pair.id for pair in pairs]
    return judged


@pytest.fixture
def pairs() -> list[AnswerPair]:
    return [made_pair(number) for number in range(PAIRS)]


def test_a_perfect_judge_agrees_with_people(pairs: list[AnswerPair], tmp_path: Path) -> None:
    people = made_people(pairs)
    judged = judged_by(perfect(people), pairs, tmp_path / "verdicts.jsonl")
    assert judged["result"].tolist() == list(people.values())
    bias = position_bias(judged)
    assert (bias.pairs, bias.consistent, bias.first) == (PAIRS, 1.0, 0.5)
    agreement = agreement_with_people(judged, people, samples=100)
    assert agreement == PeopleAgreement(1.0, 1.0, 1.0, PAIRS)
    allowed, why = may_gate(agreement)
    assert allowed
    assert why == "kappa with people is 1.00 (95 % interval 1.00 to 1.00, 60 pairs), above 0.6"


def test_a_judge_that_takes_the_first_says_nothing(pairs: list[AnswerPair], tmp_path: Path) -> None:
    people = made_people(pairs)
    judged = judged_by(always_first, pairs, tmp_path / "verdicts.jsonl")
    assert set(judged["first"]) == {"a"}
    assert set(judged["second"]) == {"b"}
    assert set(judged["result"]) == {"tie"}
    bias = position_bias(judged)
    assert (bias.consistent, bias.first) == (0.0, 1.0)
    assert bias.low is not None
    assert bias.low > 0.9
    agreement = agreement_with_people(judged, people, samples=100)
    assert agreement.kappa == pytest.approx(0)
    assert not may_gate(agreement)[0]


def test_a_judge_of_length_has_no_bias_of_place_and_no_agreement(pairs: list[AnswerPair], tmp_path: Path) -> None:
    judged = judged_by(longer_wins, pairs, tmp_path / "verdicts.jsonl")
    longer = ["tie" if len(p.answer_a) == len(p.answer_b) else "ab"[len(p.answer_a) < len(p.answer_b)] for p in pairs]
    assert judged["result"].tolist() == longer
    assert {"a", "b"} <= set(longer)
    bias = position_bias(judged)
    assert (bias.consistent, bias.first) == (1.0, 0.5)
    agreement = agreement_with_people(judged, made_people(pairs), samples=100)
    assert agreement.kappa is not None
    assert abs(agreement.kappa) < 0.35
    allowed, why = may_gate(agreement)
    assert not allowed
    assert why.endswith("60 pairs), not above 0.6")


def test_a_judge_at_random_is_inconsistent_without_bias(pairs: list[AnswerPair], tmp_path: Path) -> None:
    judged = judged_by(at_random, pairs, tmp_path / "verdicts.jsonl")
    bias = position_bias(judged)
    assert 0.15 < bias.consistent < 0.55, "a third by chance"
    assert bias.low is not None
    assert bias.high is not None
    assert bias.low < 0.5 < bias.high
    agreement = agreement_with_people(judged, made_people(pairs), samples=200)
    assert agreement.low is not None
    assert agreement.high is not None
    assert agreement.low < 0 < agreement.high


def test_an_interrupted_call_goes_on(pairs: list[AnswerPair], tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "verdicts.jsonl"
    left = iter(range(30))

    def breaks(body: dict[str, Any]) -> Reply:
        return (401, {}, b"") if next(left, None) is None else longer_wins(body)

    lines: list[str] = []
    with server(breaks) as (endpoint, requests):
        with pytest.raises(PipelineError, match="401 Unauthorized"):
            judge_pairs(pairs, endpoint, cache, lines.append)
        kept = cache.read_bytes()
        assert len(kept.splitlines()) == 30
        assert b"word" not in kept, "no text in the cache"
        cache.write_bytes(kept + b'{"key": "half a li')
        left = iter(range(1000))
        requests.clear()
        judged = judge_pairs(pairs, endpoint, cache, lines.append)
        assert len(requests) == 2 * PAIRS - 30
        assert lines[-1].startswith("judge: 90/90 verdicts, ")
        assert judge_pairs(pairs, endpoint, cache, lines.append).equals(judged)
        assert len(requests) == 2 * PAIRS - 30, "all of it is known"
        judge_pairs(pairs[:1], Endpoint(endpoint.url, "another model", KEY), cache, lines.append)
        assert len(requests) == 2 * PAIRS - 30 + 2, "the verdict of another model is another one"


def test_limits_and_faults_of_the_server_are_waited_for(pairs: list[AnswerPair], tmp_path: Path) -> None:
    failures = iter([(429, {"Retry-After": "7"}, b""), (503, {}, b""), (500, {}, b"")])

    def busy(body: dict[str, Any]) -> Reply:
        return next(failures, None) or longer_wins(body)

    waited: list[float] = []
    with server(busy) as (endpoint, requests):
        judged = judge_pairs(pairs[:2], endpoint, tmp_path / "verdicts.jsonl", print, waited.append)
    assert len(judged) == 2
    assert len(requests) == 4 + 3
    assert 7 in waited
    assert len(waited) == 3


@pytest.mark.parametrize(
    ("reply", "what", "asked"),
    [
        ((429, {"Retry-After": "3600"}, b""), "asks to wait 3,600 s", 1),
        ((500, {}, b""), f"in attempt {ATTEMPTS} of {ATTEMPTS}", ATTEMPTS),
        ((404, {}, b""), "404 Not Found", 1),
        ((400, {}, b'{"error": "no temperature"}'), "it must take temperature 0", 1),
        ((307, {"Location": "http://127.0.0.1:1/v1/chat/completions"}, b""), "the address that it leads to", 1),
        ((200, {}, b"<html>"), "something else than a chat completion", 1),
        ((200, {}, b'{"choices": []}'), "something else than a chat completion", 1),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "something else than a chat completion", 1),
    ],
)
def test_an_endpoint_that_fails_is_told_without_the_key(reply: Reply, what: str, asked: int) -> None:
    with server(lambda body: reply) as (endpoint, requests):
        with pytest.raises(PipelineError, match=what) as error:
            endpoint.ask([{"role": "user", "content": "hello"}], lambda seconds: None)
        assert len(requests) == asked
    assert KEY not in str(error.value)
    assert KEY not in repr(endpoint)


def test_nobody_there_is_told() -> None:
    with server(always_first) as (endpoint, _):
        pass
    waited: list[float] = []
    with pytest.raises(PipelineError, match=r"no answer \(ConnectionError\) in attempt 5 of 5"):
        endpoint.ask([], waited.append)
    assert waited == [1, 2, 4, 8]


def test_a_reply_that_is_no_verdict_leaves_its_pair_out(pairs: list[AnswerPair], tmp_path: Path) -> None:
    cache = tmp_path / "verdicts.jsonl"

    def sometimes(body: dict[str, Any]) -> Reply:
        return completion("A is better than B" if shown(body)["question"] == "question 1" else "B")

    lines: list[str] = []
    with server(sometimes) as (endpoint, _):
        judged = judge_pairs(pairs[:3], endpoint, cache, lines.append)
        assert judged["question_id"].tolist() == ["q0", "q2"]
        assert lines[-1] == "judge: 2 of 6 replies were no verdict; their pairs are left out"
        with pytest.raises(PipelineError, match="gave no verdict on any of 1 pairs"):
            judge_pairs(pairs[1:2], endpoint, cache, lines.append)


def test_nothing_is_sent_unless_it_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CS_JUDGE_URL", raising=False)
    assert endpoint_from_environment() is None
    monkeypatch.setenv("CS_JUDGE_URL", "https://judge.example/v1")
    with pytest.raises(PipelineError, match="CS_JUDGE_MODEL is not set"):
        endpoint_from_environment()
    monkeypatch.setenv("CS_JUDGE_MODEL", "judge-1")
    monkeypatch.setenv("CS_JUDGE_KEY", f" {KEY}\n")
    assert endpoint_from_environment() == Endpoint("https://judge.example/v1", "judge-1", KEY)


@pytest.mark.parametrize(
    ("url", "key", "what"),
    [
        ("judge.example/v1", "", "no address"),
        ("file:///etc/passwd", "", "no address"),
        (f"https://me:{KEY}@judge.example/v1", "", "no address"),
        (f"https://:{KEY}@judge.example/v1", "", "no address"),
        (f"https://judge.example/v1?key={KEY}", "", "no address"),
        ("http://judge.example/v1", KEY, "readable for all to judge.example"),
        ("https://judge.example/v1", f"{KEY}\nX-Other: 1", "holds characters"),
    ],
)
def test_an_unsafe_endpoint_is_refused_without_telling_the_key(url: str, key: str, what: str) -> None:
    with pytest.raises(PipelineError, match=what) as error:
        Endpoint(url, "judge-1", key)
    assert KEY not in str(error.value)


def test_the_majority_of_people_counts() -> None:
    vote = {"question": "q", "context": None, "rater": "r", "system_a": "1", "system_b": "2"}
    votes = [("q1", "a"), ("q1", "a"), ("q1", "b"), ("q2", "a"), ("q2", "b"), ("q3", "tie"), ("q3", "tie"), ("q3", "a")]
    compared = pd.DataFrame(
        [{**vote, "question_id": q, "answer_a": f"{q} one", "answer_b": f"{q} two", "result": r} for q, r in votes]
    )
    assert {pair.question_id: said for pair, said in voted_pairs(compared).items()} == {
        "q1": "a",
        "q2": "tie",
        "q3": "tie",
    }
    said = pd.Series(['[["customer", "hi"]]'] * 3 + [""] * 5)
    mixed = compared.assign(context=said.where(said != ""))
    assert [pair.context for pair in voted_pairs(mixed)] == ['[["customer", "hi"]]', None, None]


@pytest.mark.parametrize(
    ("agreement", "allowed", "why"),
    [
        (
            PeopleAgreement(0.9, 0.8, 1.0, FEWEST_PAIRS - 1),
            False,
            "people voted on 29 of the judged pairs; 30 are needed",
        ),
        (PeopleAgreement(None, None, None, 100), False, "which tells nothing of their agreement"),
        (PeopleAgreement(KAPPA, 0.5, 0.7, 100), False, "not above 0.6"),
        (PeopleAgreement(0.61, 0.5, 0.7, 100), True, "kappa with people is 0.61"),
    ],
)
def test_the_gate_says_why(agreement: PeopleAgreement, allowed: bool, why: str) -> None:
    said = may_gate(agreement)
    assert said[0] is allowed
    assert why in said[1]
