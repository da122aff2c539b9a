"""Builds prompts: from a question to token ids. Training, evaluation and serving all use this code."""

import json
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.escaping import Escaping
from cs_pipeline.llm.families import Architecture
from cs_pipeline.recipe import TEMPLATE_FOLDER, PromptSettings
from cs_pipeline.text.placeholders import Speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORE_INDEX = -100
"""Label for tokens that do not count in the loss (``ignore_index`` of torch.nn.CrossEntropyLoss)."""

Context = Sequence[tuple[Speaker, str]]
"""The earlier turns of a conversation, oldest first, as (speaker, text)."""

_ROLES: dict[Speaker, str] = {"customer": "user", "agent": "assistant"}


@dataclass(frozen=True)
class RetrievedText:
    """A text that the retrieval index returned for a question.

    ``id`` is the row_id of a known answer or the passage_id of a passage. ``title`` is the known question or the article's
    title. ``address`` and ``version`` are the article's URL and sha256, None for answers. ``similarity`` is above 0 and at
    most 1. ``intent`` and ``source`` (bitext or company) are those of the known question, None for passages.
    """

    kind: Literal["answer", "passage"]
    id: str
    text: str
    title: str
    address: str | None
    version: str | None
    similarity: float
    intent: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Example:
    """A training row as token ids: the ``prompt``, and the ``answer`` ending with the stop token."""

    prompt: list[int]
    answer: list[int]
    architecture: Architecture

    def __len__(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def input_ids(self) -> list[int]:
        """The model's input; for an encoder-decoder only the prompt."""
        return self.prompt if self.architecture == "encoder-decoder" else [*self.prompt, *self.answer]

    @property
    def labels(self) -> list[int]:
        """The targets of the loss: the answer, and for a causal model IGNORE_INDEX at each prompt token before it."""
        return (
            self.answer
            if self.architecture == "encoder-decoder"
            else [*[IGNORE_INDEX] * len(self.prompt), *self.answer]
        )


def earlier_turns(context: str | None) -> list[tuple[Speaker, str]]:
    """Parses the column ``context``. Raises PipelineError if it does not follow the schema."""
    if context is None:
        return []
    try:
        turns = [(speaker, text) for speaker, text in json.loads(context)]
        valid = all(speaker in _ROLES and isinstance(text, str) for speaker, text in turns)
    except (ValueError, TypeError):
        valid = False
    if not valid:
        # The message does not quote the text, because a customer wrote it.
        raise PipelineError(
            "A row's context is not a list of [speaker, text] with the speakers customer and agent.",
            "The step that wrote the table has a bug; cs_pipeline/core/schema.yaml describes the column.",
        )
    return turns


RETRIEVED_TEXT_FORMAT = "2"
"""Version of the format of retrieved texts in a prompt. It is part of the fingerprint of everything that depends on it."""


def user_message(question: str, retrieved: Sequence[RetrievedText]) -> str:
    """The customer's message, with the ``retrieved`` texts before the question.

    The texts are in the customer's turn and not in the system message, because every template has that turn, and because no
    model should mistake an article or another customer's words for instructions.
    """
    if not retrieved:
        return question
    texts = (f"Known answer: {r.text}" if r.kind == "answer" else f"Article ({r.title}): {r.text}" for r in retrieved)
    return "\n\n".join([*texts, f"Question: {question}"])


def chat_messages(
    question: str, prompt: PromptSettings, intent: str | None, earlier: Context, retrieved: Sequence[RetrievedText] = ()
) -> list[dict[str, str]]:
    """The messages before an answer: a system message if there is one, the earlier turns, retrieved texts and question.

    ``intent`` comes from the router, None if it is not sure; only a recipe that routes by intent names it. Many templates
    require that customer and agent alternate and that the customer begins. So consecutive turns of one speaker become one
    message, and an agent's turns before the customer's first are dropped.
    """
    system = prompt.system
    if prompt.route == "intent" and intent is not None:
        system = f"{system} Intent: {intent}".strip()
    turns: list[dict[str, str]] = []
    for speaker, text in (*earlier, ("customer", user_message(question, retrieved))):
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1]["content"] += f"\n{text}"
        elif turns or speaker == "customer":
            turns.append({"role": _ROLES[speaker], "content": text})
    return [{"role": "system", "content": system}, *turns] if system else turns


