"""The tab *Compare*: one question to two or three versions, judged before it is known who answered what."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import AskedQuestion, Feedback, ShownAnswer
from cs_pipeline.serve.desk.desk import DeskRequest, Desk
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.service import ModelService, Sampling
from cs_pipeline.serve.page.controls import model_choices, show_error, temperature_choice, tone_choice
from cs_pipeline.serve.page.transcript import settings_of, shown, system_of

LEAST, MOST = 2, 3
"""Answers that are compared at once."""

LETTERS = "ABC"
NONE_BETTER = "No difference"

_Shown = dict[Any, Any]


@dataclass(frozen=True)
class Trial:
    """A question with the answers in the order shown. ``id`` is the root of those of its judgements, made once."""

    id: str
    asked: AskedQuestion
    given: tuple[ShownAnswer, ...]


class CompareTab:
    """The tab's components and what they do. To be made inside ``gr.Blocks``; ``rater`` tells this browser from others."""

    def __init__(self, desk: Desk, service: ModelService, lake: DataLake, rater: gr.BrowserState) -> None:
        self._desk, self._service, self._lake = desk, service, lake
        self._trial = gr.State(None)
        with gr.Row():
            self.models = gr.Dropdown(
                label="Models, two or three",
                choices=[],
                multiselect=True,
                max_choices=MOST,
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
                placeholder="One question to all of them. Enter sends.",
                max_lines=8,
                scale=6,
                min_width=200,
                elem_id="compare-question",
            )
            ask = gr.Button("DeskRequest", variant="primary", min_width=80, elem_id="compare-ask")
        self._columns, self._answers, self._scores = [], [], []
        with gr.Row(equal_height=True):
            for letter in LETTERS:
                with gr.Column(visible=False, min_width=260) as column:
                    self._answers.append(gr.HTML(js_on_load=None, scale=1))
                    self._scores.append(
                        gr.Radio(
                            [1, 2, 3, 4, 5],
                            label=f"Answer {letter}",
                            info="1: useless. 5: could be sent as it is.",
                            scale=0,
                            elem_id=f"score-{letter}",
                        )
                    )
                self._columns.append(column)
        with gr.Row(visible=False, equal_height=True) as self._verdict:
            self._vote = gr.Radio([], label="Which answer is best?", scale=3, min_width=260, elem_id="vote")
            self._save = gr.Button("Save, and show who answered", variant="primary", elem_id="save")
        self._names = gr.HTML(js_on_load=None)

        gr.on(
            [ask.click, question.submit],
            self._ask,
            [question, self.models, tone, temperature],
            [self._trial, self._names, self._verdict, self._vote, self._save, *self._shown_for_answers()],
            show_progress_on=question,
            concurrency_limit=None,
        )
        self._save.click(
            self._judge,
            [self._trial, rater, self._vote, *self._scores],
            [self._names, self._save, *self._answers],
            show_progress="hidden",
        )

    def refreshed(self, chosen: Sequence[str]) -> gr.Dropdown:
        """The choices as they are now: at first the champion and its base."""
        choices = model_choices(self._service)
        names = [name for _, name in choices]
        first = [name for name in ("champion", "champion:base") if name in names]
        return gr.Dropdown(choices, value=[name for name in chosen if name in names] or first)

    def _shown_for_answers(self) -> list[Any]:
        return [*self._columns, *self._answers, *self._scores]

    def _ask(self, question: str, models: list[str], tone: str, temperature: float) -> _Shown:
        try:
            trial = self._trial_of(question, models, Tone(tone), Sampling(temperature=temperature))
        except PipelineError as error:
            show_error(error)
            return {self._names: gr.HTML()}
        letters = LETTERS[: len(trial.given)]
        shown_now: _Shown = {
            self._trial: trial,
            self._names: "",
            self._verdict: gr.Row(visible=True),
            self._vote: gr.Radio([*letters, NONE_BETTER], value=None, interactive=True),
            self._save: gr.Button(interactive=True),
        }
        for place, (column, answer, score) in enumerate(
            zip(self._columns, self._answers, self._scores, strict=True),
        ):
            shown_now[column] = gr.Column(visible=place < len(trial.given))
            shown_now[score] = gr.Radio(value=None, interactive=True)
            if place < len(trial.given):
                shown_now[answer] = _card(f"Answer {letters[place]}", trial.given[place].answer)
        return shown_now

    def _trial_of(self, question: str, models: list[str], tone: Tone, sampling: Sampling) -> Trial:
        if not question.strip():
            raise PipelineError("There is no question yet.", "Write what a customer would ask.")
        asked = [self._service.served(model).name for model in models]
        if len(set(asked)) < LEAST:
            raise PipelineError(
                "These are fewer than two different models.", "Choose two or three: two versions, or one and its base."
            )
        random.SystemRandom().shuffle(asked)
        asks = [DeskRequest(text=question, model=model, tone=tone, sampling=sampling) for model in dict.fromkeys(asked)]
        with ThreadPoolExecutor(len(asks)) as pool:
            replies = list(pool.map(self._desk.draft, asks))
        given = [ShownAnswer(system_of(r), r.text, settings_of(a, r)) for a, r in zip(asks, replies, strict=True)]
        return Trial(uuid4().hex, AskedQuestion(question), tuple(given))

    def _judge(self, trial: Trial, rater: str, vote: str | None, *scores: int | None) -> _Shown:
        given = scores[: len(trial.given)]
        try:
            if vote is None or None in given:
                raise PipelineError("Not every answer is judged yet.", "Give each 1 to 5, and say which is best.")
            winner = None if vote == NONE_BETTER else LETTERS.index(vote)
            with Feedback(self._lake) as feedback:
                for letter, answer, score in zip(LETTERS, trial.given, given, strict=False):
                    assert score is not None
                    feedback.rate(f"{trial.id}-{letter}", rater, trial.asked, answer, score)
                feedback.vote(f"{trial.id}-vote", rater, trial.asked, trial.given, winner)
        except PipelineError as error:
            show_error(error)
            return {self._names: gr.HTML()}
        named: _Shown = {
            answer: _card(f"Answer {letter}: {_name(one)}", one.answer)
            for answer, letter, one in zip(self._answers, LETTERS, trial.given, strict=False)
        }
        return {
            **named,
            self._names: '<p class="saved">Saved. Thank you.</p>',
            self._save: gr.Button(interactive=False),
        }


def _name(given: ShownAnswer) -> str:
    return f"{given.system} · {given.settings['recipe']}"


def _card(heading: str, answer: str) -> str:
    return f'<article class="answer"><h3>{heading}</h3>{shown(answer)}</article>'
