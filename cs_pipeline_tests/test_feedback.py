"""The feedback store: everything is stored exactly once, even after kills, and only the owner can read it."""

import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer

ASKED = AskedQuestion("Where is my order?", [("customer", "Hello"), ("agent", "Hello, how can I help?")])
TUNED = GivenAnswer("version 3", "On its way.", {"tone": "friendly", "temperature": 0.7})
BASE = GivenAnswer("version 3:base", "Orders are orders.", {"tone": "neutral"})


def test_a_judgement_keeps_version_question_settings_and_answer(lake: DataLake) -> None:
    before = datetime.now(UTC)
    with Feedback(lake) as feedback:
        feedback.rate("r1", "anna", ASKED, TUNED, 4)
        feedback.thumb("t1", "anna", AskedQuestion("Refund?"), TUNED, up=False)
        feedback.vote("v1", "ben", ASKED, [BASE, TUNED], winner=1)
        feedback.vote("v2", "ben", ASKED, [BASE, TUNED], winner=None)
    with Feedback(lake) as feedback:
        rating, thumb, vote, tie = feedback.judgements(raw=True)
    assert before <= rating.pop("at") <= datetime.now(UTC)
    assert rating == {
        "id": "r1",
        "kind": "rating",
        "rater": "anna",
        "question_id": "",
        "question": "Where is my order?",
        "context": '[["customer", "Hello"], ["agent", "Hello, how can I help?"]]',
        "systems": ["version 3"],
        "answers": ["On its way."],
        "score": 4,
        "winner": None,
        "source": "page",
        "settings": '{"tone": "friendly", "temperature": 0.7}',
    }
    assert (thumb["kind"], thumb["score"], thumb["context"]) == ("thumb", 0, None)
    assert (vote["systems"], vote["winner"], tie["winner"]) == (["version 3:base", "version 3"], "b", "tie")
    assert vote["settings"] == '[{"tone": "neutral"}, {"tone": "friendly", "temperature": 0.7}]'


