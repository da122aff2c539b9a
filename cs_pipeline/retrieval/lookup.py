"""Answers questions with the usual known answer to similar questions, word for word.

If no similar question is known, a look-up hands over to a person, and a cascade asks a fine-tuned model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.llm.model import Answer, Contender, SupportModel
from cs_pipeline.llm.prompt import Context, RetrievedText, earlier_turns
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, LookupRecipe, Recipe, read_fine_tune_recipe
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import in_context, own_known_rows, retrieve
from cs_pipeline.retrieval.router import PromptIntents, prompt_intents
from cs_pipeline.text.copied import mostly_copied
from cs_pipeline.text.placeholders import apply, without_placeholders

HANDOVER_ANSWER = "I am not sure that I can help you with that, so I am passing your question on to a colleague."
"""The answer when no known question is similar enough. When the version is served, a person then takes over."""

MODEL_FOLDER = "model"
"""The folder in a cascade's adapter folder that holds the adapter of its model."""

SAME_QUESTION = 0.8
"""From this similarity on, a known question counts as the same question, even if the router does not know its intent.

It applies to both ways of comparing: by characters, and by the mixture with a sentence-embedding model. In five trials
on 6,000 of Bitext's training rows, each with 7 of the 27 intents left out, 5 % of the questions about these intents had
a known question at 0.8 or more (both ways). Of the questions about the other intents, whose clusters were held out,
53 % (characters) and 75 % (mixture) had one.
"""

_THRESHOLD_FILE = "lookup.json"


class LookupModel:
    """Answers with the first known answer among the retrieved texts if its similarity is at least ``min_similarity``.

    If the router is sure of the question's intent and the answer has this intent, a look-up answers at any similarity.
    In a cascade the similarity alone decides, because below it the model answers, and not a person. ``recipe`` is the
    recipe of the look-up, or of the cascade that the look-up is part of.
    """

    def __init__(self, recipe: Recipe, min_similarity: float) -> None:
        self.recipe = recipe
        self.min_similarity = min_similarity

    @classmethod
    def load(cls, recipe: Recipe, folder: Path) -> "LookupModel":
        """The look-up whose threshold ``write_threshold`` wrote to ``folder``."""
        return cls(recipe, float(read_json(folder / _THRESHOLD_FILE)["min_similarity"]))

    def find(
        self, retrieved: Sequence[RetrievedText], intent: str | None, earlier: Context = ()
    ) -> RetrievedText | None:
        """The known answer to give, or None: a person, or the model of a cascade, should answer.

        ``intent`` is the routed one, None if the router is not sure. An answer that the customer got in the ``earlier``
        turns did not help, so it is not given again.
        """
        known = _first_answer(retrieved)
        if known is None or _was_given(known.text, earlier):
            return None
        if known.similarity >= self.min_similarity:
            return known
        return known if self._trusts_router and _is_of_intent(known, intent) else None

    @property
    def _trusts_router(self) -> bool:
        return isinstance(self.recipe, LookupRecipe) and self.recipe.prompt.route == "intent"

    def has_room(self, question: str, intent: str | None) -> bool:
        """Always True: a look-up has no context to fill."""
        return True

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
        retrieved: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Answer]:
        """The known answers in ``retrieved``, one per question, or HANDOVER_ANSWER."""
        texts = [()] * len(questions) if retrieved is None else retrieved
        found = [self.find(*row) for row in zip(texts, intents, contexts, strict=True)]
        progress(len(questions))
        return [
            Answer(HANDOVER_ANSWER, True, 0) if known is None else Answer(known.text, True, 0, retrieved=(known,))
            for known in found
        ]


class CascadeModel:
    """Asks ``lookup`` first, and ``model`` where it finds nothing. ``intents`` gives those that the model's prompts name."""

    def __init__(self, lookup: LookupModel, model: Contender, intents: PromptIntents) -> None:
        self.recipe = lookup.recipe
        self.lookup = lookup
        self.model = model
        self._intents = intents

    def has_room(self, question: str, intent: str | None) -> bool:
        """Whether ``question`` fits into the model's context."""
        return self.model.has_room(question, intent)

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
        retrieved: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Answer]:
        """The known answers in ``retrieved`` that the look-up finds, and the model's answers to the other questions."""
        texts = [()] * len(questions) if retrieved is None else retrieved
        found = [self.lookup.find(*row) for row in zip(texts, intents, contexts, strict=True)]
        open_rows = [i for i, known in enumerate(found) if known is None]
        looked_up = len(questions) - len(open_rows)
        written = self.model.answer(
            [questions[i] for i in open_rows],
            self._intents([questions[i] for i in open_rows]),
            [contexts[i] for i in open_rows],
            lambda done: progress(looked_up + done),
            [texts[i] for i in open_rows] if self.model.recipe.prompt.retrieve is not None else None,
        )
        by_row = dict(zip(open_rows, written, strict=True))
        return [
            by_row[i] if known is None else Answer(known.text, True, 0, retrieved=(known,))
            for i, known in enumerate(found)
        ]


