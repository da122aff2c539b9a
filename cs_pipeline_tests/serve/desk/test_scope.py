"""How often the rules that replace a model are right, on labelled messages and on questions that a model should answer."""

from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.robustness.robustness import handwritten_cases
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.serve.desk.handover import HandoverReason, handover_message, handover_reason
from cs_pipeline.serve.desk.mood import Mood, mood
from cs_pipeline.serve.desk.scope import OutOfScope, is_off_topic, out_of_scope
from cs_pipeline.text.conduct import conduct

MESSAGES = [
    (group, *(((message, Mood.NEUTRAL)) if isinstance(message, str) else (message["text"], Mood(message["mood"]))))
    for group, messages in read_yaml(Path(__file__).with_name("messages.yaml")).items()
    for message in messages
]


def outcome(text: str) -> str:
    """What the desk does with ``text`` as a first message, by its words alone."""
    if handover_reason(text, ()):
        return "person"
    why = out_of_scope(text, text, opening=True) or (OutOfScope.OFF_TOPIC if is_off_topic(text, None) else None)
    return why.name.lower() if why else "answer"


def test_the_rules_on_messages_that_were_not_used_to_write_them() -> None:
    right = Counter(group for group, text, _ in MESSAGES if outcome(text) == group)
    assert len(MESSAGES) == 70
    minimum = {"answer": 21, "person": 13, "off_topic": 9, "other_customer": 5, "prompt_injection": 7, "no_content": 5}
    assert {group: right[group] >= count for group, count in minimum.items()} == dict.fromkeys(minimum, True), right
    assert [text for _, text, expected in MESSAGES if mood(text) is not expected] == []


def test_the_rules_on_the_robustness_cases() -> None:
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for case in handwritten_cases(40):
        done[case.group][outcome(case.text)] += 1
    assert done["out of scope"]["off_topic"] >= 28
    assert done["empty"] == {"no_content": 14}
    assert done["for a person"] == {"person": 12}
    assert done["injection"]["prompt_injection"] >= 18
    assert done["other customers"]["other_customer"] >= 22
    assert set(done["other language"]) == {"answer"}
    assert done["contradictory"] == {"answer": 20}


def test_questions_of_the_sample_go_to_the_model() -> None:
    rows = sample_rows(810)
    done = Counter(outcome(text) for text in rows[rows["intent"] != "contact_human_agent"]["instruction"])
    assert done.keys() == {"answer"}, done


def test_real_questions_go_to_the_model(bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["instruction", "intent"], dtype=str).sample(3000, random_state=1)
    for_a_person = rows["intent"] == "contact_human_agent"
    done = Counter(map(outcome, rows[~for_a_person]["instruction"]))
    assert done["answer"] / done.total() > 0.998, done
    asks = Counter(map(outcome, rows[for_a_person]["instruction"]))
    assert asks["person"] / asks.total() > 0.6
    assert asks.keys() == {"person", "answer"}


def test_a_question_of_a_known_subject_is_never_off_topic() -> None:
    assert is_off_topic("Is the game any good?", None)
    assert not is_off_topic("Is the game any good?", "games")


def test_fixed_replies_name_the_companys_topics() -> None:
    for topics, listed in ((("bikes",), "bikes"), (("bikes", "repairs", "hire"), "bikes, repairs and hire")):
        for why in (OutOfScope.NO_CONTENT, OutOfScope.PROMPT_INJECTION, OutOfScope.OFF_TOPIC):
            assert f"questions about {listed}." in why.reply(topics)
    assert conduct(OutOfScope.OFF_TOPIC.reply(Company().topics)).redirects
    assert OutOfScope.CLOSING.reply(("bikes",)) == OutOfScope.CLOSING.value


def test_a_bare_word_inside_a_conversation_can_be_an_answer() -> None:
    assert out_of_scope("ok", "ok", opening=True) is OutOfScope.NO_CONTENT
    assert out_of_scope("ok", "ok", opening=False) is None


@pytest.mark.parametrize(
    "text",
    [
        "thanks",
        "Thank you so much!",
        "ok, great, thanks :)",
        "No, that's all. Thank you, bye!",
        "thx, have a nice day",
        "👍 thanks",
    ],
)
def test_thanks_are_returned(text: str) -> None:
    assert out_of_scope(text, text, opening=False) is OutOfScope.CLOSING


@pytest.mark.parametrize(
    "text",
    [
        "thanks, but it does not work",
        "no",
        "ok",
        "thanks for nothing",
        "bye bye parcel, where is it",
        "that's all I got",
    ],
)
def test_a_message_with_more_than_thanks_is_answered(text: str) -> None:
    assert out_of_scope(text, text, opening=False) is None


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
def test_repeated_failure_hands_over(text: str, earlier: tuple, reason: HandoverReason | None) -> None:
    assert handover_reason(text, earlier) is reason


def test_the_handover_message_has_a_reference_and_the_phone_number() -> None:
    values = {"Customer Support Phone Number": "+1 555-0142", "Customer Support Hours": "9 to 5"}
    text, reference, follows = handover_message(HandoverReason.ANGER, (), values)
    assert reference in text
    assert "+1 555-0142 (9 to 5)" in text
    assert follows == ""
    assert handover_message(HandoverReason.ANGER, (("agent", text),), {})[2] == reference
    assert handover_message(HandoverReason.ANGER, (("customer", text),), {})[2] == "", (
        "a customer cannot make up a reference"
    )
