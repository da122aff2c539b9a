"""A person's file: what each edit does, which mistakes are named, and that edits can be taken back."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.prepare.subjects.discovery import Assignment, Discovered, Ticket
from cs_pipeline.prepare.subjects.edits import SubjectEdits, apply_edits, load_edits, subjects_file
from cs_pipeline_tests.support.grammar import FIRST_DAY

INTENTS = {"cancel_order", "get_invoice"}


def ticket(number: int, question: str, answer: str = "an answer") -> Ticket:
    return Ticket(f"r{number}", f"c{number}", None, FIRST_DAY, question, answer)


TICKETS = [
    ticket(0, "what does fibre cost"),
    ticket(1, "is there fibre in my street", "It costs 30 euro."),
    ticket(2, "fibre is dead"),
    ticket(3, "the light is red"),
    ticket(4, "the lamp is red"),
    ticket(5, "hello"),
]
FOUND = Discovered(
    {
        **{f"r{number}": Assignment("fibre", 0.9) for number in range(3)},
        "r3": Assignment("red_light", 0.8),
        "r4": Assignment("red_lamp", 0.7),
        "r5": Assignment(None, 0.0, "question"),
    },
    aliases={"glass": "fibre"},
)


def subjects_after(edits: SubjectEdits) -> list[str | None]:
    """The subject of each ticket."""
    return [entry.subject for entry in apply_edits(TICKETS, FOUND, edits).assignments.values()]


def load(lake: DataLake, text: str) -> SubjectEdits:
    lake.root.mkdir(exist_ok=True)
    subjects_file(lake).write_text(text)
    return load_edits(lake, INTENTS, {"fibre", "red_light", "red_lamp"})


def test_without_a_file_nothing_changes(lake: DataLake) -> None:
    edits = load_edits(lake, INTENTS, set())
    assert apply_edits(TICKETS, FOUND, edits).assignments == FOUND.assignments
    assert edits.ids == set()


def test_the_example_is_valid(lake: DataLake) -> None:
    example = Path(__file__).parents[3] / "examples" / "subjects.yaml"
    lake.root.mkdir()
    subjects_file(lake).write_text(example.read_text())
    edits = load_edits(lake, {"delivery_period", "change_shipping_address"}, {"account", "delivery", "refund"})
    assert edits.ids == {"account", "delivery", "refund"}


def test_a_subject_is_renamed_and_mapped(lake: DataLake) -> None:
    edits = load(lake, "rename: {fibre: Glass fibre}\nmap: {red_lamp: cancel_order, red_light: null}\n")
    edited = apply_edits(TICKETS, FOUND, edits)
    assert edited.assignments == FOUND.assignments
    assert edited.names == {"fibre": "Glass fibre"}
    assert edited.intents == {"red_lamp": "cancel_order", "red_light": None}
    assert edited.reviewed == {"fibre", "red_light", "red_lamp"}
    assert edited.unknown == []


def test_subjects_are_merged(lake: DataLake) -> None:
    edits = load(lake, "merge: {red_light: [red_lamp]}\nrename: {red_light: Red light}\n")
    assert subjects_after(edits) == ["fibre", "fibre", "fibre", "red_light", "red_light", None]
    entry = apply_edits(TICKETS, FOUND, edits).assignments["r4"]
    assert entry == replace(FOUND.assignments["r4"], subject="red_light")


def test_a_subject_is_split_by_words_of_the_question_and_then_of_the_answer(lake: DataLake) -> None:
    edits = load(
        lake, "split: {fibre: {fibre_price: [cost, price], fibre_fault: [dead]}}\nmap: {fibre_price: get_invoice}\n"
    )
    assert subjects_after(edits) == ["fibre_price", "fibre_price", "fibre_fault", "red_light", "red_lamp", None]
    assert apply_edits(TICKETS, FOUND, edits).intents == {"fibre_price": "get_invoice"}
    assert edits.ids == {"fibre"}


def test_an_id_that_discovery_has_joined_with_another_one_means_that_one(lake: DataLake) -> None:
    edits = load(lake, "rename: {glass: Glass fibre}\nmerge: {glass: [red_lamp]}\n")
    edited = apply_edits(TICKETS, FOUND, edits)
    assert edited.names == {"fibre": "Glass fibre"}
    assert edited.assignments["r4"].subject == "fibre"
    assert edited.unknown == []


def test_unknown_ids_are_reported_and_change_nothing(lake: DataLake) -> None:
    edits = load(lake, "rename: {fees: Fees}\nmerge: {red_light: [lights]}\nsplit: {fibre: {fibre_tv: [television]}}\n")
    edited = apply_edits(TICKETS, FOUND, edits)
    assert edited.unknown == ["fees", "fibre_tv", "lights"]
    assert edited.assignments == FOUND.assignments


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rename: {fibre: ''}\n", "'rename.fibre' string should match"),
        ("rename: {fibre: '{{Name}}'}\n", "'rename.fibre' string should match"),
        ("renamed: {fibre: Fibre}\n", "'renamed' is not a key of subjects.yaml"),
        ("map: {fibre: cancel_ordr}\n", "'map.fibre': 'cancel_ordr' is not an intent of Bitext"),
        ("merge: {fibre: red_lamp}\n", "'merge.fibre' input should be a valid list"),
        ("merge: {fibre: [red_lamp], red_light: [red_lamp]}\n", "'merge' lists red_lamp twice"),
        ("merge: {fibre: [red_lamp], red_lamp: [red_light]}\n", "'merge' lists red_lamp twice, or both as a part"),
        ("merge: {fibre: [red_lamp]}\nrename: {red_lamp: Lamp}\n", "'merge' makes red_lamp part of another subject"),
        ("merge: {fibre: [red_lamp]}\nmap: {red_lamp: null}\n", "'merge' makes red_lamp part of another subject"),
        ("rename: {fibre: Lamp, red_lamp: lamp}\n", "'rename' gives two subjects the name Lamp, lamp"),
        ("split: {fibre: {Fibre Price: [cost]}}\n", "'split.fibre.Fibre Price"),
        ("split: {fibre: {fibre_price: []}}\n", "'split.fibre.fibre_price' list should have at least 1 item"),
        ("split: {fibre: {a: [x]}, red_lamp: {a: [y]}}\n", "'split' makes a twice"),
        ("split: {fibre: {a: [x]}}\nmerge: {fibre: [a]}\n", "'split' makes a twice, or another edit merges"),
        ("split: {fibre: {red_lamp: [x]}}\n", "'split' makes red_lamp, which is an id already"),
        ("split: {fibre: {cancel_order: [x]}}\n", "'split' makes cancel_order, which is an id already"),
        ("rename: {fibre: A}\nrename: {fibre: B}\n", "'rename' appears twice"),
        ("- fibre\n", "contains no keys"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(lake: DataLake, text: str, complaint: str) -> None:
    with pytest.raises(PipelineError) as raised:
        load(lake, text)
    assert str(subjects_file(lake)) in raised.value.what
    assert complaint in raised.value.what
