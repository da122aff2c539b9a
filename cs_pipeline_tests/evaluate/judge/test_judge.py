"""The judge, tested against a local HTTP server that plays judges with known biases."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.judge.endpoint import JUDGE_ATTEMPTS, Endpoint, endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import (
    MIN_KAPPA,
    MIN_SHARED_PAIRS,
    AnswerPair,
    agreement_with_people,
    judge_pairs,
    majority_verdicts,
    may_gate,
    position_bias,
)
from cs_pipeline.evaluate.results import PeopleAgreement

PAIRS = 60
KEY = "sk-secret-of-the-test"


def made_pair(number: int) -> AnswerPair:
    rng = random.Random(number)
    answers = ["word " * rng.randint(1, 30) + f"{number}{side}" for side in "ab"]
    context = json.dumps([["customer", "hello"]]) if number % 3 == 0 else None
    return AnswerPair(f"q{number}", f"question {number}", context, "version 1", "version 2", *answers)


def made_people(pairs: list[AnswerPair]) -> dict[AnswerPair, str]:
    """Verdicts of people: a, b and ties, unrelated to the length of the answers."""
    return {pair: ("a", "b", "a", "tie", "b")[number % 5] for number, pair in enumerate(pairs)}


Reply = tuple[int, dict[str, str], bytes]


def completion(text: str) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[tuple[Endpoint, list[dict[str, Any]]]]:
    """An endpoint that answers a request's body with ``answer``, and the requests it received."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "headers": dict(self.headers), **body})
            status, headers, content = answer(body)
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

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
        verdict = "TIE" if best is None else "A" if material["answer_a"] == best else "B"
        return completion(f"<think>A or B? Both have merits.</think>\n{verdict}\n")

    return answer


def judged_by(answer: Callable[[dict[str, Any]], Reply], pairs: list[AnswerPair], cache: Path) -> pd.DataFrame:
    with server(answer) as (endpoint, requests):
        judged = judge_pairs(pairs, endpoint, cache, print)
    assert len(requests) == 2 * len(pairs)
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert {request["headers"]["Authorization"] for request in requests} == {f"Bearer {KEY}"}
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


def test_a_judge_that_always_takes_the_first_answer_decides_nothing(pairs: list[AnswerPair], tmp_path: Path) -> None:
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


def test_a_judge_that_prefers_length_has_no_position_bias_and_no_agreement(
    pairs: list[AnswerPair], tmp_path: Path
) -> None:
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


def test_a_random_judge_is_inconsistent_but_unbiased(pairs: list[AnswerPair], tmp_path: Path) -> None:
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


def test_an_interrupted_call_continues(pairs: list[AnswerPair], tmp_path: Path) -> None:
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
        assert len(requests) == 2 * PAIRS - 30, "all of it is cached"
        judge_pairs(pairs[:1], Endpoint(endpoint.url, "another model", KEY), cache, lines.append)
        assert len(requests) == 2 * PAIRS - 30 + 2, "verdicts of another model are cached separately"


HELLO = [{"role": "user", "content": "hello"}]


def ask(endpoint: Endpoint) -> str:
    with endpoint.client() as client:
        return endpoint.ask(client, HELLO)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def test_rate_limits_and_server_errors_are_retried(pairs: list[AnswerPair], tmp_path: Path, waits: list[float]) -> None:
    failures = iter([(429, {"Retry-After": "7"}, b""), (503, {}, b""), (500, {}, b"")])

    def busy(body: dict[str, Any]) -> Reply:
        return next(failures, None) or longer_wins(body)

    with server(busy) as (endpoint, requests):
        judged = judge_pairs(pairs[:2], endpoint, tmp_path / "verdicts.jsonl", print)
    assert len(judged) == 2
    assert len(requests) == 4 + 3
    assert 7 in waits, "the server asked for it"
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("reply", "what", "asked"),
    [
        ((429, {"Retry-After": "3600"}, b""), "asks to wait 3,600 s", 1),
        ((500, {}, b""), f"500 Internal Server Error in {JUDGE_ATTEMPTS} attempts", JUDGE_ATTEMPTS),
        ((404, {}, b""), "404 Not Found", 1),
        ((400, {}, b'{"error": "no temperature"}'), "it must accept temperature 0", 1),
        ((307, {"Location": "http://127.0.0.1:1/v1/chat/completions"}, b""), "the address that it redirects to", 1),
        ((200, {}, b"<html>"), "did not answer with a chat completion", 1),
        ((200, {}, b'{"choices": []}'), "did not answer with a chat completion", 1),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "did not answer with a chat completion", 1),
    ],
)
def test_a_failing_endpoint_is_reported_without_the_key(
    reply: Reply, what: str, asked: int, waits: list[float]
) -> None:
    with server(lambda body: reply) as (endpoint, requests):
        with pytest.raises(PipelineError, match=what) as error:
            ask(endpoint)
        assert len(requests) == asked
    assert KEY not in str(error.value)
    assert KEY not in repr(endpoint)


