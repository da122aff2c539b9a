"""From a question to the tokens a model reads: the one way that training, evaluation and serving share."""

import json
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.families import Architecture
from cs_pipeline.llm.written import Written
from cs_pipeline.recipe import TEMPLATES, Prompt
from cs_pipeline.text.placeholders import Speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORED = -100
"""The label of a token that the loss leaves out (torch.nn.CrossEntropyLoss's ignore_index)."""

Context = Sequence[tuple[Speaker, str]]
"""The earlier turns of a conversation, oldest first: who spoke, and what."""

_ROLES: dict[Speaker, str] = {"customer": "user", "agent": "assistant"}


@dataclass(frozen=True)
class RetrievedText:
    """One text that the index gave for a question.

    ``id`` is the row_id of a known answer or the passage_id; ``title`` the known question, or the article's title;
    ``address`` where the article is read and ``version`` its sha256, both None for answers. ``similarity`` is above 0 and
    at most 1. ``intent`` is what the known question was about, None for passages.
    """

    kind: Literal["answer", "passage"]
    id: str
    text: str
    title: str
    address: str | None
    version: str | None
    similarity: float
    intent: str | None = None


@dataclass(frozen=True)
class Example:
    """A training row as tokens: the ``prompt``, and the ``answer`` with the stop token at its end."""

    prompt: list[int]
    answer: list[int]
    kind: Architecture

    def __len__(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def input_ids(self) -> list[int]:
        """What the model reads; an encoder reads the prompt alone."""
        return self.prompt if self.kind == "encoder-decoder" else [*self.prompt, *self.answer]

    @property
    def labels(self) -> list[int]:
        """What the loss compares with: the answer; for a causal model, IGNORED before it for each token of the prompt."""
        return self.answer if self.kind == "encoder-decoder" else [*[IGNORED] * len(self.prompt), *self.answer]


def earlier_turns(context: str | None) -> list[tuple[Speaker, str]]:
    """The turns of a row's column ``context``. Raises PipelineError where it does not hold what the schema says."""
    if context is None:
        return []
    try:
        turns = [(speaker, text) for speaker, text in json.loads(context)]
        whole = all(speaker in _ROLES and isinstance(text, str) for speaker, text in turns)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        # Without the text: it is a customer's.
        raise PipelineError(
            "A row's context is no list of [speaker, text] with the speakers customer and agent.",
            "This is a fault of the step that made the table; its schema stands in cs_pipeline/core/schema.py.",
        )
    return turns


FOUND_FORM = "2"
"""Raised when found texts are put before a question in another way: part of the fingerprint of what reads them."""


def with_found(question: str, found: Sequence[RetrievedText]) -> str:
    """The customer's message with the ``found`` texts before the question; the question alone without any.

    They stand in the customer's turn and not in the system line, because every template has that turn and no model should
    take an article's or another customer's words for its own instructions.
    """
    if not found:
        return question
    told = (f"Known answer: {f.text}" if f.kind == "answer" else f"Article ({f.title}): {f.text}" for f in found)
    return "\n\n".join([*told, f"Question: {question}"])


def messages(
    question: str, prompt: Prompt, intent: str | None, earlier: Context, found: Sequence[RetrievedText] = ()
) -> list[dict[str, str]]:
    """The chat messages before an answer: a system line where there is something to say in it, the earlier turns, the
    question after what was ``found`` for it.

    ``intent`` is the classifier's and is read only where the recipe routes by intent; it must be given then. Customer and
    agent alternate and the customer begins, as many templates demand: neighbouring turns of one speaker become one
    message, and an agent's turns before the first question are left out.
    """
    system = prompt.system
    if prompt.route == "intent":
        if intent is None:
            raise ValueError("this recipe routes by intent, but no intent was given")
        system = f"{system} Intent: {intent}".strip()
    turns: list[dict[str, str]] = []
    for speaker, text in (*earlier, ("customer", with_found(question, found))):
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1]["content"] += f"\n{text}"
        elif turns or speaker == "customer":
            turns.append({"role": _ROLES[speaker], "content": text})
    return [{"role": "system", "content": system}, *turns] if system else turns


Encoded = TypeVar("Encoded", bound=Sized)


def fit(encode: Callable[[Context], Encoded], earlier: Context, most: int) -> tuple[Encoded, int]:
    """What ``encode`` makes of the latest of the ``earlier`` turns, as many as fit into ``most`` tokens.

    Returns it with the number of turns left out. Where it is too long even without any turn, that is what it returns.
    """
    for left_out in range(len(earlier)):
        encoded = encode(earlier[left_out:])
        if len(encoded) <= most:
            return encoded, left_out
    return encode(()), len(earlier)


@dataclass(frozen=True)
class Told(Generic[Encoded]):
    """What fitted into a prompt: it ``encoded``, the ``found`` texts in it, and how many earlier turns it is ``without``."""

    encoded: Encoded
    found: tuple[RetrievedText, ...]
    without: int


def fit_found_texts(
    encode: Callable[[Context, Sequence[RetrievedText]], Encoded],
    earlier: Context,
    found: Sequence[RetrievedText],
    most: int,
) -> Told[Encoded]:
    """What ``encode`` makes of as many ``found`` texts and ``earlier`` turns as fit into ``most`` tokens.

    First the found texts go, of each kind the last before the others and of the two kinds the less similar, then the oldest
    turns: what the customer said counts more than what others were told. Where it is too long even without any, that is
    what it returns.
    """
    worth = [
        max(one.similarity for one in found[place:] if one.kind == found[place].kind) for place in range(len(found))
    ]
    worst_first = sorted(range(len(found)), key=lambda place: (worth[place], -place))
    for left_out in range(len(found)):
        kept = [found[place] for place in sorted(worst_first[left_out:])]
        encoded = encode(earlier, kept)
        if len(encoded) <= most:
            return Told(encoded, tuple(kept), 0)
    encoded, without = fit(lambda turns: encode(turns, ()), earlier, most)
    return Told(encoded, (), without)


