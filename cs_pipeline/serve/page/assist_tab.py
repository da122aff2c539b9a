"""The *Agent assist* tab drafts answers to a ticket. The agent may edit one of them. The text that is sent is stored."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import Feedback, GivenAnswer
from cs_pipeline.serve.desk.desk import Desk, DeskRequest
from cs_pipeline.serve.desk.mood import mood
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.controls import (
    COPY_JS,
    Updates,
    model_choices,
    shows_errors,
    temperature_choice,
    tone_choice,
    valid_choice,
)
from cs_pipeline.serve.page.transcript import HTML, draft_answers

_DRAFT_DEFAULTS = ((Tone.NEUTRAL, 0.0), (Tone.FRIENDLY, 0.0), (Tone.NEUTRAL, 0.8))
"""Initial tone and temperature of each draft."""


@dataclass(frozen=True)
class _Ticket:
    """A ticket with its drafts. The text that the agent sends is stored under ``id``."""

    id: str
    text: str
    drafts: tuple[GivenAnswer, ...]


class AssistTab:
    """The tab's components and events. Create it inside ``gr.Blocks``. ``agent`` holds the id of this browser."""

    def __init__(self, desk: Desk, service: ModelService, lake: DataLake, agent: gr.BrowserState) -> None:
        self._desk, self._service, self._lake = desk, service, lake
        self._ticket, self._picked = gr.State(None), gr.State(None)
        ticket = gr.Textbox(
            "", label="Ticket", lines=5, max_lines=16, placeholder="Paste what the customer wrote.", elem_id="ticket"
        )
        customer = gr.Textbox(
            "",
            label="Customer's id or e-mail, if known",
            info="Stored with your answer, so that both can be deleted if the customer asks.",
            max_lines=1,
        )
        self.models: list[gr.Dropdown] = []
        settings: list[Any] = []
        with gr.Accordion("Models and settings for the drafts", open=False), gr.Row():
            for number, (tone, temperature) in enumerate(_DRAFT_DEFAULTS, start=1):
                with gr.Column(min_width=220):
                    self.models.append(gr.Dropdown(label=f"Draft {number}: model", choices=[]))
                    settings += [tone_choice(tone), temperature_choice(temperature)]
        draft = gr.Button("Write three drafts", variant="primary", elem_id="draft")
        self._summary = gr.HTML(js_on_load=None)
        self._cards: list[gr.HTML] = []
        self._use_buttons: list[gr.Button] = []
        with gr.Row(equal_height=True):
            for number in range(1, len(_DRAFT_DEFAULTS) + 1):
                with gr.Column(min_width=260):
                    self._cards.append(gr.HTML(js_on_load=None, scale=1, elem_id=f"draft-{number}"))
                    self._use_buttons.append(
                        gr.Button(f"Use draft {number}", scale=0, interactive=False, elem_id=f"use-{number}")
                    )
        self._sources = gr.HTML(js_on_load=None, elem_id="known")
        self._answer = gr.Textbox("", label="Your answer", lines=6, max_lines=20, elem_id="answer")
        with gr.Row():
            copy = gr.Button("Copy", elem_id="copy")
            self._sent = gr.Button("I have sent this", variant="primary", interactive=False, elem_id="sent")
        self._note = gr.HTML(js_on_load=None)

        draft.click(
            self._draft,
            [ticket, *self.models, *settings],
            [
                *(self._ticket, self._picked, self._summary, self._sources, self._answer, self._sent, self._note),
                *(*self._cards, *self._use_buttons),
            ],
            concurrency_limit=None,
            show_progress_on=self._cards,
        )
        for number, button in enumerate(self._use_buttons):
            outputs = [self._answer, self._picked, self._sent]
            button.click(self._use(number), self._ticket, outputs, show_progress="hidden")
        copy.click(None, self._answer, None, js=COPY_JS)
        self._sent.click(
            self._send,
            [self._ticket, self._picked, agent, customer, self._answer],
            [self._note, self._sent],
            show_progress="hidden",
        )

    def refreshed(self, *chosen: str | None) -> list[gr.Dropdown]:
        """The current model choices for each draft."""
        choices = model_choices(self._service)
        return [gr.Dropdown(choices, value=valid_choice(choices, name)) for name in chosen]

    @shows_errors
    def _draft(self, ticket: str, *chosen: Any) -> Updates:
        models, settings = chosen[: len(_DRAFT_DEFAULTS)], chosen[len(_DRAFT_DEFAULTS) :]
        if not ticket.strip():
            raise PipelineError("There is no ticket yet.", "Paste what the customer wrote.")
        requests = [
            DeskRequest(ticket, model=model or "champion", tone=Tone(tone), sampling=Sampling(temperature))
            for model, tone, temperature in zip(models, settings[::2], settings[1::2], strict=True)
        ]
        replies, drafts = draft_answers(self._desk, requests)
        return {
            self._ticket: _Ticket(uuid4().hex, ticket, drafts),
            self._picked: None,
            self._summary: HTML.ticket(replies[0], mood(ticket)),
            self._sources: HTML.known(self._desk.look_up(ticket)),
            self._answer: "",
            self._sent: gr.Button(interactive=True),
            self._note: "",
            **{
                card: HTML.draft(number, draft)
                for number, (card, draft) in enumerate(zip(self._cards, drafts, strict=True), 1)
            },
            **{
                # A fixed reply of the desk, for example when a look-up found no answer, is not a draft to edit.
                button: gr.Button(interactive=draft.settings["author"] == "model")
                for button, draft in zip(self._use_buttons, drafts, strict=True)
            },
        }

    def _use(self, number: int) -> Any:
        def use(ticket: _Ticket) -> tuple[str, int, gr.Button]:
            return ticket.drafts[number].answer, number, gr.Button(interactive=True)

        return use

    @shows_errors
    def _send(self, ticket: _Ticket, picked: int | None, agent: str, customer: str, answer: str) -> Updates:
        with Feedback(self._lake) as feedback:
            feedback.agent_edit(ticket.id, agent, ticket.text, answer, ticket.drafts, picked, customer)
        return {
            self._note: '<p class="saved">Saved. It joins the company\'s conversations once personal data is removed.</p>',
            self._sent: gr.Button(interactive=False),
        }
