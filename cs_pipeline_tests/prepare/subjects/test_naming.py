"""Names and ids of subjects, and Bitext intents that are suggested for them."""

from dataclasses import replace
from typing import Any

import pyarrow as pa

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.subjects.discovery import Ticket
from cs_pipeline.prepare.subjects.intents import suggest_intents
from cs_pipeline.prepare.subjects.naming import SubjectName, name_subjects, subject_id
from cs_pipeline_tests.prepare import conversations
from cs_pipeline_tests.support.grammar import FIRST_DAY, provider_tickets


def tickets(*questions: str, customers: int = 100) -> list[Ticket]:
    return [
        Ticket(f"r{number}", f"c{number}", f"customer {number % customers}", FIRST_DAY, question, "We look into it.")
        for number, question in enumerate(questions)
    ]


FEES = tickets("why did I pay a late fee", "a late fee on my bill?", "late fee again {{Person Name}}")
LIGHTS = tickets("the light is red", "red light on my box", "a red light, what now")


def test_a_name_has_typical_words_in_the_customers_order() -> None:
    names = name_subjects({"one": FEES, "two": LIGHTS}, {}, [])
    assert names["one"].name == "Late fee"
    assert set(names["two"].name.split()) == {"Red", "light"}
    assert not {"person", "name", "my", "on"} & set(names["one"].keywords)
    again = name_subjects({"one": FEES, "two": FEES, "three": FEES}, {}, [])
    assert len({name.name for name in again.values()}) == 3
    given = name_subjects({"one": FEES, "two": LIGHTS}, {"two": "Late fee"}, [])
    assert given["two"].name == "Late fee"
    assert given["one"].name != "Late fee"


def test_a_word_of_one_customer_or_of_the_company_itself_is_in_no_name() -> None:
    hers = tickets("late fee for Petra", "Petra has a late fee", "petra: late fee", customers=1)
    assert name_subjects({"one": hers}, {}, [])["one"] == SubjectName("Subject", ())
    mixed = [*hers, *(replace(ticket, conversation=f"d{n}", customer=f"other {n}") for n, ticket in enumerate(FEES))]
    assert "petra" not in name_subjects({"one": mixed}, {}, [])["one"].keywords
    ours = tickets("the Wave box fails", "my Wave box fails", "Wave box fails")
    names = name_subjects({"one": ours, "two": LIGHTS}, {}, ["Wave"])
    assert "wave" in name_subjects({"one": ours, "two": LIGHTS}, {}, [])["one"].keywords
    assert "wave" not in names["one"].keywords


def test_an_id_reads_like_the_name_and_is_never_one_that_is_taken() -> None:
    name = SubjectName("Late fee", ("late", "fee", "bill", "reminder"))
    taken: set[str] = set()
    found = []
    for _ in range(4):
        found.append(subject_id(name, taken))
        taken.add(found[-1])
    assert found == ["late_fee", "late_fee_bill", "late_fee_reminder", "late_fee_2"]
    assert subject_id(SubjectName("Rückgabe & Umtausch!", ()), set()) == "rückgabe_umtausch"
    assert subject_id(SubjectName("???", ()), {"subject"}) == "subject_2"


def test_intents_of_bitext_are_suggested_for_subjects_that_are_one(lake: DataLake) -> None:
    known: Any = sample_rows(1_620, 1).assign(split="train").to_dict("records")
    lake.write("prepare", "bitext_splits", conversations(known), CONVERSATION)
    subjects: dict[str, list[Ticket]] = {"cancel_order": [], "get_invoice": [], "newsletter_subscription": []}
    for number, row in enumerate(sample_rows(810, 2).to_dict("records")):
        if row["intent"] in subjects:
            name = str(number)
            subjects[row["intent"]].append(Ticket(name, name, None, FIRST_DAY, row["instruction"], row["response"]))
    provider, truth = provider_tickets(600, 204)
    for subject in ("no_connection", "wifi_range", "router_red_light"):
        subjects[subject] = [ticket for ticket in provider if truth[ticket.conversation] == subject]
    suggested = suggest_intents(lake, subjects)
    assert {"cancel_order", "get_invoice"} <= suggested.keys()
    assert all(subject == intent for subject, intent in suggested.items())
    assert suggest_intents(lake, {}) == {}
    lake.write("prepare", "bitext_splits", pa.Table.from_pylist([], CONVERSATION), CONVERSATION)
    assert suggest_intents(lake, subjects) == {}