def load_contender(recipe: Recipe, base: Path | None, adapter: Path | None) -> Contender:
    """The contender of ``recipe``. ``base`` is None for a look-up. ``adapter`` is None for a fine-tune's base alone."""
    if isinstance(recipe, LookupRecipe):
        assert adapter is not None  # a look-up has no base that could answer
        return LookupModel.load(recipe, adapter)
    assert base is not None
    if isinstance(recipe, CascadeRecipe):
        assert adapter is not None
        folder = adapter / MODEL_FOLDER
        model_recipe = read_fine_tune_recipe(folder / "recipe.yaml")
        intents = prompt_intents(model_recipe, folder, None)
        return CascadeModel(LookupModel.load(recipe, adapter), SupportModel(model_recipe, base, folder), intents)
    assert isinstance(recipe, FineTuneRecipe)
    return SupportModel(recipe, base, adapter)


def lookup_threshold(recipe: LookupRecipe, index: RetrievalIndex, lake: DataLake) -> tuple[float, int]:
    """The minimum similarity of a look-up, and the number of validation questions that it was chosen with.

    Raises PipelineError if there are none.
    """
    columns = ["row_id", "instruction", "predicted_intent", "conversation_id", "context"]
    rows = lake.read("prepare", "validation_split", columns).to_pydict()
    texts = zip(rows["instruction"], map(earlier_turns, rows["context"]), rows["predicted_intent"], strict=True)
    asked = zip((in_context(*text) for text in texts), rows["row_id"], strict=True)
    questions = [apply(text, recipe.placeholders, "customer", row) for text, row in asked]
    # The index has training rows only, so it has no row of a question's cluster. It may have rows of its conversation.
    retrieved = retrieve(
        index,
        recipe.prompt,
        recipe.placeholders,
        questions,
        rows["predicted_intent"],
        own_rows=own_known_rows(rows["conversation_id"], lake),
    )
    intents = rows["predicted_intent"] if recipe.prompt.route == "intent" else [None] * len(questions)
    return handover_threshold(retrieved, intents, recipe.handover_share), len(questions)


def handover_threshold(
    retrieved: Sequence[Sequence[RetrievedText]], intents: Sequence[str | None], share: float
) -> float:
    """The highest similarity, up to SAME_QUESTION, with which at most ``share`` of these questions are handed over.

    ``retrieved`` has the texts that were retrieved for each question, and ``intents`` the routed intents, None where
    the router is not sure. A question without a known answer counts as similarity 0. A question whose known answer has
    its routed intent is never handed over, so it counts as 1. Raises PipelineError when there are no questions.
    """
    if not retrieved:
        raise PipelineError(
            "There are no validation questions to choose the look-up's threshold with.",
            "Materialise 'validation_split': it must have rows.",
        )
    first = [_first_answer(texts) for texts in retrieved]
    best = [
        0.0 if known is None else 1.0 if _is_of_intent(known, intent) else known.similarity
        for known, intent in zip(first, intents, strict=True)
    ]
    return min(SAME_QUESTION, float(np.quantile(best, share, method="lower")))


def _was_given(answer: str, earlier: Context) -> bool:
    """Whether an agent's turn contains ``answer``, or most of its words in runs: its placeholders may have been filled."""
    turns = [text for speaker, text in earlier if speaker == "agent"]
    return any(answer in text for text in turns) or bool(mostly_copied([without_placeholders(answer)], turns)[0])


def _first_answer(retrieved: Sequence[RetrievedText]) -> RetrievedText | None:
    return next((text for text in retrieved if text.kind == "answer"), None)


def _is_of_intent(known: RetrievedText, intent: str | None) -> bool:
    return intent is not None and known.intent == intent


NEVER = 2.0
"""A threshold that no similarity reaches: the model of a cascade answers every question."""


def similarity_limit(min_similarity: float) -> str:
    """The threshold of a look-up as text: three decimals, or "never"."""
    return "never" if min_similarity >= NEVER else f"{min_similarity:.3f}"


def write_threshold(folder: Path, min_similarity: float) -> None:
    """Writes the minimum similarity at which the look-up in ``folder`` answers."""
    write_json(folder / _THRESHOLD_FILE, {"min_similarity": min_similarity})
