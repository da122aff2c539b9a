"""How often the rules are right that answer instead of a model: on labelled messages, and on questions that are none of
their business."""

from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.robustness.robustness import handwritten_cases
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.serve.desk.handover import HandoverReason, handover_message, handover_reason
from cs_pipeline.serve.desk.mood import Mood, mood
from cs_pipeline.serve.desk.scope import CONFIDENT, OutOfScope, out_of_scope, is_off_topic

MESSAGES = [
    (group, *(((said, Mood.NEUTRAL)) if isinstance(said, str) else (said["text"], Mood(said["mood"]))))
    for group, messages in read_yaml(Path(__file__).with_name("messages.yaml")).items()
    for said in messages
]


def done_with(text: str) -> str:
    """What the desk does of itself with a message that begins a conversation, by its words alone."""
    if handover_reason(text, ()):
        return "person"
    why = out_of_scope(text, text, opening=True) or (OutOfScope.OFF_TOPIC if is_off_topic(text, None) else None)
    return why.name.lower() if why else "answer"


def test_messages_that_the_rules_were_not_written_with() -> None:
    right = Counter(group for group, text, _ in MESSAGES if done_with(text) == group)
    assert len(MESSAGES) == 70
    least = {"answer": 21, "person": 13, "elsewhere": 9, "others": 5, "instruction": 7, "empty": 5}
    assert {group: right[group] >= count for group, count in least.items()} == dict.fromkeys(least, True), right
    assert [text for _, text, expected in MESSAGES if mood(text) is not expected] == []


def test_cases_that_were_written_for_models() -> None:
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for case in handwritten_cases():
        done[case.group][done_with(case.text)] += 1
    assert done["out of scope"]["elsewhere"] >= 28
    assert done["empty"] == {"empty": 14}
    assert done["for a person"] == {"person": 12}
    assert done["injection"]["instruction"] >= 18
    assert done["other customers"]["others"] >= 22
    assert set(done["other language"]) == {"answer"}
    assert done["contradictory"] == {"answer": 20}


def test_questions_of_the_sample_are_left_to_the_model() -> None:
    rows = sample_rows(810)
    done = Counter(done_with(text) for text in rows[rows["intent"] != "contact_human_agent"]["instruction"])
    assert done.keys() == {"answer"}, done


def test_real_questions_are_left_to_the_model(bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["instruction", "intent"], dtype=str).sample(3000, random_state=1)
    for_a_person = rows["intent"] == "contact_human_agent"
    done = Counter(map(done_with, rows[~for_a_person]["instruction"]))
    assert done["answer"] / done.total() > 0.998, done
    asks = Counter(map(done_with, rows[for_a_person]["instruction"]))
    assert asks["person"] / asks.total() > 0.6
    assert asks.keys() == {"person", "answer"}


def test_what_the_classifier_is_certain_of_is_for_this_desk() -> None:
    assert is_off_topic("Is the game any good?", CONFIDENT - 0.01)
    assert not is_off_topic("Is the game any good?", CONFIDENT)


def test_a_bare_word_within_a_conversation_may_be_an_answer() -> None:
    assert out_of_scope("ok", "ok", opening=True) is OutOfScope.EMPTY
    assert out_of_scope("ok", "ok", opening=False) is None


@pytest.mark.parametrize(
    ("text", "earlier", "reason"),
    [
        ("That does not help.", (), None),
        ("That does not help.", (("customer", "It doesn't work."), ("agent", "Try again.")), HandoverReason.FAILURE),
        ("Thanks!", (("customer", "It doesn't work."), ("customer", "You don't understand"), ("agent", "Try.")), None),
        (
            "Where is it?",
            (("customer", "where is it"), ("agent", "a"), ("customer", "WHERE IS IT"), ("agent", "b")),
            HandoverReason.FAILURE,
        ),
        ("Where is it?", (("customer", "where is it"), ("agent", "a")), None),
        (
            "the blue one",
            (("agent", "Which one do you mean?"), ("customer", "that"), ("agent", "Could you please clarify?")),
            HandoverReason.FAILURE,
        ),
        (
            "the blue one",
            (("agent", "It is sent."), ("customer", "that"), ("agent", "Could you please clarify?")),
            None,
        ),
    ],
)
def test_repeated_failure(text: str, earlier: tuple, reason: HandoverReason | None) -> None:
    assert handover_reason(text, earlier) is reason


def test_the_announcement_says_how_to_reach_somebody_at_once() -> None:
    values = {"Customer Support Phone Number": "+1 555-0142", "Customer Support Hours": "9 to 5"}
    text, reference, follows = handover_message(HandoverReason.ANGER, (), values)
    assert reference in text
    assert "+1 555-0142 (9 to 5)" in text
    assert follows == ""
    assert handover_message(HandoverReason.ANGER, (("agent", text),), {})[2] == reference
    assert handover_message(HandoverReason.ANGER, (("customer", text),), {})[2] == "", (
        "what a customer says is no reference of ours"
    )
