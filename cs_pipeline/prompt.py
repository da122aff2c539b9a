"""From a question to the tokens a model reads: the one way that training, evaluation and serving share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class Example:
    """A training row as tokens: ``input_ids`` and ``labels`` of one length, the labels ignored up to the answer."""

    input_ids: list[int]
    labels: list[int]


def messages(question: str, prompt: Prompt, intent: str | None) -> list[dict[str, str]]:
    """The chat messages before an answer: a system line where there is something to say in it, then the question.

    ``intent`` is the classifier's and is read only where the recipe routes by intent; it must be given then.
    """
    system = prompt.system
    if prompt.route == "intent":
        if intent is None:
            raise ValueError("this recipe routes by intent, but no intent was given")
        system = f"{system} Intent: {intent}".strip()
    turns = [{"role": "user", "content": question}]
    return [{"role": "system", "content": system}, *turns] if system else turns


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
