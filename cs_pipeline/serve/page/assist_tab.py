"""The tab *Agent assist*: drafts for a ticket, of which an agent picks one, edits it and sends it; what was sent is kept."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from html import escape
from typing import Any
from uuid import uuid4

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import Feedback, ShownAnswer
from cs_pipeline.serve.desk.desk import DeskRequest, Desk, Reply
from cs_pipeline.serve.desk.mood import mood
from cs_pipeline.serve.desk.desk import CitedSource
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.service import ModelService, Sampling
from cs_pipeline.serve.page.controls import COPY, model_choices, show_error, temperature_choice, tone_choice
from cs_pipeline.serve.page.transcript import settings_of, shown, source_list, system_of

FIRST = ((Tone.NEUTRAL, 0.0), (Tone.FRIENDLY, 0.0), (Tone.NEUTRAL, 0.8))
"""Tone and temperature of each draft, until the agent chooses others."""

_Shown = dict[Any, Any]


@dataclass(frozen=True)
class _Case:
    """A ticket with its drafts. ``id`` is that of the edit which comes of it, made once."""

    id: str
    ticket: str
    drafts: tuple[ShownAnswer, ...]


class AssistTab:
    """The tab's components and what they do. To be made inside ``gr.Blocks``; ``agent`` tells this browser from others."""

    def __init__(self, desk: Desk, service: ModelService, lake: DataLake, agent: gr.BrowserState) -> None:
        self._desk, self._service, self._lake = desk, service, lake
        self._case, self._picked = gr.State(None), gr.State(None)
        ticket = gr.Textbox(
            "", label="Ticket", lines=5, max_lines=16, placeholder="Paste what the customer wrote.", elem_id="ticket"
        )
        customer = gr.Textbox(
            "",
            label="Customer's id or e-mail, if known",
            info="kept with what you send, so that it can be forgotten when the customer asks for that",
            max_lines=1,
        )
        self.models: list[gr.Dropdown] = []
        settings: list[Any] = []
        with gr.Accordion("Models and settings of the drafts", open=False), gr.Row():
            for number, (tone, temperature) in enumerate(FIRST, start=1):
                with gr.Column(min_width=220):
                    self.models.append(gr.Dropdown(label=f"Draft {number}: model", choices=[]))
                    settings += [tone_choice(tone), temperature_choice(temperature)]
        draft = gr.Button("Write three drafts", variant="primary", elem_id="draft")
        self._about = gr.HTML(js_on_load=None)
        self._texts: list[gr.HTML] = []
        self._uses: list[gr.Button] = []
        with gr.Row(equal_height=True):
            for number in range(1, len(FIRST) + 1):
                with gr.Column(min_width=260):
                    self._texts.append(gr.HTML(js_on_load=None, scale=1, elem_id=f"draft-{number}"))
                    self._uses.append(
                        gr.Button(f"Use draft {number}", scale=0, interactive=False, elem_id=f"use-{number}")
                    )
        self._known = gr.HTML(js_on_load=None, elem_id="known")
        self._answer = gr.Textbox("", label="Your answer", lines=6, max_lines=20, elem_id="answer")
        with gr.Row():
            copy = gr.Button("Copy", elem_id="copy")
            self._sent = gr.Button("I have sent this", variant="primary", interactive=False, elem_id="sent")
        self._note = gr.HTML(js_on_load=None)

        draft.click(
            self._draft,
            [ticket, *self.models, *settings],
            [
                *(self._case, self._picked, self._about, self._known, self._answer, self._sent, self._note),
                *(*self._texts, *self._uses),
            ],
            concurrency_limit=None,
            show_progress_on=self._texts,
        )
        for number, use in enumerate(self._uses):
            use.click(self._use(number), self._case, [self._answer, self._picked, self._sent], show_progress="hidden")
        copy.click(None, self._answer, None, js=COPY)
        self._sent.click(
            self._send,
            [self._case, self._picked, agent, customer, self._answer],
            [self._note, self._sent],
            show_progress="hidden",
        )

    def refreshed(self, *chosen: str | None) -> list[gr.Dropdown]:
        """The choices of models as they are now, for each draft."""
        choices = model_choices(self._service)
        names = [name for _, name in choices]
        return [gr.Dropdown(choices, value=name if name in names else next(iter(names), None)) for name in chosen]

    def _draft(self, ticket: str, *chosen: Any) -> _Shown:
        models, settings = chosen[: len(FIRST)], chosen[len(FIRST) :]
        try:
            if not ticket.strip():
                raise PipelineError("There is no ticket yet.", "Paste what the customer wrote.")
            asks = [
                DeskRequest(text=ticket, model=model or "champion", tone=Tone(tone), sampling=Sampling(temperature=temperature))
                for model, tone, temperature in zip(models, settings[::2], settings[1::2], strict=True)
            ]
            with ThreadPoolExecutor(len(asks)) as pool:
                replies = list(pool.map(self._desk.draft, asks))
            known = self._desk.look_up(ticket)
        except PipelineError as error:
            show_error(error)
            return {self._note: gr.HTML()}
        drafts = tuple(ShownAnswer(system_of(r), r.text, settings_of(a, r)) for a, r in zip(asks, replies, strict=True))
        return {
            self._case: _Case(uuid4().hex, ticket, drafts),
            self._picked: None,
            self._about: _about(ticket, replies),
            self._known: _known(known),
            self._answer: "",
            self._sent: gr.Button(interactive=True),
            self._note: "",
            **{
                text: _card(number, draft)
                for number, (text, draft) in enumerate(zip(self._texts, drafts, strict=True), 1)
            },
            **{use: gr.Button(interactive=True) for use in self._uses},
        }

    def _use(self, number: int) -> Any:
        def use(case: _Case) -> tuple[str, int, gr.Button]:
            return case.drafts[number].answer, number, gr.Button(interactive=True)

        return use

    def _send(self, case: _Case, picked: int | None, agent: str, customer: str, answer: str) -> _Shown:
        try:
            with Feedback(self._lake) as feedback:
                feedback.agent_edit(case.id, agent, case.ticket, answer, case.drafts, picked, customer)
        except PipelineError as error:
            show_error(error)
            return {self._note: gr.HTML()}
        return {
            self._note: '<p class="saved">Kept. It comes to the company\'s conversations, and is cleaned like them.</p>',
            self._sent: gr.Button(interactive=False),
        }


def _about(ticket: str, replies: list[Reply]) -> str:
    first = replies[0]
    sure = "" if first.confidence is None else f" ({first.confidence:.0%})"
    lines = [f"Intent: <b>{escape(first.intent or 'unknown')}</b>{sure}", f"Mood: <b>{escape(mood(ticket).value)}</b>"]
    if first.handover is not None:
        lines.append(f"The desk would hand this over: <b>{escape(first.handover.value)}</b>")
    return f'<p class="about">{" · ".join(lines)}</p>'


def _known(sources: Sequence[CitedSource]) -> str:
    lists = (("Articles", "passage"), ("Past answers", "answer"))
    parts = ((title, [asdict(s) for s in sources if s.kind == kind]) for title, kind in lists)
    return "".join(f'<div class="sources">{title}:{source_list(those)}</div>' for title, those in parts if those)


def _card(number: int, draft: ShownAnswer) -> str:
    how = f"{draft.system}, {draft.settings['tone']}, temperature {draft.settings['temperature']:g}"
    return (
        f'<article class="answer"><h3>Draft {number} <small>{escape(how)}</small></h3>{shown(draft.answer)}</article>'
    )
