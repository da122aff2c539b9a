import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from cs_pipeline.errors import PipelineError
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.model import load_tokenizer
from cs_pipeline.placeholders import Speaker
from cs_pipeline.prepare.clean import regular_text
from cs_pipeline.prompt import (
    IGNORED,
    Context,
    earlier_turns,
    encode_answer,
    encode_example,
    encode_prompt,
    fit,
    messages,
    plain_text,
    render,
)
from cs_pipeline.recipe import Prompt
from cs_pipeline.train.embedded import _tokenizer, transcripts
from cs_pipeline_tests.conftest import SHARED

FOR_CHAT = ["embedded", "smollm2-135m-instruct", "qwen3"]
"""Those that the project's recipes use."""
ALL = [*FOR_CHAT, "tinyllama-1.1b-chat", "phi-3-mini-4k", "mistral-7b-instruct-v0.2"]

QUESTION = "where is my order {{Order Number}}?"
EARLIER: list[tuple[Speaker, str]] = [
    ("customer", "Hello, I need help."),
    ("agent", "Gladly! What is it about?\nAn order?"),
    ("customer", "yes"),
    ("agent", "Which one?"),
]
CONTEXTS = pytest.mark.parametrize("earlier", [[], EARLIER], ids=["first", "later"])
ANSWERS = [
    "It is on its way.",
    "Of course:\n1. Open '{{Settings}}'.\n2. Choose \"Cancel\".\n\nThat is all!",
    "  spaces  at both ends \n",
    "Très bien \U0001f642 – 100 % sûr, don't you think ?",
    "",
]


@cache
def load(name: str) -> PreTrainedTokenizerBase:
    if name == "embedded":
        rows = sample_rows(300)
        return _tokenizer(transcripts(rows["instruction"].tolist(), rows["response"].tolist()), 400)
    folder = SHARED / "tokenizers" / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return load_tokenizer(folder)


