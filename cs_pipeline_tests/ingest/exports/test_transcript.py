from pathlib import Path

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.exports import BadRecord, Turn, recognise
from cs_pipeline_tests.ingest.exports import bad_records, read_all, records, written


@pytest.mark.parametrize(
    "line",
    ["Jane Roe\tis it: here?\tc-1", "Jane Roe | is it: here? | c-1", "[c-1] Jane Roe: is it: here?"],
)
def test_a_turn_can_be_written_in_several_ways(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, "chat.txt", f"{line}\n".encode())
    (record,) = records(path)
    assert record.conversation_id == "c-1"
    assert record.turns == [Turn("customer", "is it: here?")]
    assert record.known == [("Client Name", "Jane Roe")]
    assert str(recognise("chat.txt", path, Company())) == "transcript"


def test_the_text_may_contain_separators(tmp_path: Path) -> None:
    path = written(tmp_path, "chat.txt", b"speaker|text|conversation\nagent|a | b|7\nagent\ta\tb | c\t7\n")
    assert [record.turns[0].text for record in records(path)] == ["a | b", "a\tb | c"]


def test_speakers_have_roles_and_names(tmp_path: Path) -> None:
    lines = ["Customer", "jane@example.org", "Agent", "Anna-Lena (Support)", "Support Bot", "SYSTEM", "Visitor 4711"]
    found = records(written(tmp_path, "chat.txt", "\n".join(f"[c] {who}: x" for who in lines).encode()))
    assert [record.turns[0].role for record in found] == [
        *("customer", "customer", "agent", "agent", "automatic", "automatic", "customer"),
    ]
    assert [record.known for record in found] == [
        *([], [("Customer Email", "jane@example.org")], [], [("Person Name", "Anna-Lena")], [], [], []),
    ]
    assert [record.subject for record in found] == [None, "jane@example.org", None, None, None, None, None]


def test_company_yaml_names_agents_and_automatic_speakers(tmp_path: Path) -> None:
    company = Company(agents=("Kundendienst",), automatic=("auto reply",))
    path = written(tmp_path, "chat.txt", b"[c] Kundendienst Eva: x\n[c] Auto-Reply: x\n[c] Agent: x\n")
    assert [record.turns[0].role for record in records(path, company)] == ["agent", "automatic", "customer"]


def test_lines_that_are_not_turns_are_bad(tmp_path: Path) -> None:
    path = written(tmp_path, "chat.txt", "[ä] A: ü\nand more\n[12:04] A: x\n|x|c\na|x|\n[c] A:\n\n[c] A: y\n".encode())
    assert [record.index for record in records(path)] == [0, 7]
    assert bad_records(path) == [
        BadRecord(1, 11, "is not a turn of a conversation", "and more"),
        BadRecord(2, 20, "has a time where its conversation id should be", "[12:04] A: x"),
        BadRecord(3, 33, "has no speaker", "|x|c"),
        BadRecord(4, 38, "has no conversation id", "a|x|"),
        BadRecord(5, 43, "has no text", "[c] A:"),
    ]


def test_text_that_is_not_a_transcript_is_not_recognised(tmp_path: Path) -> None:
    path = written(tmp_path, "notes.txt", b"Dear all,\nthis is a letter.\n")
    with pytest.raises(PipelineError, match=r"notes\.txt is not a transcript"):
        recognise("notes.txt", path, Company())
    assert len(read_all(path)) == 2