Encoded = TypeVar("Encoded", bound=Sized)


@dataclass(frozen=True)
class FittedPrompt(Generic[Encoded]):
    """A prompt, shortened if necessary. ``retrieved`` are the texts in it; ``turns_dropped`` counts dropped turns."""

    encoded: Encoded
    retrieved: tuple[RetrievedText, ...]
    turns_dropped: int


def fit_prompt(
    encode: Callable[[Context, Sequence[RetrievedText]], Encoded],
    earlier: Context,
    retrieved: Sequence[RetrievedText],
    max_tokens: float,
) -> FittedPrompt[Encoded]:
    """``encode`` applied to as many ``retrieved`` texts and ``earlier`` turns as fit into ``max_tokens``.

    Retrieved texts are dropped first, one at a time: either the last answer or the last passage, whichever is less similar.
    Then the oldest turns are dropped, because the customer's own conversation matters more than retrieved texts. The result
    can still be too long when nothing is left to drop.
    """
    # A text ranks at least as high as the later ones of its kind, so each kind loses its last text first.
    ranks = [
        max(one.similarity for one in retrieved[i:] if one.kind == retrieved[i].kind) for i in range(len(retrieved))
    ]
    lowest_first = sorted(range(len(retrieved)), key=lambda i: (ranks[i], -i))
    for dropped in range(len(retrieved)):
        remaining = [retrieved[i] for i in sorted(lowest_first[dropped:])]
        encoded = encode(earlier, remaining)
        if len(encoded) <= max_tokens:
            return FittedPrompt(encoded, tuple(remaining), 0)
    for dropped in range(len(earlier)):
        encoded = encode(earlier[dropped:], ())
        if len(encoded) <= max_tokens:
            return FittedPrompt(encoded, (), dropped)
    return FittedPrompt(encode((), ()), (), len(earlier))


