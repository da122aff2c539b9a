"""Prompts with the real tokenizer of every family: templates, stop tokens, text from outside."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import (
    IGNORE_INDEX,
    ChatFormat,
    Context,
    RetrievedText,
    chat_messages,
    earlier_turns,
    fit_prompt,
)
from cs_pipeline.recipe import PromptSettings
from cs_pipeline.text.clean import normalize_text
from cs_pipeline.text.placeholders import Speaker
from cs_pipeline.train.embedded import transcripts
from cs_pipeline_tests.support.tiny import FAMILIES, real_tokenizer, tiny_tokenizer

ALL = list(FAMILIES)

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


def answer_of(text: str, similarity: float = 0.9) -> RetrievedText:
    return RetrievedText("answer", "row", text, "a known question", None, None, similarity)


def article(title: str, text: str, similarity: float = 0.3) -> RetrievedText:
    return RetrievedText("passage", "passage", text, title, "help/a.md", "0" * 64, similarity)


@cache
def load(family: str, template: str | None = None) -> ChatFormat:
    """The chat format of ``family`` with ``template``; None for the template that its recipes name."""
    prompt = PromptSettings(template=template or FAMILIES[family].template)
    tokenizer = tiny_tokenizer(family)
    tokenizer.chat_template = prompt.template_text() or tokenizer.chat_template
    return ChatFormat(tokenizer, "encoder-decoder" if family == "t5" else "causal")


def control_ids(chat: ChatFormat, ids: list[int]) -> list[int]:
    """The control tokens among ``ids``, in order."""
    known = {id_ for id_, token in chat.tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return [id_ for id_ in ids if id_ in known]


# Messages


@pytest.mark.parametrize(
    ("prompt", "intent", "system"),
    [
        (PromptSettings(), None, None),
        (PromptSettings(), "track_order", None),
        (PromptSettings(system="Be kind."), "track_order", "Be kind."),
        (PromptSettings(route="intent"), "track_order", "Intent: track_order"),
        (PromptSettings(route="intent"), None, None),
        (PromptSettings(system="Be kind.", route="intent"), None, "Be kind."),
        (PromptSettings(system="Be kind.", route="intent"), "track_order", "Be kind. Intent: track_order"),
    ],
)
def test_messages(prompt: PromptSettings, intent: str | None, system: str | None) -> None:
    turns = chat_messages(QUESTION, prompt, intent, ())
    assert turns[-1] == {"role": "user", "content": QUESTION}
    assert turns[:-1] == ([{"role": "system", "content": system}] if system else [])


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
    assert roles(chat_messages("q", PromptSettings(), None, earlier)) == expected
    system = PromptSettings(system="Be kind.", route="intent")
    assert roles(chat_messages("q", system, "i", earlier)) == [("system", "Be kind. Intent: i"), *expected]


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
def test_an_invalid_context_is_refused_without_repeating_its_text(context: str) -> None:
    with pytest.raises(PipelineError, match="context is not a list") as raised:
        earlier_turns(context)
    assert "secret" not in str(raised.value)


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, 40))
def test_the_latest_turns_that_fit_are_kept(lengths: list[int], max_tokens: int) -> None:
    earlier: Context = [("customer", "x" * length) for length in lengths]
    fitted = fit_prompt(lambda turns, _: "question" + "".join(text for _, text in turns), earlier, (), max_tokens)
    tokens, dropped = fitted.encoded, fitted.turns_dropped
    assert tokens == "question" + "".join(text for _, text in earlier[dropped:])
    assert len(tokens) <= max_tokens or dropped == len(earlier)
    assert dropped == 0 or len(tokens) + lengths[dropped - 1] > max_tokens


# Prompt and answer as tokens


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(
    "prompt", [PromptSettings(), PromptSettings(system="Be kind.", route="intent")], ids=["plain", "routed"]
)
@CONTEXTS
def test_the_loss_covers_the_answer_and_the_stop_token(family: str, prompt: PromptSettings, earlier: Context) -> None:
    chat = load(family)
    turns = chat_messages(QUESTION, prompt, "track_order", earlier)
    asked = chat.encode_prompt(turns)
    assert len(asked) > 5
    for answer in ANSWERS:
        example = chat.encode_example(turns, answer)
        assert example.prompt == asked, "training and inference use the same prompt"
        assert example.answer[-1] == chat.stop_id
        assert control_ids(chat, example.answer) == [chat.stop_id]
        assert chat.decode(example.answer[:-1]) == answer.strip()
        if chat.architecture == "causal":
            assert example.input_ids == [*asked, *example.answer]
            assert example.labels == [*[IGNORE_INDEX] * len(asked), *example.answer]
        else:
            assert (example.input_ids, example.labels) == (asked, example.answer)
        assert len(example) == len(asked) + len(example.answer)


@pytest.mark.parametrize("family", ALL)
@settings(deadline=None, max_examples=40)
@given(answer=st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=30).map(normalize_text))
def test_any_clean_answer_survives_the_tokenizer(family: str, answer: str) -> None:
    chat = load(family)
    example = chat.encode_example(chat_messages(QUESTION, PromptSettings(), None, ()), answer)
    assert chat.decode(example.answer[:-1]) == chat.as_decoded(answer)
    assert chat.as_decoded(answer).replace(" ", "") == answer.replace(" ", "")


SYSTEM = PromptSettings(system="Be kind.")

# Each family's published format: the prompt up to where the answer begins, and the token that ends an answer.
PUBLISHED = {
    "embedded": ("Be kind.\n<|customer|>Hi!<|agent|>", "<|end|>"),
    "t5": ("Instruction: Be kind. Input: Hi! Output:</s>", "</s>"),
    "tinyllama": (
        "<s>Below is a customer support query. Respond helpfully and professionally. Be kind."
        "\n\n### Customer:\nHi!\n\n### Support Agent:\n",
        "</s>",
    ),
    "llama2": ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi! [/INST]", "</s>"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "phi2": ("Instruct: Be kind.\nHi!\nOutput:", "<|endoftext|>"),
    "phi3": ("<|system|>\nBe kind.<|end|>\n<|user|>\nHi!<|end|>\n<|assistant|>\n", "<|end|>"),
    "phi4": ("<|system|>Be kind.<|end|><|user|>Hi!<|end|><|assistant|>", "<|end|>"),
    "mistral": ("<s>[INST] Be kind.\n\nHi! [/INST]", "</s>"),
    "gptj": ("Be kind.\n\nCustomer: Hi!\nAgent:", "<|endoftext|>"),
    "smollm2": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "qwen3": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",  # reasoning is switched off
        "<|im_end|>",
    ),
}


@pytest.mark.parametrize("family", ALL)
def test_the_prompt_and_the_stop_token_are_the_published_ones(family: str) -> None:
    chat = load(family)
    text, stop = PUBLISHED[family]
    assert chat.render(chat_messages("Hi!", SYSTEM, None, ())) == text
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop_id) == stop
    assert {chat.stop_id, chat.tokenizer.eos_token_id} == chat.stop_ids


CONTROL_TOKENS = {
    "phi3": (
        ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"],
        [32006, 32007, 32010, 32007, 32001],
        32007,
    ),
    "smollm2": (["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"], [1, 2, 1, 2, 1], 2),
    "qwen3": (
        [*["<|im_start|>", "<|im_end|>"] * 2, "<|im_start|>", "<think>", "</think>"],
        [151644, 151645, 151644, 151645, 151644, 151667, 151668],
        151645,
    ),
    "llama2": (["<s>"], [1], 2),
    "mistral": (["<s>"], [1], 2),
    "t5": (["</s>"], [1], 1),
}
"""The control tokens of a prompt, their published ids, and the published id of the stop token."""


@pytest.mark.parametrize("family", CONTROL_TOKENS)
def test_a_prompt_has_the_control_tokens_of_its_family(family: str) -> None:
    """A folder without its config.json loads as another class of tokenizer, with other ids for the same text."""
    chat = load(family)
    tokens, ids, stop = CONTROL_TOKENS[family]
    found = control_ids(chat, chat.encode_prompt(chat_messages("Hi!", SYSTEM, None, ())))
    assert chat.tokenizer.convert_ids_to_tokens(found) == tokens
    if real_tokenizer(family):
        assert (found, chat.stop_id) == (ids, stop)


def test_a_llama_answer_is_tokenized_behind_its_prompt() -> None:
    """After a line break it is a word of its own, after [/INST] it includes the space: sentencepiece tells them apart."""
    turns = chat_messages("Hi!", PromptSettings(), None, ())
    beginnings = {"tinyllama": "It", "llama2": "\N{LOWER ONE EIGHTH BLOCK}It"}
    for family, beginning in beginnings.items():
        chat = load(family)
        example = chat.encode_example(turns, "It is.")
        assert "".join(chat.tokenizer.convert_ids_to_tokens(example.answer)).startswith(beginning)
        whole = chat.tokenizer(
            chat.render(turns) + chat._before_answer + "It is." + chat._after_answer, add_special_tokens=False
        )
        assert example.input_ids == [*whole["input_ids"], chat.stop_id]


def test_the_embedded_base_gets_the_prompt_it_was_trained_on() -> None:
    chat = load("embedded")
    for answer in ANSWERS:
        turns = chat_messages(QUESTION, PromptSettings(), None, ())
        (transcript,) = transcripts([QUESTION], [answer])
        assert chat.render(turns) + answer + "<|end|>" == transcript
        assert chat.encode_example(turns, answer).input_ids == chat.tokenizer(transcript)["input_ids"]


def test_a_conversation_looks_to_the_embedded_base_like_its_training_text() -> None:
    """Its transcripts follow one another just as the turns of one conversation do."""
    pairs = [("hello", "How may I help?"), ("i want a refund", "Of course."), (QUESTION, "")]
    questions, answers = zip(*pairs, strict=True)
    earlier: Context = [turn for question, answer in pairs[:2] for turn in (("customer", question), ("agent", answer))]
    text = load("embedded").render(chat_messages(QUESTION, PromptSettings(), None, earlier))
    assert text + "<|end|>" == "".join(transcripts(questions, answers))


@pytest.mark.parametrize("family", ALL)
def test_earlier_turns_come_in_order_before_the_question(family: str) -> None:
    chat = load(family)
    text = chat.render(chat_messages(QUESTION, PromptSettings(), None, EARLIER))
    places = [text.index(chat.escaping.escape(turn)) for turn in (*(turn for _, turn in EARLIER), QUESTION)]
    assert places == sorted(places)
    asked = chat.encode_prompt(chat_messages(QUESTION, PromptSettings(), None, EARLIER))
    alone = chat.encode_prompt(chat_messages(QUESTION, PromptSettings(), None, ()))
    assert len(asked) > len(alone)
    assert asked[-8:] == alone[-8:], "the question and what follows"
    ends = asked.count(chat.stop_id) - alone.count(chat.stop_id)
    # ChatML, Llama-3 and Phi end the customer's turns too; T5 reads everything as one text.
    assert ends == {"smollm2": 4, "qwen3": 4, "phi3": 4, "phi4": 4, "llama3": 4, "t5": 0}.get(family, 2)


@pytest.mark.parametrize("family", ALL)
@CONTEXTS
def test_retrieved_texts_come_before_the_question_in_the_customers_turn(family: str, earlier: Context) -> None:
    chat = load(family)
    found = [answer_of("Open {{Settings}}."), article("Orders", "An order has a number.")]
    turns = chat_messages(QUESTION, SYSTEM, None, earlier, found)
    expected = "Known answer: Open {{Settings}}.\n\nArticle (Orders): An order has a number.\n\nQuestion: " + QUESTION
    assert turns[:-1] == chat_messages(QUESTION, SYSTEM, None, earlier)[:-1]
    assert turns[-1]["role"] == "user"
    assert turns[-1]["content"].endswith(expected)
    assert chat.escaping.escape(expected) in chat.render(turns)
    usual = chat.encode_prompt(chat_messages(QUESTION, SYSTEM, None, earlier))
    assert chat.encode_prompt(turns)[-6:] == usual[-6:], "the end of the question and what follows"
    assert chat.encode_prompt(turns).count(chat.stop_id) == usual.count(chat.stop_id)


def test_the_last_text_of_each_kind_is_dropped_first_then_the_oldest_turn() -> None:
    """The first answer is the most usual one; its question may be less similar than that of the second."""
    found = [
        answer_of("a" * 10, 0.5),
        answer_of("b" * 20, 0.9),
        article("c", "c" * 30, 0.7),
        article("d", "d" * 5, 0.6),
    ]
    earlier: Context = [("customer", "x" * 10), ("agent", "y" * 10)]

    def encode(turns: Context, texts: Sequence[RetrievedText]) -> str:
        return "".join([*(text for _, text in turns), *(one.text for one in texts)])

    def kept(max_tokens: int) -> tuple[str, int, int]:
        fitted = fit_prompt(encode, earlier, found, max_tokens)
        assert fitted.encoded == encode(earlier[fitted.turns_dropped :], fitted.retrieved)
        return "".join(one.text[0] for one in fitted.retrieved), fitted.turns_dropped, len(fitted.encoded)

    assert kept(85) == ("abcd", 0, 85)
    assert kept(84) == ("abc", 0, 80)
    assert kept(79) == ("ab", 0, 50)
    assert kept(49) == ("a", 0, 30)
    assert kept(29) == ("", 0, 20)
    assert kept(19) == ("", 1, 10)
    assert kept(9) == ("", 2, 0)


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "phi3", "mistral", "tinyllama"])
@CONTEXTS
def test_the_models_own_template_writes_the_same_conversation(family: str, earlier: Context) -> None:
    """Prompt, answer and stop token equal what the template makes of question and answer together."""
    chat = load(family, "model")
    turns = chat_messages("where is it?", PromptSettings(), None, earlier)
    conversation = [*turns, {"role": "assistant", "content": "On its way."}]
    encoded: Any = chat.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)
    whole = encoded["input_ids"]
    ours = chat.encode_example(turns, "On its way.").input_ids
    assert whole[: len(ours)] == ours
    assert len(whole) - len(ours) <= 2  # a line break, or Phi-3's end of the text


def test_a_template_without_system_messages_gets_the_text_in_the_first_question() -> None:
    chat = load("mistral")
    turns = chat_messages("and now?", SYSTEM, None, EARLIER[:2])
    assert chat.render(turns) == (
        "<s>[INST] Be kind.\n\nHello, I need help. [/INST]Gladly! What is it about?\nAn order?</s>[INST] and now? [/INST]"
    )
    silent = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = tiny_tokenizer("embedded")
    before, tokenizer.chat_template = tokenizer.chat_template, silent
    try:
        assert (
            ChatFormat(tokenizer, "causal").render(chat_messages("Hi!", SYSTEM, None, ())) == "Be kind.\n\nHi!<|end|>"
        )
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no control token after an answer"),
        (
            "{% for m in messages %}{{ m['content'] | lower }}{{ eos_token }}{% endfor %}",
            "directly after the prompt",
        ),
        (
            "{% if add_generation_prompt %}A:{% else %}{{ messages[1]['content'] }}{% endif %}",
            "directly after the prompt",
        ),
    ],
)
def test_a_template_that_does_not_mark_the_end_of_an_answer_is_refused(template: str | None, message: str) -> None:
    tokenizer = tiny_tokenizer("embedded")
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        with pytest.raises(PipelineError, match=message) as raised:
            ChatFormat(tokenizer, "causal")
        assert "prompt.template" in raised.value.fix
    finally:
        tokenizer.chat_template = before


# Text from outside


PIECES = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|customer|>", "<|agent|>"),
    *("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>", "</s>", "<unk>", "<pad>", "<extra_id_0>"),
    *(
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<</SYS>>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "\N{FULLWIDTH LESS-THAN SIGN}/s>",
    ),
    *("### Support Agent:", "### Customer:", "Instruct:", "Output:", "Input:", "Instruction:", "Customer:", "Agent:"),
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
    *("###", "#", " Support", " Agent:", "Out", "put:", ":"),
]
hostile = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


@pytest.mark.parametrize("family", ALL)
@CONTEXTS
@settings(deadline=None, max_examples=40)
@given(text=hostile)
def test_no_text_becomes_a_control_token_or_a_turn(family: str, earlier: Context, text: str) -> None:
    chat = load(family)
    for prompt in (PromptSettings(), PromptSettings(system="S", route="intent")):
        harmless = chat_messages("a question", prompt, "intent", earlier, [answer_of("an answer"), article("a", "b")])
        found = [answer_of(text), article(text, text)]
        turns = chat_messages(text, prompt, text, [(speaker, text) for speaker, _ in earlier], found)
        ids, usual = chat.encode_prompt(turns), chat.encode_prompt(harmless)
        assert control_ids(chat, ids) == control_ids(chat, usual)
        written, expected = chat.render(turns), chat.render(harmless)
        for marker in chat._markers:
            assert written.count(marker) == expected.count(marker)
    answer = chat.encode_example(chat_messages("a question", PromptSettings(), None, ()), text).answer
    assert control_ids(chat, answer[:-1]) == []


@pytest.mark.parametrize("family", ALL)
@settings(deadline=None, max_examples=40)
@given(text=st.one_of(hostile, st.text(st.characters(exclude_categories=["Cs"]), max_size=20)))
@example(text=" Agent:")
def test_breaking_up_markers_adds_nothing_but_spaces(family: str, text: str) -> None:
    chat = load(family)
    assert "".join(chat.as_decoded(text).split()) == "".join(text.split())
    plain = chat.as_decoded(text.strip())  # after a space, a marker that only counts at the beginning of a line is none
    assert chat.as_decoded(plain) == plain


@pytest.mark.parametrize("family", ALL)
def test_ordinary_text_is_unchanged(family: str) -> None:
    chat = load(family)
    texts = [
        "a < b, b > c | [ORDER] <b>bold</b> {% raw %}{{ 7 * 7 }}{% endraw %}",
        "5\N{PRIME} x 3\N{DOUBLE PRIME} «ok»",
    ]
    for text in (QUESTION, *ANSWERS, *texts, "Customer service: none.\n# Output of the agent: 1"):
        assert chat.as_decoded(text) == text.strip()
        rendered = chat.render(chat_messages(text, PromptSettings(), None, ()))
        assert chat.escaping.escape(text.strip()) in rendered, "text is not rendered as a template"


def test_markers_are_broken_up_only_for_the_templates_that_use_them() -> None:
    """A marker of another family means nothing here."""
    text = "I type ### Support Agent: yes\nOutput: [INST] 5 V"
    assert load("tinyllama").as_decoded(text) == text.replace("Agent:", "Agent :")
    assert load("llama2").as_decoded(text) == text.replace("[INST]", "[INST ]")
    assert load("phi2").as_decoded(text) == text.replace("Output:", "Output :")
    assert load("qwen3").as_decoded(text) == text
    assert load("phi2").as_decoded("Output: 5 V") == "Output : 5 V", "after a system message it would begin a line"
    assert load("phi2").as_decoded("the Output: 5 V") == "the Output: 5 V"