def test_an_endpoint_that_is_down_is_reported(waits: list[float]) -> None:
    with server(always_first) as (endpoint, _):
        pass
    with pytest.raises(PipelineError, match=r"no answer in 5 attempts \(ConnectError\)"):
        ask(endpoint)
    assert len(waits) == JUDGE_ATTEMPTS - 1
    assert waits == sorted(waits), "each wait is longer than the one before"


def test_only_the_question_and_the_key_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "of another account")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: of another account\nX-Other: of another account")
    with server(always_first) as (endpoint, requests):
        assert ask(endpoint) == "A"
        assert ask(Endpoint(endpoint.url, endpoint.model)) == "A"
    known, anonymous = (request.pop("headers") for request in requests)
    assert requests == [{"path": "/v1/chat/completions", "model": "judge-1", "messages": HELLO, "temperature": 0}] * 2
    assert known.pop("Authorization") == f"Bearer {KEY}"
    assert known == anonymous
    assert "of another account" not in known.values()
    assert not any(name.lower().startswith(("x-", "openai-")) for name in known)


def test_a_reply_that_is_not_a_verdict_leaves_its_pair_out(pairs: list[AnswerPair], tmp_path: Path) -> None:
    cache = tmp_path / "verdicts.jsonl"

    def sometimes(body: dict[str, Any]) -> Reply:
        return completion("A is better than B" if shown(body)["question"] == "question 1" else "B")

    lines: list[str] = []
    with server(sometimes) as (endpoint, _):
        judged = judge_pairs(pairs[:3], endpoint, cache, lines.append)
        assert judged["question_id"].tolist() == ["q0", "q2"]
        assert lines[-1] == "judge: 2 of 6 replies were not a verdict; their pairs are left out"
        with pytest.raises(PipelineError, match="gave no verdict on any of 1 pairs"):
            judge_pairs(pairs[1:2], endpoint, cache, lines.append)


def test_the_client_library_is_imported_only_when_used() -> None:
    code = "import sys, cs_pipeline.evaluate.judge.judge; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_settings_there_is_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("judge.example/v1", "", "not the address"),
        ("file:///etc/passwd", "", "not the address"),
        (f"https://me:{KEY}@judge.example/v1", "", "not the address"),
        (f"https://:{KEY}@judge.example/v1", "", "not the address"),
        (f"https://judge.example/v1?key={KEY}", "", "not the address"),
        ("http://judge.example/v1", KEY, "unencrypted to judge.example"),
        ("https://judge.example/v1", f"{KEY}\nX-Other: 1", "contains a space or a non-ASCII character"),
    ],
)
def test_an_unsafe_endpoint_is_refused_without_showing_the_key(url: str, key: str, what: str) -> None:
    with pytest.raises(PipelineError, match=what) as error:
        Endpoint(url, "judge-1", key)
    assert KEY not in str(error.value)


def test_the_majority_of_votes_counts() -> None:
    vote = {"question": "q", "context": None, "rater": "r", "system_a": "1", "system_b": "2"}
    votes = [("q1", "a"), ("q1", "a"), ("q1", "b"), ("q2", "a"), ("q2", "b"), ("q3", "tie"), ("q3", "tie"), ("q3", "a")]
    compared = pd.DataFrame(
        [{**vote, "question_id": q, "answer_a": f"{q} one", "answer_b": f"{q} two", "result": r} for q, r in votes]
    )
    assert {pair.question_id: verdict for pair, verdict in majority_verdicts(compared).items()} == {
        "q1": "a",
        "q2": "tie",
        "q3": "tie",
    }
    contexts = pd.Series(['[["customer", "hi"]]'] * 3 + [""] * 5)
    mixed = compared.assign(context=contexts.where(contexts != ""))
    assert [pair.context for pair in majority_verdicts(mixed)] == ['[["customer", "hi"]]', None, None]


@pytest.mark.parametrize(
    ("agreement", "allowed", "why"),
    [
        (
            PeopleAgreement(0.9, 0.8, 1.0, MIN_SHARED_PAIRS - 1),
            False,
            "people voted on 29 of the judged pairs; 30 are needed",
        ),
        (PeopleAgreement(None, None, None, 100), False, "so kappa is undefined"),
        (PeopleAgreement(MIN_KAPPA, 0.5, 0.7, 100), False, "not above 0.6"),
        (PeopleAgreement(0.61, 0.5, 0.7, 100), True, "kappa with people is 0.61"),
    ],
)
def test_the_gate_gives_its_reason(agreement: PeopleAgreement, allowed: bool, why: str) -> None:
    decision = may_gate(agreement)
    assert decision[0] is allowed
    assert why in decision[1]