def test_a_retry_neither_duplicates_nor_changes_anything(lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        for _ in range(2):
            feedback.rate("one", "anna", ASKED, TUNED, 4)
            feedback.agent_edit("two", "tom", "Where is it?", "It is here.", [TUNED], picked=0)
        with pytest.raises(PipelineError, match="and different content"):
            feedback.rate("one", "anna", ASKED, TUNED, 5)
        with pytest.raises(PipelineError, match="and different content"):
            feedback.agent_edit("two", "tom", "Where is it?", "It is there.", [TUNED], picked=0)
        (raw,) = feedback.judgements(raw=True)
        # Not even after its text was cleaned.
        feedback.replace_with_clean([raw | {"question": "Where is {{Order Number}}?", "rater": "hash"}])
        feedback.rate("one", "anna", ASKED, TUNED, 4)
        assert feedback.judgements(raw=True) == []
        (clean,) = feedback.judgements(raw=False)
        assert (clean["question"], clean["score"], clean["at"]) == ("Where is {{Order Number}}?", 4, raw["at"])
        assert len(feedback.edits()) == 1


@pytest.mark.parametrize(
    ("give", "complaint"),
    [
        (lambda f: f.rate("x", "anna", ASKED, TUNED, 0), "A rating of 0"),
        (lambda f: f.rate("x", "anna", ASKED, TUNED, 6), "A rating of 6"),
        (lambda f: f.rate(" ", "anna", ASKED, TUNED, 5), "needs an id"),
        (lambda f: f.rate("x", "anna", ASKED, GivenAnswer("", "Yes."), 5), "version that gave the answer"),
        (lambda f: f.vote("x", "anna", ASKED, [TUNED], 0), "vote for answer 0 of 1"),
        (lambda f: f.vote("x", "anna", ASKED, [TUNED, BASE], 2), "vote for answer 2 of 2"),
        (lambda f: f.agent_edit("x", "tom", "Where?", " ", [TUNED], 0), "needs a ticket"),
        (lambda f: f.agent_edit("x", "tom", "Where?", "Here.", [TUNED], 1), "if a draft was edited, its index"),
    ],
)
def test_invalid_feedback_is_refused(lake: DataLake, give: Callable[[Feedback], None], complaint: str) -> None:
    with Feedback(lake) as feedback:
        with pytest.raises(PipelineError, match=complaint):
            give(feedback)
        assert (feedback.judgements(raw=True), feedback.edits()) == ([], [])


def test_a_lone_surrogate_is_stored_as_a_question_mark(lake: DataLake) -> None:
    half = "caf\ud800"
    with Feedback(lake) as feedback:
        answer = GivenAnswer("version 3", half, {"value": half})
        feedback.rate("r", half, AskedQuestion(half, [("customer", half)]), answer, 1)
        feedback.agent_edit("e", half, half, half, [GivenAnswer("version 3", half)])
        (row,), (edit,) = feedback.judgements(raw=True), feedback.edits()
    assert {row["rater"], row["question"], *row["answers"], edit.ticket, edit.sent, edit.drafts[0].answer} == {"caf?"}
    assert (row["context"], row["settings"]) == ('[["customer", "caf?"]]', '{"value": "caf?"}')


def test_only_the_owner_can_read_the_file_and_deleted_text_is_gone(lake: DataLake) -> None:
    folder = lake.path("serve")
    with Feedback(lake) as feedback:
        feedback.rate("r", "anna", AskedQuestion("I am jane@example.com"), TUNED, 5)
        feedback.agent_edit("e", "tom", "I am jane@example.com", "Hello.", [])
        names = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("feedback.db*")}
        assert names == dict.fromkeys(["feedback.db", "feedback.db-wal", "feedback.db-shm"], 0o600)
        assert any(b"jane@" in path.read_bytes() for path in folder.iterdir())
        feedback.forget(["r", "e"])
        # Even while it is open: the log is truncated too.
        assert not any(b"jane@" in path.read_bytes() for path in folder.iterdir())


COUNT = 250


def write(lake: DataLake, writer: int, begin: int, acknowledge: int) -> None:
    """Stores ratings from number ``begin`` on, like a server for one client, and reports each number that is on disk."""
    for number in range(begin, COUNT):
        with Feedback(lake) as feedback:
            feedback.rate(f"{writer} {number}", f"rater {writer}", ASKED, TUNED, 1 + number % 5)
        os.write(acknowledge, bytes([number]))


def test_ratings_survive_kills_and_none_is_duplicated(lake: DataLake) -> None:
    """Two servers write at the same time and are killed repeatedly; clients resend what was not acknowledged."""
    rng = random.Random(6)
    acknowledged = [-1, -1]
    kills = 0
    while min(acknowledged) < COUNT - 1:
        children = []
        for writer in range(2):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    write(lake, writer, max(acknowledged[writer], 0), writing)
                finally:
                    os._exit(0)
            os.close(writing)
            children.append((pid, reading))
        behind = acknowledged.index(min(acknowledged))
        for _ in range(rng.randrange(1, 20)):
            if number := os.read(children[behind][1], 1):  # nothing when it has written all of them
                acknowledged[behind] = number[0]
        time.sleep(rng.uniform(0, 0.005))
        for writer, (pid, reading) in enumerate(children):
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            with os.fdopen(reading, "rb") as pipe:
                acknowledged[writer] = max([acknowledged[writer], *pipe.read()])
            with Feedback(lake) as feedback:
                stored = {row["id"] for row in feedback.judgements(raw=True)}
            assert {f"{writer} {number}" for number in range(acknowledged[writer] + 1)} <= stored
    assert kills >= 10
    with Feedback(lake) as feedback:
        rows = feedback.judgements(raw=True)
    assert sorted(row["id"] for row in rows) == sorted(f"{w} {n}" for w in range(2) for n in range(COUNT))
    assert all(row["score"] == 1 + int(row["id"].split()[1]) % 5 for row in rows)