class ChatFormat:
    """The chat format of a base model: its tokenizer, its chat template, and the token that ends an answer.

    ``stop_id`` is the token that the template writes after an answer (Phi-3's ``<|end|>``, Llama-3's ``<|eot_id|>``,
    ChatML's ``<|im_end|>``). Training teaches this token, even if the tokenizer has a different eos token. ``stop_ids`` also
    contains the eos token, which a base may generate instead.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", architecture: Architecture) -> None:
        """Raises PipelineError if the tokenizer has no template, or one that does not mark the end of an answer."""
        if not tokenizer.chat_template:
            names = ", ".join(sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja")))
            raise PipelineError(
                "The tokenizer of this base has no chat template.", f"Set prompt.template in the recipe: {names}."
            )
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.escaping = Escaping(tokenizer)
        self._markers = _markers(tokenizer)
        self._supports_system = self._renders_system()
        before, after = self._text_around_answer()
        ends = [(after.index(token), token) for token in _control_tokens(tokenizer) if token in after]
        if not ends:
            raise PipelineError(
                "The chat template of this base writes no control token after an answer, so the model cannot learn to stop.",
                "Set prompt.template in the recipe to a template of this project.",
            )
        position, stop = min(ends, key=lambda end: (end[0], -len(end[1])))
        self._before_answer, self._after_answer = before, after[:position]
        self.stop_id: int = tokenizer.get_vocab()[stop]
        self.stop_ids = {self.stop_id, tokenizer.eos_token_id} - {None}

    def render(self, turns: Sequence[dict[str, str]]) -> str:
        """The text of ``turns`` in the chat template, up to the point where the answer begins.

        The text of each turn is escaped first, so a customer cannot write a control token.
        """
        return self._render([{**turn, "content": self._escape(turn["content"])} for turn in turns])

    def encode_prompt(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the rendered ``turns``. The template writes all control tokens, so the tokenizer adds none."""
        return self._ids(self.render(turns))

    def encode_example(self, turns: Sequence[dict[str, str]], answer: str) -> Example:
        """Prompt and answer for training. The prompt has the same tokens as at inference."""
        prompt_text = self.render(turns)
        prompt = self._ids(prompt_text)
        answer_text = self._before_answer + self._escape(answer) + self._after_answer
        # Tokenized together with the prompt, because sentencepiece would put a space before an answer on its own.
        together = self._ids(prompt_text + answer_text) if self.architecture == "causal" else []
        starts_with_prompt = together[: len(prompt)] == prompt
        ids = together[len(prompt) :] if starts_with_prompt else self._ids(answer_text)
        return Example(prompt, [*ids, self.stop_id], self.architecture)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer from its token ids, without control tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.escaping.unescape(str(text)).strip()

    def as_decoded(self, text: str) -> str:
        """The text that ``decode`` should return for the answer ``text``: with markers and control tokens broken up."""
        return self.escaping.unescape(self._escape(text)).strip()

    def _escape(self, text: str) -> str:
        """``text`` in characters that the tokenizer knows, with a space before the last character of every marker."""
        text = "\n" + self.escaping.escape(text)  # because some markers include the line break before them
        for marker in self._markers:
            if marker in text:
                text = text.replace(marker, f"{marker[:-1]} {marker[-1]}")
        return text[1:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, turns: Sequence[dict[str, str]], *, answered: bool = False) -> str:
        if turns[0]["role"] == "system" and not self._supports_system:
            system, first, *later = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *later]
        text: Any = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=not answered, **_TEMPLATE_ARGUMENTS
        )
        return str(text)

    def _renders_system(self) -> bool:
        """Whether the template writes system messages: Mistral's raises an error, others ignore them."""
        from jinja2 import TemplateError

        self._supports_system = True
        try:
            return "INSTRUCTION" in self._render([_message("system", "INSTRUCTION"), _message("user", "question")])
        except TemplateError:
            return False

    def _text_around_answer(self) -> tuple[str, str]:
        """The texts that the template writes between a prompt and its answer, and after the answer."""
        question = [_message("user", "question")]
        prompt = self._render(question)
        conversation = self._render([*question, _message("assistant", "ANSWER")], answered=True)
        before, answer, after = conversation.removeprefix(prompt).rpartition("ANSWER")
        if not answer or not conversation.startswith(prompt):
            raise PipelineError(
                "The chat template of this base does not put an answer directly after the prompt that asks for it.",
                "Set prompt.template in the recipe to a template of this project.",
            )
        return before, after


_TEMPLATE_ARGUMENTS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Turns off Qwen3's reasoning, and sets the date in Llama-3.2's prompt to its template's default instead of today.

Templates ignore arguments that they do not know.
"""

_MARKER = re.compile(r"<\|\w+\|>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
_DECLARED_MARKERS = re.compile(r"\{#- markers: (\[.+\]) -#\}")


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    # Some vocabularies also have runs of spaces as added tokens; these are not control tokens.
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()}


def _markers(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The markers that the text of a turn must not contain, longest first.

    They are the control tokens, and the turn markers that a template writes as plain text, such as TinyLlama's ``<|user|>``
    and Mistral's ``[INST]``. This project's templates declare their markers in a comment.
    """
    template = str(tokenizer.chat_template)
    declared = [marker for found in _DECLARED_MARKERS.findall(template) for marker in json.loads(found)]
    markers = {*_control_tokens(tokenizer), *_MARKER.findall(template), *declared}
    return sorted(markers, key=lambda marker: (-len(marker), marker))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
