"""The page with a look-up as champion, in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cs_pipeline.evaluate.report.leaderboard import LEADERBOARD_SCHEMA
from cs_pipeline.feedback import Feedback
from cs_pipeline.serve.desk.desk import NO_KNOWN_ANSWER
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.serve.page.test_page import ask, open_tab
from cs_pipeline_tests.serve.page.test_page import browser as browser  # the fixtures
from cs_pipeline_tests.serve.page.test_page import page as page
from cs_pipeline_tests.serve.page.test_page import visitor as visitor
from cs_pipeline_tests.support.serving import SURE, Serving, wait_for

UNKNOWN = "A puppy ate it, refund"
"""A question that the router does not know, and to which no known question is similar enough."""


@pytest.fixture(scope="module")
def serving(lookup_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose champion is version 2, a look-up; version 1 is a fine-tune."""
    lake = copy_lake(lookup_lake, tmp_path_factory.mktemp("lookup") / "lake")
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving


def test_a_chat_gives_the_known_answer_with_its_source_or_hands_over(page: Page, serving: Serving) -> None:
    answer = serving.chat(SURE).json()
    assert ask(page, SURE).inner_text() == answer["response"]
    notes = page.locator("#conversation .notes")
    expect(notes.first).to_have_text(re.compile(r"version 2 · intent recover_password · about anything known: \d\d%"))
    expect(page.locator("#conversation .sources")).to_contain_text("A past answer to")
    expect(page.locator(".demo")).to_have_count(0)  # its answers are fit for customers
    page.click("#chat-model input")
    options = page.get_by_role("option").all_inner_texts()
    assert [option.strip("✓ \n") for option in options] == [
        "champion (version 2)",
        "version 2 · lookup",
        "version 1 · tiny",
        "base of version 1",
    ]
    page.keyboard.press("Escape")
    ask(page, UNKNOWN)
    expect(page.locator("#conversation .handover")).to_contain_text("the question was not understood")
    expect(notes.nth(1)).to_contain_text("the desk, not version 2")


def test_a_look_up_is_compared_with_another_version(page: Page, serving: Serving) -> None:
    open_tab(page, "Compare")
    chosen = page.locator("#compare-models .token, #compare-models [class*=token]")
    expect(page.locator("#compare-models")).to_contain_text("version 1 · tiny")
    assert chosen.count() >= 2
    page.fill("#compare-question textarea", UNKNOWN)
    page.press("#compare-question textarea", "Enter")
    cards = page.locator("article.answer:visible")
    expect(cards).to_have_count(2)
    expect(cards.filter(has_text=NO_KNOWN_ANSWER)).to_have_count(1)
    for letter in "AB":
        page.locator(f"#score-{letter} label", has_text="3").first.click()
    page.locator("#vote label", has_text="No difference").click()
    page.click("#save")
    expect(page.locator(".saved")).to_be_visible()
    expect(cards.filter(has_text="version 2 · lookup")).to_contain_text(NO_KNOWN_ANSWER)
    with Feedback(serving.lake) as feedback:
        rated = [row["systems"] for row in feedback.judgements(raw=True) if row["kind"] == "rating"]
    assert sorted(rated) == [["version 1"], ["version 2"]]


def test_an_agent_gets_known_answers_as_drafts_and_cannot_use_the_notice_that_there_is_none(page: Page) -> None:
    open_tab(page, "Agent assist")
    page.fill("#ticket textarea", SURE)
    page.click("#draft")
    expect(page.locator("#use-1")).to_be_enabled()
    expect(page.locator("#draft-1 .message-text")).not_to_contain_text(NO_KNOWN_ANSWER)
    page.fill("#ticket textarea", UNKNOWN)
    page.click("#draft")
    expect(page.locator("#draft-1 .message-text")).to_have_text(NO_KNOWN_ANSWER)
    expect(page.locator("#use-1")).to_be_disabled()
    expect(page.locator(".about")).to_contain_text("The desk would hand this over: the question was not understood")
    expect(page.locator("#sent")).to_be_enabled()


def test_the_performance_of_a_look_up_has_scores_but_no_base_and_no_training_loss(page: Page) -> None:
    open_tab(page, "Performance")
    expect(page.locator(".performance h2").first).to_contain_text("Version 2 recipe lookup")
    score, interval, base, difference = page.locator(".performance tbody tr").first.locator("td").all_inner_texts()
    assert re.fullmatch(r"[\d.]+", score)
    assert "to" in interval
    assert not re.search(r"\d", base + difference)
    expect(page.locator(".performance dl")).to_contain_text("look-up")
    expect(page.locator(".performance .loss")).to_have_count(0)
    expect(page.get_by_text("Evaluation report of version 2")).to_be_visible()


def test_the_leaderboard_of_another_release_does_not_hide_the_results(page: Page, serving: Serving) -> None:
    older = LEADERBOARD_SCHEMA.remove(LEADERBOARD_SCHEMA.get_field_index("quality"))
    serving.lake.write("evaluate", "leaderboard", older.empty_table(), older)
    open_tab(page, "Performance")
    expect(page.locator(".performance h2").first).to_contain_text("Version 2 recipe lookup")
    expect(page.locator(".performance")).to_contain_text("dagster asset materialize --select leaderboard")
    expect(page.locator(".performance tbody tr").first).to_be_visible()
