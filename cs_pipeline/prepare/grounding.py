"""What stands before a question of what the company has said: the one way for training, evaluation and serving."""

from collections.abc import Sequence
from dataclasses import replace

from cs_pipeline.found import Found
from cs_pipeline.lake import DataLake
from cs_pipeline.placeholders import PlaceholderMode, apply
from cs_pipeline.prepare.consensus import AMONG, most_usual
from cs_pipeline.prepare.retrieval import RetrievalIndex, retrieval_folder
from cs_pipeline.recipe import Prompt, Recipe


def open_index(recipe: Recipe, lake: DataLake) -> RetrievalIndex | None:
    """The lake's present index where the recipe retrieves. Raises PipelineError when it is not there or was changed."""
    return None if recipe.prompt.retrieve is None else RetrievalIndex.load(retrieval_folder(lake))


def retrieve(
    index: RetrievalIndex | None,
    prompt: Prompt,
    mode: PlaceholderMode,
    questions: Sequence[str],
    intents: Sequence[str | None],
    clusters: Sequence[object] | None = None,
) -> list[list[Found]]:
    """For each question its known answers, most usual first, then its passages, best first; nothing where ``prompt``
    retrieves nothing.

    ``intents`` are what the questions are routed to; a prompt without a route does without them here too.
    Texts are in ``mode``, a value drawn for a placeholder by the found text's own id: it is another customer's. For
    training, ``clusters`` are the questions' own, of which nothing is found.
    """
    wanted = prompt.retrieve
    if index is None or wanted is None:
        return [[] for _ in questions]
    answers: list[list[Found]] = [[] for _ in questions]
    if wanted.answers:
        routed = intents if prompt.route == "intent" else [None] * len(questions)
        near = index.answers(questions, max(AMONG, wanted.answers), clusters)
        answers = [most_usual(*pair, wanted.answers) for pair in zip(near, routed, strict=True)]
    passages = index.passages(questions, wanted.passages) if wanted.passages else [[] for _ in questions]
    return [
        [replace(one, text=apply(one.text, mode, "agent", one.id)) for one in (*known, *read)]
        for known, read in zip(answers, passages, strict=True)
    ]
