"""What stands before a question of what the company has said: the one way for training, evaluation and serving."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import PromptSettings, Recipe
from cs_pipeline.retrieval.index import RetrievalIndex, retrieval_folder
from cs_pipeline.text.placeholders import PlaceholderMode, apply


def open_index(recipe: Recipe, lake: DataLake) -> RetrievalIndex | None:
    """The lake's present index where the recipe retrieves. Raises PipelineError when it is not there or was changed."""
    return None if recipe.prompt.retrieve is None else RetrievalIndex.load(retrieval_folder(lake))


def retrieve(
    index: RetrievalIndex | None,
    prompt: PromptSettings,
    mode: PlaceholderMode,
    questions: Sequence[str],
    intents: Sequence[str | None],
    clusters: Sequence[object] | None = None,
) -> list[list[RetrievedText]]:
    """For each question its known answers, most usual first, then its passages, best first; nothing where ``prompt``
    retrieves nothing.

    ``intents`` are what the questions are routed to; a prompt without a route does without them here too.
    Texts are in ``mode``, a value drawn for a placeholder by the found text's own id: it is another customer's. For
    training, ``clusters`` are the questions' own, of which nothing is found.
    """
    wanted = prompt.retrieve
    if index is None or wanted is None:
        return [[] for _ in questions]
    answers: list[list[RetrievedText]] = [[] for _ in questions]
    if wanted.answers:
        routed = intents if prompt.route == "intent" else [None] * len(questions)
        near = index.answers(questions, max(AMONG, wanted.answers), clusters)
        answers = [most_usual(*pair, wanted.answers) for pair in zip(near, routed, strict=True)]
    passages = index.passages(questions, wanted.passages) if wanted.passages else [[] for _ in questions]
    return [
        [replace(one, text=apply(one.text, mode, "agent", one.id)) for one in (*known, *read)]
        for known, read in zip(answers, passages, strict=True)
    ]


AMONG = 20
"""Known answers that are compared: with 10, 20 or 50 ROUGE-L was 41.2, 41.1 and 41.3 on those rows, and what is compared
grows with their square."""

AS_NEAR = 0.8
"""How similar their questions are at least, as a share of the nearest one's: a question that the company has had once counts
alone. On those rows, where all questions of an intent ask for the same, it costs: ROUGE-L 41.6 without."""


def most_usual(found: Sequence[RetrievedText], intent: str | None, count: int) -> list[RetrievedText]:
    """``count`` of ``found``, the nearest known answers, best first: the most usual ones first, then the others as they are.

    Compared are those of ``intent`` if there are any. How alike two answers are is Dice's share of their words and pairs of
    neighbouring words; each weighs by the similarity of its question.
    """
    as_near = [one for one in found if one.similarity >= AS_NEAR * found[0].similarity]
    those = [one for one in as_near if one.intent == intent] or as_near
    said = [_words(one.text) for one in those]
    usual = [0.0] * len(those)
    for a, b in combinations(range(len(those)), 2):
        alike = len(said[a] & said[b]) / max(1, len(said[a]) + len(said[b]))
        weighed = those[a].similarity * those[b].similarity * alike
        usual[a] += weighed
        usual[b] += weighed
    order = sorted(range(len(those)), key=usual.__getitem__, reverse=True)  # of equals the nearest: the order is kept
    others = [one for one in found if one not in those]
    return [*(those[place] for place in order), *others][:count]


def _words(text: str) -> frozenset[str | tuple[str, str]]:
    words = text.lower().split()
    return frozenset(words) | frozenset(pairwise(words))