class ChatFormat:
    """How a base is spoken to: its tokenizer, its chat template, and what its turns end with.

    ``stop`` is the id of the token that ends an answer by the template (Phi-3's ``<|end|>``, Llama-3's ``<|eot_id|>``,
    ChatML's ``<|im_end|>``): it is the one that is taught, whatever the tokenizer calls its eos token. ``stops`` holds the
    eos token too, which a base may write instead.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", kind: Architecture) -> None:
        """Raises PipelineError when the tokenizer has no template, or one by which an answer has no end."""
        if not tokenizer.chat_template:
            raise PipelineError(
                "The tokenizer of this base has no chat template.",
                f"Name one in the recipe, prompt.template: {', '.join(sorted(p.stem for p in TEMPLATES.glob('*.jinja')))}.",
            )
        self.tokenizer = tokenizer
        self.kind = kind
        self.written = Written(tokenizer)
        self._markers = _markers(tokenizer)
        self._knows_system = self._renders_system()
        before, after = self._around_an_answer()
        self._before = before
        ends = [(after.index(token), token) for token in _control_tokens(tokenizer) if token in after]
        if not ends:
            raise PipelineError(
                "The chat template of this base writes no control token after an answer, so none can be taught as its end.",
                "Name a template of this project in the recipe (prompt.template).",
            )
        place, stop = min(ends, key=lambda end: (end[0], -len(end[1])))
        self._behind = after[:place]
        self.stop: int = tokenizer.get_vocab()[stop]
        self.stops = {self.stop, tokenizer.eos_token_id} - {None}

    def render(self, turns: Sequence[dict[str, str]]) -> str:
        """The text of ``turns`` in the chat template, up to where the answer begins.

        Text from outside is made plain first: no customer can write a control token.
        """
        return self._render([{**turn, "content": self._plain(turn["content"])} for turn in turns])

    def prompt(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the rendered ``turns``. The template writes every control token itself, so none is added."""
        return self._ids(self.render(turns))

    def example(self, turns: Sequence[dict[str, str]], answer: str) -> Example:
        """Prompt and answer for training: the prompt is the one that inference will read."""
        text = self.render(turns)
        prompt = self._ids(text)
        said = self._before + self._plain(answer) + self._behind
        # As it stands behind the prompt: sentencepiece would begin a text of its own with a space.
        whole = self._ids(text + said) if self.kind == "causal" else []
        follows = whole[: len(prompt)] == prompt
        return Example(prompt, [*(whole[len(prompt) :] if follows else self._ids(said)), self.stop], self.kind)

    def read(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, those of control left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.written.read(str(text)).strip()

    def plain(self, text: str) -> str:
        """``text`` as it reads when its tokens are read: without markers of turns and control tokens."""
        return self.written.read(self._plain(text)).strip()

    def _plain(self, text: str) -> str:
        """``text`` in its written form, with a space before the last character of every marker that it spells."""
        text = "\n" + self.written.write(text)  # some markers are such at the beginning of a line alone
        for marker in self._markers:
            if marker in text:
                text = text.replace(marker, f"{marker[:-1]} {marker[-1]}")
        return text[1:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, turns: Sequence[dict[str, str]], *, answered: bool = False) -> str:
        if turns[0]["role"] == "system" and not self._knows_system:
            system, first, *later = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *later]
        text: Any = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=not answered, **_SWITCHES
        )
        return str(text)

    def _renders_system(self) -> bool:
        """Whether the template has a place for a system line: Mistral's refuses it, others may leave it out."""
        from jinja2 import TemplateError

        self._knows_system = True
        try:
            return "INSTRUCTION" in self._render([_said("system", "INSTRUCTION"), _said("user", "question")])
        except TemplateError:
            return False

    def _around_an_answer(self) -> tuple[str, str]:
        """What the template writes between a prompt and its answer, and after the answer."""
        asked = [_said("user", "question")]
        prompt = self._render(asked)
        whole = self._render([*asked, _said("assistant", "ANSWER")], answered=True)
        before, found, after = whole.removeprefix(prompt).rpartition("ANSWER")
        if not found or not whole.startswith(prompt):
            raise PipelineError(
                "The chat template of this base writes an answer elsewhere than where it asks for one.",
                "Name a template of this project in the recipe (prompt.template).",
            )
        return before, after


_SWITCHES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Qwen3's reasoning is off, and Llama-3.2's prompt does not change from day to day: the date is its template's own default.

Templates that do not know a switch ignore it.
"""

_MARKER = re.compile(r"<\|\w+\|>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
_DECLARED = re.compile(r"\{#- markers: (\[.+\]) -#\}")


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    # Some vocabularies add runs of spaces as tokens; those control nothing.
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()}


def _markers(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What no text from outside may spell, the longest first: control tokens, and markers of turns that a template writes as
    plain text, such as TinyLlama's ``<|user|>`` and Mistral's ``[INST]``; templates of this project declare theirs.
    """
    template = str(tokenizer.chat_template)
    declared = [marker for found in _DECLARED.findall(template) for marker in json.loads(found)]
    markers = {*_control_tokens(tokenizer), *_MARKER.findall(template), *declared}
    return sorted(markers, key=lambda marker: (-len(marker), marker))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
