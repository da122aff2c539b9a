"""From a question to the tokens a model reads: the one way that training, evaluation and serving share."""

import json
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cs_pipeline.errors import PipelineError
from cs_pipeline.placeholders import Speaker
from cs_pipeline.recipe import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that the loss leaves out (torch.nn.CrossEntropyLoss's ignore_index)."""

EMBEDDED_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] + '\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|customer|>' + m['content'] }}"
    "{% else %}{{ '<|agent|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|agent|>' }}{% endif %}"
)
"""Chat template of the embedded base, version 1: its transcripts, with an optional system line before them."""


Context = Sequence[tuple[Speaker, str]]
"""The earlier turns of a conversation, oldest first: who spoke, and what."""

_ROLES: dict[Speaker, str] = {"customer": "user", "agent": "assistant"}


@dataclass(frozen=True)
class Example:
    """A training row as tokens: ``input_ids`` and ``labels`` of one length, the labels ignored up to the answer."""

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)


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
            "This is a fault of the step that made the table; its schema stands in cs_pipeline/schema.py.",
        )
    return turns


def messages(question: str, prompt: Prompt, intent: str | None, earlier: Context) -> list[dict[str, str]]:
    """The chat messages before an answer: a system line where there is something to say in it, the earlier turns, the
    question.

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
    for speaker, text in (*earlier, ("customer", question)):
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


def render(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]]) -> str:
    """The text of ``turns`` in the model's own chat template, up to where the answer begins.

    Text from outside is made plain first: no customer can write a control token.
    """
    plain = [{**turn, "content": plain_text(tokenizer, turn["content"])} for turn in turns]
    # enable_thinking is Qwen3's switch for its reasoning block; templates that do not know it ignore it.
    text: Any = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of the rendered prompt. The template writes every control token itself, so none is added."""
    return list(tokenizer(render(tokenizer, turns), add_special_tokens=False)["input_ids"])


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str) -> list[int]:
    """Token ids of ``answer`` and the stop token."""
    ids = tokenizer(plain_text(tokenizer, answer), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def encode_example(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]], answer: str) -> Example:
    """Prompt and answer for training: the loss covers the answer and its stop token alone."""
    prompt, completion = encode_prompt(tokenizer, turns), encode_answer(tokenizer, answer)
    return Example([*prompt, *completion], [*[IGNORED] * len(prompt), *completion])


def plain_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """``text`` with every control token that it spells broken by a space after its first character.

    So are the markers of turns that some templates write as plain text: TinyLlama's ``<|user|>``, Mistral's ``[INST]``.
    """
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens.update(_MARKER.findall(str(tokenizer.chat_template)))
    for token in sorted(tokens, key=lambda token: (-len(token), token)):
        # Some vocabularies add runs of spaces as tokens; those control nothing.
        if token.strip() and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


_MARKER = re.compile(r"<\|\w+\|>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
