"""The *Chat* tab: a conversation with any version, as a customer would have it."""

import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.report.report import EMBEDDED_WARNING
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer
from cs_pipeline.serve.desk.desk import Desk, DeskRequest
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.controls import (
    SAVE_JS,
    Updates,
    model_choices,
    parse_details,
    show_error,
    temperature_choice,
    tone_choice,
    valid_choice,
)
from cs_pipeline.serve.page.transcript import (
    Conversation,
    answer_message,
    as_json,
    chatbot_messages,
    messages_of,
    new_chat,
    question_message,
    title,
    transcript_text,
    turn_of,
)

_MAX_SAVED_CHATS = 20
"""Number of chats that a browser keeps."""

_UPDATE_INTERVAL = 0.05
"""Seconds between two updates of a growing answer. Shorter ones would not be visible, and each update costs a message."""


class ChatTab:
    """The tab's components and events. Create it inside ``gr.Blocks``. ``rater`` identifies this browser."""

    def __init__(self, desk: Desk, service: ModelService, lake: DataLake, rater: gr.BrowserState) -> None:
        self._desk, self._service, self._lake = desk, service, lake
        self._running: dict[str, threading.Event] = {}
        self._chat = gr.State(new_chat)
        # A fixed secret: with a new one at each start, chats would be unreadable after a restart. The number in the key is
        # the version of Conversation's fields.
        self.saved = gr.BrowserState([], storage_key="cs-support-chats-1", secret="cs-support")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.warning = gr.HTML(visible=False, js_on_load=None)
                self._messages = gr.Chatbot(
                    label="Conversation",
                    show_label=False,
                    height="58vh",
                    # Messages are escaped already (see transcript.py) and shown as they are.
                    render_markdown=False,
                    latex_delimiters=[],
                    allow_tags=False,
                    buttons=[],
                    placeholder="Ask something a customer would ask.",
                    elem_id="conversation",
                )
                with gr.Row(equal_height=True):
                    self._question = gr.Textbox(
                        "",
                        label="Question",
                        show_label=False,
                        placeholder="Your question. Press Enter to send, Shift+Enter for a new line.",
                        lines=1,
                        max_lines=8,
                        scale=6,
                        min_width=240,
                        autofocus=True,
                        elem_id="question",
                    )
                    self._send = gr.Button("Send", variant="primary", min_width=100, elem_id="send")
                    self._stop = gr.Button("Stop", variant="stop", min_width=100, interactive=False, elem_id="stop")
                with gr.Row():
                    new = gr.Button("New chat", size="sm", min_width=90, elem_id="new")
                    json_file = gr.Button("Export JSON", size="sm", min_width=90, elem_id="export-json")
                    text_file = gr.Button("Export text", size="sm", min_width=90, elem_id="export-text")
            with gr.Column(scale=1, min_width=260):
                self.model = gr.Dropdown(label="Model", choices=[], elem_id="chat-model")
                tone, temperature = tone_choice(), temperature_choice()
                top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Below 1: unlikely words are left out")
                private = gr.Checkbox(label="Ask only for details that are needed", elem_id="private")
                with gr.Accordion("Facts about the case", open=False):
                    context = gr.Textbox("", label="Context", lines=2, placeholder="The parcel left on Monday.")
                    details = gr.Textbox("", label="Details", lines=2, placeholder="Order Number: 12345")
                self.history = gr.Dropdown(label="Earlier chats (kept in this browser)", choices=[], elem_id="history")
                delete = gr.Button("Delete earlier chats", size="sm")
        exported = gr.Textbox(visible=False)
        conversation = [self._messages, self._chat]

        asking = [self._question, self._chat, self.model, tone, temperature, top_p, private, context, details]
        changed = [self._messages, self._question, self._chat, self._send, self._stop]
        gr.on(
            [self._send.click, self._question.submit],
            self._answer,
            asking,
            changed,
            show_progress="hidden",
            concurrency_limit=None,
        ).then(self._save, [self._chat, self.saved], [self.saved, self.history], show_progress="hidden")
        self._stop.click(self._cancel, None, None, queue=False)
        self._messages.like(self._thumb, [self._chat, rater], self._chat, show_progress="hidden")
        self.model.change(self.warn, self.model, self.warning, show_progress="hidden")
        gr.on([new.click, self._messages.clear], self._new, None, [*conversation, self.history], show_progress="hidden")
        self.history.input(self._open, [self.history, self.saved], conversation, show_progress="hidden")
        delete.click(self._delete_chats, None, [self.saved, self.history], show_progress="hidden")
        for button, write, name, kind in (
            (json_file, as_json, "chat.json", "application/json"),
            (text_file, transcript_text, "chat.txt", "text/plain"),
        ):
            button.click(write, self._chat, exported, show_progress="hidden").then(
                None, exported, None, js=SAVE_JS.format(name=name, kind=kind)
            )

    def warn(self, name: str | None) -> gr.HTML:
        """The warning that the demo's model is not fit for customers, visible if ``name`` is that model."""
        warning = f'<div class="demo" role="note">{EMBEDDED_WARNING}</div>'
        models = self._service.models()
        return gr.HTML(warning, visible=any(model.served.embedded for model in models if model.name == name))

    def refreshed(self, model: str | None, saved: list[Conversation]) -> tuple[gr.Dropdown, gr.HTML, gr.Dropdown]:
        """The current choices of models and earlier chats, and the warning for the chosen model."""
        choices = model_choices(self._service)
        chosen = valid_choice(choices, model)
        return gr.Dropdown(choices, value=chosen), self.warn(chosen), _history(saved)

    def _answer(
        self,
        question: str,
        chat: Conversation,
        model: str | None,
        tone: str,
        temperature: float,
        top_p: float,
        private: bool,
        context: str,
        details: str,
        http_request: gr.Request,
    ) -> Iterator[Updates]:
        if not question.strip():
            yield {}
            return
        messages = chatbot_messages(chat["turns"])
        session, cancelled = str(http_request.session_hash), threading.Event()
        self._running[session] = cancelled
        idle: Updates = {self._send: gr.Button(interactive=True), self._stop: gr.Button(interactive=False)}
        yield {
            self._messages: [*messages, question_message(question), answer_message("")],
            self._question: "",
            self._send: gr.Button(interactive=False),
            self._stop: gr.Button(interactive=True),
        }
        try:
            request = DeskRequest(
                text=question,
                earlier=messages_of(chat["turns"]),
                model=model or "champion",
                tone=Tone(tone),
                sampling=Sampling(temperature=temperature, top_p=top_p),
                values=parse_details(details),
                private=private,
                context=context,
            )
            stream = self._desk.stream(request, cancelled)
            answer, last_update = "", time.monotonic()
            for piece in stream:
                answer += piece
                if time.monotonic() - last_update >= _UPDATE_INTERVAL:
                    last_update = time.monotonic()
                    yield {self._messages: [*messages, question_message(question), answer_message(answer)]}
            turns = [*chat["turns"], turn_of(request, stream.reply)]
            done: Conversation = {"id": chat["id"] or uuid4().hex, "turns": turns}
            yield {self._messages: chatbot_messages(turns), self._chat: done, **idle}
        except Exception as error:
            yield {self._messages: messages, self._question: question, **idle}
            if not isinstance(error, PipelineError):
                raise
            show_error(error)
        finally:
            cancelled.set()  # the page may have been closed in the middle
            self._running.pop(session, None)

    def _cancel(self, http_request: gr.Request) -> None:
        cancelled = self._running.get(str(http_request.session_hash))
        if cancelled is not None:
            cancelled.set()

    def _thumb(self, chat: Conversation, rater: str, like: gr.LikeData) -> Conversation:
        index = like.index // 2 if isinstance(like.index, int) else len(chat["turns"])
        if index >= len(chat["turns"]) or not isinstance(like.liked, bool):
            return chat
        turn, up = chat["turns"][index], like.liked
        asked = AskedQuestion(turn["question"], messages_of(chat["turns"][:index]))
        given = GivenAnswer(turn["system"], turn["answer"], turn["settings"])
        try:
            with Feedback(self._lake) as feedback:
                feedback.thumb(uuid4().hex, rater, asked, given, up)
        except PipelineError as error:
            show_error(error)
            return chat
        turn["thumb"] = up
        return chat

    def _save(self, chat: Conversation, saved: list[Conversation]) -> tuple[list[Conversation], gr.Dropdown]:
        others = [other for other in saved if other["id"] != chat["id"]]
        chats = [chat, *others][:_MAX_SAVED_CHATS] if chat["turns"] else others
        return chats, _history(chats)

    def _new(self) -> tuple[list[dict[str, str]], Conversation, gr.Dropdown]:
        return [], new_chat(), gr.Dropdown(value=None)

    def _open(self, id: str | None, saved: list[Conversation]) -> tuple[Any, Conversation]:
        chat = next((chat for chat in saved if chat["id"] == id), new_chat())
        thumbs = [{True: "Like", False: "Dislike", None: None}[turn["thumb"]] for turn in chat["turns"]]
        return gr.update(value=chatbot_messages(chat["turns"]), feedback_value=thumbs), chat

    def _delete_chats(self) -> tuple[list[Conversation], gr.Dropdown]:
        return [], _history([])


def _history(saved: list[Conversation]) -> gr.Dropdown:
    return gr.Dropdown([(title(chat), chat["id"]) for chat in saved], value=None)
