"""The *Compare* tab: two or three models answer a question. People rate the answers before they see the models' names."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer
from cs_pipeline.serve.desk.desk import Desk, DeskRequest
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.controls import Updates, model_choices, shows_errors, temperature_choice, tone_choice
from cs_pipeline.serve.page.transcript import HTML, draft_answers
from cs_pipeline.tracking import CHAMPION

_LETTERS = "ABC"
_TIE = "No difference"


@dataclass(frozen=True)
class BlindComparison:
    """A question with its answers in the order shown. The ids of all its ratings start with ``id``."""

    id: str
    asked: AskedQuestion
    given: tuple[GivenAnswer, ...]


class CompareTab:
    """The tab's components and events. Create it inside ``gr.Blocks``. ``rater`` identifies this browser."""

    def __init__(self, desk: Desk, service: ModelService, lake: DataLake, rater: gr.BrowserState) -> None:
        self._desk, self._service, self._lake = desk, service, lake
        self._comparison = gr.State(None)
        with gr.Row():
            self.models = gr.Dropdown(
                label="Models (two or three)",
                choices=[],
                multiselect=True,
                max_choices=len(_LETTERS),
                scale=2,
                min_width=300,
                elem_id="compare-models",
            )
            tone, temperature = tone_choice(), temperature_choice()
        with gr.Row(equal_height=True):
            question = gr.Textbox(
                "",
                label="Question",
                show_label=False,
                placeholder="One question for all of them. Press Enter to send.",
                max_lines=8,
                scale=6,
                min_width=200,
                elem_id="compare-question",
            )
            ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="compare-ask")
        self._columns, self._answers, self._scores = [], [], []
        with gr.Row(equal_height=True):
            for letter in _LETTERS:
                with gr.Column(visible=False, min_width=260) as column:
                    self._answers.append(gr.HTML(js_on_load=None, scale=1))
                    self._scores.append(
                        gr.Radio(
                            [1, 2, 3, 4, 5],
                            label=f"Answer {letter}",
                            info="1: useless, 5: ready to send",
                            scale=0,
                            elem_id=f"score-{letter}",
                        )
                    )
                self._columns.append(column)
        with gr.Row(visible=False, equal_height=True) as self._verdict:
            self._vote = gr.Radio([], label="Which answer is best?", scale=3, min_width=260, elem_id="vote")
            self._save = gr.Button("Save and show who answered", variant="primary", elem_id="save")
        self._note = gr.HTML(js_on_load=None)

        answers = [*self._columns, *self._answers, *self._scores]
        gr.on(
            [ask.click, question.submit],
            self._ask,
            [question, self.models, tone, temperature],
            [self._comparison, self._note, self._verdict, self._vote, self._save, *answers],
            show_progress_on=question,
            concurrency_limit=None,
        )
        self._save.click(
            self._judge,
            [self._comparison, rater, self._vote, *self._scores],
            [self._note, self._save, *self._answers],
            show_progress="hidden",
        )

    def refreshed(self, chosen: Sequence[str]) -> gr.Dropdown:
        """The current model choices. By default, the champion and its base are selected.

        If it has no base, the challenger or the newest other version is selected instead.
        """
        choices = model_choices(self._service)
        names = [name for _, name in choices]
        champion = self._service.registry.champion
        others = [m for m in self._service.models() if m.served.base or m.served.version != champion]
        default = [CHAMPION, *[m.name for m in others if m.name in names][:1]]
        return gr.Dropdown(choices, value=[name for name in chosen if name in names] or default)

    @shows_errors
    def _ask(self, question: str, models: list[str], tone: str, temperature: float) -> Updates:
        comparison = self._compare(question, models, Tone(tone), Sampling(temperature=temperature))
        letters = _LETTERS[: len(comparison.given)]
        updates: Updates = {
            self._comparison: comparison,
            self._note: "",
            self._verdict: gr.Row(visible=True),
            self._vote: gr.Radio([*letters, _TIE], value=None, interactive=True),
            self._save: gr.Button(interactive=True),
        }
        for index, (column, answer, score) in enumerate(
            zip(self._columns, self._answers, self._scores, strict=True),
        ):
            updates[column] = gr.Column(visible=index < len(letters))
            updates[score] = gr.Radio(value=None, interactive=True)
            if index < len(letters):
                updates[answer] = HTML.answer(f"Answer {letters[index]}", comparison.given[index].answer)
        return updates

    def _compare(self, question: str, models: list[str], tone: Tone, sampling: Sampling) -> BlindComparison:
        if not question.strip():
            raise PipelineError("There is no question yet.", "Write what a customer would ask.")
        names = list(dict.fromkeys(self._service.served(model).name for model in models))
        if len(names) < 2:
            raise PipelineError(
                "A comparison needs two different models.",
                "Choose two versions, for example, or a version and its base.",
            )
        random.SystemRandom().shuffle(names)
        requests = [DeskRequest(question, model=name, tone=tone, sampling=sampling) for name in names]
        return BlindComparison(uuid4().hex, AskedQuestion(question), draft_answers(self._desk, requests)[1])

    @shows_errors
    def _judge(self, comparison: BlindComparison, rater: str, vote: str | None, *scores: int | None) -> Updates:
        rated = [score for score in scores[: len(comparison.given)] if score is not None]
        if vote is None or len(rated) < len(comparison.given):
            raise PipelineError("Not every answer is rated yet.", "Rate each from 1 to 5, and choose the best one.")
        winner = None if vote == _TIE else _LETTERS.index(vote)
        with Feedback(self._lake) as feedback:
            for letter, answer, score in zip(_LETTERS, comparison.given, rated, strict=False):
                feedback.rate(f"{comparison.id}-{letter}", rater, comparison.asked, answer, score)
            feedback.vote(f"{comparison.id}-vote", rater, comparison.asked, comparison.given, winner)
        answers: Updates = {
            card: HTML.answer(f"Answer {letter}: {answer.system} · {answer.settings['recipe']}", answer.answer)
            for card, letter, answer in zip(self._answers, _LETTERS, comparison.given, strict=False)
        }
        return {
            **answers,
            self._note: '<p class="saved">Saved. Thank you.</p>',
            self._save: gr.Button(interactive=False),
        }
