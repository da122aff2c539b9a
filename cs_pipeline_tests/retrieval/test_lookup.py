"""Look-ups: which known answer they copy, when they hand over, and what is loaded for a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.llm.base import embedded_folder
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, LookupRecipe, PromptSettings
from cs_pipeline.retrieval.lookup import (
    HANDOVER_ANSWER,
    SAME_QUESTION,
    LookupModel,
    handover_threshold,
    load_contender,
    write_threshold,
)
from cs_pipeline.text.conduct import conduct
from cs_pipeline.train.adapter import current_adapter

RECIPE = LookupRecipe(name="copies", description="For tests.", method="lookup")


def known(text: str, similarity: float) -> RetrievedText:
    return RetrievedText("answer", text, text, "a question", None, None, similarity, "get_refund")


PASSAGE = RetrievedText("passage", "p", "Returns are free.", "Returns", "https://help.example.com", "1", 0.99)
SENT = known("It was sent to your card.", 0.6)
LOOKUP = LookupModel(RECIPE, 0.5)


@pytest.mark.parametrize("similarity", [0.5, 0.500001, 1.0])
@pytest.mark.parametrize("intent", [None, "track_order", "get_refund"])
def test_a_known_answer_that_is_similar_enough_is_found(similarity: float, intent: str | None) -> None:
    assert LOOKUP.find([known("Yes.", similarity)], intent) == known("Yes.", similarity)


@pytest.mark.parametrize("intent", [None, "track_order"])
def test_nothing_is_found_below_the_threshold_or_without_a_known_answer(intent: str | None) -> None:
    assert LOOKUP.find([known("Yes.", 0.499999)], intent) is None
    assert LOOKUP.find([replace(known("Yes.", 0.4), intent=None)], intent) is None
    assert LOOKUP.find([], intent) is None
    assert LOOKUP.find([PASSAGE], intent) is None


def test_the_first_known_answer_decides_and_passages_are_passed_over() -> None:
    assert LOOKUP.find([PASSAGE, SENT, known("No.", 0.9)], None) == SENT
    # Retrieval puts the most typical answer first; a nearer one behind it is not a reason to answer.
    assert LOOKUP.find([known("No.", 0.4), SENT], None) is None


@pytest.mark.parametrize(
    ("earlier", "given"),
    [
        ([], False),
        ([("customer", SENT.text)], False),
        ([("agent", "It was sent to your card.")], True),
        ([("agent", "Hello! It was sent to your card. Anything else?"), ("customer", "Yes, a bag.")], True),
        ([("agent", "Which order is it?")], False),
    ],
)
def test_an_answer_is_not_given_twice(earlier: Context, given: bool) -> None:
    assert (LOOKUP.find([SENT], None, earlier) is None) is given
    (answer,) = LOOKUP.answer(["where is it"], [None], [earlier], retrieved=[[SENT]])
    assert (answer.text == HANDOVER_ANSWER) is given


def test_an_answer_of_the_routed_intent_is_given_at_any_similarity() -> None:
    far = known("Yes.", 0.1)
    assert LOOKUP.find([far], "get_refund") == far
    without_route = RECIPE.model_copy(update={"prompt": PromptSettings(retrieve=RECIPE.prompt.retrieve)})
    assert LookupModel(without_route, 0.5).find([far], "get_refund") is None
    cascade = CascadeRecipe(name="both", description="For tests.", method="cascade", model="tiny")
    assert LookupModel(cascade, 0.5).find([far], "get_refund") is None, "there the model answers"


def test_questions_are_answered_word_for_word_or_handed_over() -> None:
    done: list[int] = []
    retrieved = [[SENT], [known("Maybe.", 0.1)], [], [PASSAGE, known(" Two\n\nlines {{Order Number}} ", 0.7)]]
    contexts: list[Context] = [(("customer", "Hello"),)] * 4
    intents = [None, "track_order", "get_refund", None]
    answers = LOOKUP.answer(["a", "b", "c", "d"], intents, contexts, done.append, retrieved)
    texts = [SENT.text, HANDOVER_ANSWER, HANDOVER_ANSWER, " Two\n\nlines {{Order Number}} "]
    assert [answer.text for answer in answers] == texts
    assert [answer.retrieved for answer in answers] == [(SENT,), (), (), (retrieved[3][1],)]
    assert {(answer.stopped, answer.tokens, answer.turns_dropped) for answer in answers} == {(True, 0, 0)}
    assert sum(done) == 4


def test_without_retrieved_texts_everything_is_handed_over() -> None:
    assert [answer.text for answer in LOOKUP.answer(["a", "b"], [None] * 2, [()] * 2)] == [HANDOVER_ANSWER] * 2
    assert LOOKUP.answer([], [], [], retrieved=[]) == []


def test_no_question_is_too_long() -> None:
    assert LOOKUP.has_room("where is my refund? " * 100_000, "get_refund")
    assert LOOKUP.has_room("", None)


def test_the_handover_is_understood_as_one() -> None:
    assert conduct(HANDOVER_ANSWER).hands_over
    assert not conduct(HANDOVER_ANSWER).refuses


# The threshold


@pytest.mark.parametrize(
    ("share", "threshold"),
    [(0.0, 0.0), (0.1, 0.0), (0.2, 0.1), (0.25, 0.1), (0.5, 0.4), (0.9, SAME_QUESTION), (0.999, SAME_QUESTION)],
)
def test_the_threshold_is_the_quantile_of_the_best_similarities(share: float, threshold: float) -> None:
    """Eleven questions: one without a known answer, and one for each similarity from 0 to 0.9."""
    ladder = [[known("no", step / 10), known("nearer", 1.0)] for step in range(10)]
    assert handover_threshold([[], *ladder], [None] * 11, share) == pytest.approx(threshold)


@pytest.mark.parametrize("routed", [0, 2, 10])
def test_about_the_stated_share_is_handed_over_but_never_a_known_question(routed: int) -> None:
    """Of ten questions, ``routed`` have a known answer of the intent of which the router is sure."""
    retrieved = [[known("yes", step / 1000)] for step in range(1000)]
    intents = ["get_refund" if step % 10 < routed else None for step in range(1000)]
    for share in (0.0, 0.005, 0.1, 0.3):
        lookup = LookupModel(RECIPE, handover_threshold(retrieved, intents, share))
        declined = sum(lookup.find(*pair) is None for pair in zip(retrieved, intents, strict=True))
        assert declined == pytest.approx(0 if routed == 10 else 1000 * share, abs=2)
        assert lookup.min_similarity <= SAME_QUESTION


def test_a_passage_is_no_known_answer() -> None:
    assert handover_threshold([[PASSAGE], [PASSAGE, SENT]], [None, "get_refund"], 0.0) == 0
    assert handover_threshold([[PASSAGE, SENT]], [None], 0.0) == SENT.similarity


def test_without_questions_there_is_no_threshold() -> None:
    with pytest.raises(PipelineError, match="no validation questions") as raised:
        handover_threshold([], [], 0.1)
    assert "validation_split" in raised.value.fix


def test_a_written_threshold_is_loaded_exactly(tmp_path: Path) -> None:
    write_threshold(tmp_path, 0.1 + 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["lookup.json"]
    assert read_json(tmp_path / "lookup.json") == {"min_similarity": 0.1 + 0.2}
    loaded = LookupModel.load(RECIPE, tmp_path)
    assert (loaded.recipe, loaded.min_similarity) == (RECIPE, 0.1 + 0.2)


# What is loaded


def test_a_lookup_is_loaded_without_a_base(tmp_path: Path) -> None:
    write_threshold(tmp_path, 0.5)
    loaded = load_contender(RECIPE, None, tmp_path)
    assert isinstance(loaded, LookupModel)
    assert loaded.min_similarity == 0.5


def test_a_fine_tune_is_loaded_with_and_without_its_adapter(champion_lake: Path, tiny: FineTuneRecipe) -> None:
    lake = DataLake(champion_lake)
    assert tiny.base.source == "embedded"
    base, adapter = embedded_folder(tiny.base, lake), current_adapter("tiny", lake).folder
    answers = {}
    for name, folder in (("tuned", adapter), ("base", None)):
        model = load_contender(tiny, base, folder)
        assert isinstance(model, SupportModel)
        answers[name] = model.answer(["where is my refund?"], ["track_refund"], [()])[0]
        assert answers[name].tokens > 0
    assert answers["tuned"] != answers["base"]