def control_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Those of ``ids`` that are a control token, in their order."""
    known = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return [id_ for id_ in ids if id_ in known]


# Messages


@pytest.mark.parametrize(
    ("prompt", "intent", "system"),
    [
        (Prompt(), None, None),
        (Prompt(), "track_order", None),
        (Prompt(system="Be kind."), "track_order", "Be kind."),
        (Prompt(route="intent"), "track_order", "Intent: track_order"),
        (Prompt(system="Be kind.", route="intent"), "track_order", "Be kind. Intent: track_order"),
    ],
)
def test_messages(prompt: Prompt, intent: str | None, system: str | None) -> None:
    turns = messages(QUESTION, prompt, intent, ())
    assert turns[-1] == {"role": "user", "content": QUESTION}
    assert turns[:-1] == ([{"role": "system", "content": system}] if system else [])


def test_a_recipe_that_routes_needs_an_intent() -> None:
    with pytest.raises(ValueError, match="no intent was given"):
        messages(QUESTION, Prompt(route="intent"), None, ())


def roles(turns: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ([], [("user", "q")]),
        ([("customer", "a"), ("agent", "b")], [("user", "a"), ("assistant", "b"), ("user", "q")]),
        ([("agent", "b")], [("user", "q")]),
        ([("agent", "b"), ("agent", "c"), ("customer", "d")], [("user", "d\nq")]),
        ([("customer", "a")], [("user", "a\nq")]),
        (
            [("agent", "0"), ("customer", "a"), ("customer", "b"), ("agent", "c"), ("agent", "d")],
            [("user", "a\nb"), ("assistant", "c\nd"), ("user", "q")],
        ),
    ],
)
def test_customer_and_agent_alternate(earlier: Context, expected: list[tuple[str, str]]) -> None:
    assert roles(messages("q", Prompt(), None, earlier)) == expected
    system = Prompt(system="Be kind.", route="intent")
    assert roles(messages("q", system, "i", earlier)) == [("system", "Be kind. Intent: i"), *expected]


def test_earlier_turns_are_read_from_their_column() -> None:
    assert earlier_turns(None) == []
    assert earlier_turns(json.dumps(EARLIER)) == EARLIER


@pytest.mark.parametrize(
    "context",
    [
        "",
        "[",
        "{}x",
        "1",
        '"secret"',
        '["secret"]',
        '[["bot", "secret"]]',
        '[["agent", 1]]',
        '[["agent"]]',
        "[[[], 1]]",
    ],
)
def test_a_context_that_is_none_is_told_without_its_text(context: str) -> None:
    with pytest.raises(PipelineError, match="context is no list") as raised:
        earlier_turns(context)
    assert "secret" not in str(raised.value)


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, 40))
def test_as_many_of_the_latest_turns_as_fit(lengths: list[int], most: int) -> None:
    earlier: Context = [("customer", "x" * length) for length in lengths]
    tokens, left_out = fit(lambda turns: "question" + "".join(text for _, text in turns), earlier, most)
    assert tokens == "question" + "".join(text for _, text in earlier[left_out:])
    assert len(tokens) <= most or left_out == len(earlier)
    assert left_out == 0 or len(tokens) + lengths[left_out - 1] > most


# Prompt and answer as tokens


@pytest.mark.parametrize("name", FOR_CHAT)
@pytest.mark.parametrize("prompt", [Prompt(), Prompt(system="Be kind.", route="intent")], ids=["plain", "routed"])
@pytest.mark.parametrize("answer", ANSWERS)
@CONTEXTS
def test_the_loss_covers_the_answer_and_the_stop_token(
    name: str, prompt: Prompt, answer: str, earlier: Context
) -> None:
    tokenizer = load(name)
    turns = messages(QUESTION, prompt, "track_order", earlier)
    example = encode_example(tokenizer, turns, answer)
    asked = encode_prompt(tokenizer, turns)
    assert example.input_ids[: len(asked)] == asked, "training reads the prompt that inference will read"
    assert len(asked) > 5
    assert example.labels[: len(asked)] == [IGNORED] * len(asked)
    supervised = example.labels[len(asked) :]
    assert example.input_ids[len(asked) :] == supervised
    assert supervised == encode_answer(tokenizer, answer)
    assert supervised[-1] == tokenizer.eos_token_id
    assert control_ids(tokenizer, supervised) == [tokenizer.eos_token_id]
    assert tokenizer.decode(supervised[:-1], skip_special_tokens=False) == answer


@pytest.mark.parametrize("name", FOR_CHAT)
@settings(deadline=None, max_examples=60)
@given(answer=st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=30).map(regular_text))
def test_any_clean_answer_is_read_back(name: str, answer: str) -> None:
    tokenizer = load(name)
    plain = plain_text(tokenizer, answer)
    ids = encode_answer(tokenizer, plain)
    assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == plain


@pytest.mark.parametrize("name", FOR_CHAT)
def test_the_prompt_ends_where_the_answer_begins(name: str) -> None:
    tokenizer = load(name)
    text = render(tokenizer, messages(QUESTION, Prompt(system="Be kind."), None, ()))
    assert text.index("Be kind.") < text.index(QUESTION)
    ends = {
        "embedded": "<|agent|>",
        "smollm2-135m-instruct": "<|im_start|>assistant\n",
        "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",  # its reasoning is switched off
    }
    assert text.endswith(ends[name])
    stop = {"embedded": "<|end|>", "smollm2-135m-instruct": "<|im_end|>", "qwen3": "<|im_end|>"}
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == stop[name]
    assert tokenizer.decode(encode_prompt(tokenizer, messages(QUESTION, Prompt(system="Be kind."), None, ()))) == text


def test_the_embedded_base_is_asked_as_it_was_trained() -> None:
    tokenizer = load("embedded")
    for answer in ANSWERS:
        turns = messages(QUESTION, Prompt(), None, ())
        (transcript,) = transcripts([QUESTION], [answer])
        assert render(tokenizer, turns) + answer + "<|end|>" == transcript
        assert encode_example(tokenizer, turns, answer).input_ids == tokenizer(transcript)["input_ids"]


def test_the_embedded_base_has_seen_conversations_as_they_are_asked() -> None:
    """Its transcripts stand one after the other, as the turns of one conversation do."""
    pairs = [("hello", "How may I help?"), ("i want a refund", "Of course."), (QUESTION, "")]
    questions, answers = zip(*pairs, strict=True)
    earlier: Context = [turn for question, answer in pairs[:2] for turn in (("customer", question), ("agent", answer))]
    text = render(load("embedded"), messages(QUESTION, Prompt(), None, earlier))
    assert text + "<|end|>" == "".join(transcripts(questions, answers))


@pytest.mark.parametrize("name", ALL)
def test_earlier_turns_stand_in_their_order_before_the_question(name: str) -> None:
    tokenizer = load(name)
    text = render(tokenizer, messages(QUESTION, Prompt(), None, EARLIER))
    places = [text.index(said) for said in (*(said for _, said in EARLIER), QUESTION)]
    assert places == sorted(places)
    asked = encode_prompt(tokenizer, messages(QUESTION, Prompt(), None, EARLIER))
    alone = encode_prompt(tokenizer, messages(QUESTION, Prompt(), None, ()))
    assert len(asked) > len(alone)
    assert asked[-8:] == alone[-8:], "the question and what follows it"
    ends = asked.count(tokenizer.eos_token_id) - alone.count(tokenizer.eos_token_id)
    # Phi-3 ends turns with another token than texts; TinyLlama and the embedded base end the customer's turns otherwise.
    assert ends == {"phi-3-mini-4k": 0, "embedded": 2, "mistral-7b-instruct-v0.2": 2}.get(name, 4)


# Text from outside


PIECES = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|customer|>", "<|agent|>"),
    *("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]"),
    *(
        "<",
        "|",
        ">",
        "/",
        "<|",
        "|>",
        "<|im_",
        "start|>",
        "<|e",
        "nd|>",
        "</",
        "s>",
        "[IN",
        "ST]",
        " ",
        "\n",
        "assistant",
    ),
]
hostile = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


@pytest.mark.parametrize("name", ALL)
@CONTEXTS
@settings(deadline=None, max_examples=60)
@given(text=hostile)
def test_no_text_becomes_a_control_token_or_a_turn(name: str, earlier: Context, text: str) -> None:
    tokenizer = load(name)
    # Mistral's template knows no system line.
    prompts = [Prompt()] if name.startswith("mistral") else [Prompt(), Prompt(system="S", route="intent")]
    markers = [piece for piece in PIECES if len(piece) > 2 and piece.endswith(("|>", "]")) and piece[0] in "<["]
    for prompt in prompts:
        harmless = messages("a question", prompt, "intent", earlier)
        turns = messages(text, prompt, text, [(speaker, text) for speaker, _ in earlier])
        ids, usual = encode_prompt(tokenizer, turns), encode_prompt(tokenizer, harmless)
        assert control_ids(tokenizer, ids) == control_ids(tokenizer, usual)
        written = render(tokenizer, harmless)
        for marker in markers:
            if marker in written:
                assert render(tokenizer, turns).count(marker) == written.count(marker)
    answer = encode_answer(tokenizer, text)
    assert control_ids(tokenizer, answer[:-1]) == []


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=60)
@given(text=st.one_of(hostile, st.text(max_size=20)))
def test_plain_text_adds_nothing_but_spaces(name: str, text: str) -> None:
    tokenizer = load(name)
    plain = plain_text(tokenizer, text)
    assert plain.replace(" ", "") == text.replace(" ", "")
    assert plain_text(tokenizer, plain) == plain
    assert not any(str(token) in plain for token in tokenizer.added_tokens_decoder.values() if str(token).strip())


@pytest.mark.parametrize("name", ALL)
def test_ordinary_text_stays_as_it_is(name: str) -> None:
    for text in (QUESTION, *ANSWERS, "a < b, b > c | [ORDER] <b>bold</b> {% raw %}{{ 7 * 7 }}{% endraw %}"):
        assert plain_text(load(name), text) == text
        assert text.strip() in render(load(name), messages(text, Prompt(), None, ())), "a template is no template twice"
