"""From a question to tokens, with the real tokenizer of every family: templates, stop tokens, text from outside."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import (
    IGNORED,
    ChatFormat,
    Context,
    RetrievedText,
    earlier_turns,
    fit,
    fit_prompt,
    messages,
)
from cs_pipeline.recipe import PromptSettings
from cs_pipeline.text.clean import regular_text
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
    """How a base of ``family`` is spoken to with ``template``, None for the one that its recipes name."""
    prompt = PromptSettings(template=template or FAMILIES[family].template)
    tokenizer = tiny_tokenizer(family)
    tokenizer.chat_template = prompt.template_text() or tokenizer.chat_template
    return ChatFormat(tokenizer, "encoder-decoder" if family == "t5" else "causal")


def control_ids(chat: ChatFormat, ids: list[int]) -> list[int]:
    """Those of ``ids`` that are a control token, in their order."""
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
        (PromptSettings(system="Be kind.", route="intent"), "track_order", "Be kind. Intent: track_order"),
    ],
)
def test_messages(prompt: PromptSettings, intent: str | None, system: str | None) -> None:
    turns = messages(QUESTION, prompt, intent, ())
    assert turns[-1] == {"role": "user", "content": QUESTION}
    assert turns[:-1] == ([{"role": "system", "content": system}] if system else [])


def test_a_recipe_that_routes_needs_an_intent() -> None:
    with pytest.raises(ValueError, match="no intent was given"):
        messages(QUESTION, PromptSettings(route="intent"), None, ())


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
    assert roles(messages("q", PromptSettings(), None, earlier)) == expected
    system = PromptSettings(system="Be kind.", route="intent")
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


# PromptSettings and answer as tokens


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("prompt", [PromptSettings(), PromptSettings(system="Be kind.", route="intent")], ids=["plain", "routed"])
@CONTEXTS
def test_the_loss_covers_the_answer_and_the_stop_token(family: str, prompt: PromptSettings, earlier: Context) -> None:
    chat = load(family)
    turns = messages(QUESTION, prompt, "track_order", earlier)
    asked = chat.prompt(turns)
    assert len(asked) > 5
    for answer in ANSWERS:
        example = chat.example(turns, answer)
        assert example.prompt == asked, "training reads the prompt that inference will read"
        assert example.answer[-1] == chat.stop
        assert control_ids(chat, example.answer) == [chat.stop]
        assert chat.read(example.answer[:-1]) == answer.strip()
        if chat.kind == "causal":
            assert example.input_ids == [*asked, *example.answer]
            assert example.labels == [*[IGNORED] * len(asked), *example.answer]
        else:
            assert (example.input_ids, example.labels) == (asked, example.answer)
        assert len(example) == len(asked) + len(example.answer)


@pytest.mark.parametrize("family", ALL)
@settings(deadline=None, max_examples=40)
@given(answer=st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=30).map(regular_text))
def test_any_clean_answer_is_read_back(family: str, answer: str) -> None:
    chat = load(family)
    example = chat.example(messages(QUESTION, PromptSettings(), None, ()), answer)
    assert chat.read(example.answer[:-1]) == chat.plain(answer)
    assert chat.plain(answer).replace(" ", "") == answer.replace(" ", "")


SYSTEM = PromptSettings(system="Be kind.")

# What each family is asked, up to where its answer begins, and what ends an answer: the formats that were published for it.
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
        "<think>\n\n</think>\n\n",  # its reasoning is switched off
        "<|im_end|>",
    ),
}


@pytest.mark.parametrize("family", ALL)
def test_the_prompt_and_the_stop_token_are_the_published_ones(family: str) -> None:
    chat = load(family)
    text, stop = PUBLISHED[family]
    assert chat.render(messages("Hi!", SYSTEM, None, ())) == text
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop) == stop
    assert {chat.stop, chat.tokenizer.eos_token_id} == chat.stops


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
    found = control_ids(chat, chat.prompt(messages("Hi!", SYSTEM, None, ())))
    assert chat.tokenizer.convert_ids_to_tokens(found) == tokens
    if real_tokenizer(family):
        assert (found, chat.stop) == (ids, stop)


def test_a_llama_answer_begins_as_it_stands_behind_its_prompt() -> None:
    """Behind a line break as a word of its own, and behind [/INST] with the space: sentencepiece tells them apart."""
    turns = messages("Hi!", PromptSettings(), None, ())
    beginnings = {"tinyllama": "It", "llama2": "\N{LOWER ONE EIGHTH BLOCK}It"}
    for family, beginning in beginnings.items():
        chat = load(family)
        example = chat.example(turns, "It is.")
        assert "".join(chat.tokenizer.convert_ids_to_tokens(example.answer)).startswith(beginning)
        whole = chat.tokenizer(chat.render(turns) + chat._before + "It is." + chat._behind, add_special_tokens=False)
        assert example.input_ids == [*whole["input_ids"], chat.stop]


def test_the_embedded_base_is_asked_as_it_was_trained() -> None:
    chat = load("embedded")
    for answer in ANSWERS:
        turns = messages(QUESTION, PromptSettings(), None, ())
        (transcript,) = transcripts([QUESTION], [answer])
        assert chat.render(turns) + answer + "<|end|>" == transcript
        assert chat.example(turns, answer).input_ids == chat.tokenizer(transcript)["input_ids"]


def test_the_embedded_base_has_seen_conversations_as_they_are_asked() -> None:
    """Its transcripts stand one after the other, as the turns of one conversation do."""
    pairs = [("hello", "How may I help?"), ("i want a refund", "Of course."), (QUESTION, "")]
    questions, answers = zip(*pairs, strict=True)
    earlier: Context = [turn for question, answer in pairs[:2] for turn in (("customer", question), ("agent", answer))]
    text = load("embedded").render(messages(QUESTION, PromptSettings(), None, earlier))
    assert text + "<|end|>" == "".join(transcripts(questions, answers))


@pytest.mark.parametrize("family", ALL)
def test_earlier_turns_stand_in_their_order_before_the_question(family: str) -> None:
    chat = load(family)
    text = chat.render(messages(QUESTION, PromptSettings(), None, EARLIER))
    places = [text.index(chat.written.write(said)) for said in (*(said for _, said in EARLIER), QUESTION)]
    assert places == sorted(places)
    asked = chat.prompt(messages(QUESTION, PromptSettings(), None, EARLIER))
    alone = chat.prompt(messages(QUESTION, PromptSettings(), None, ()))
    assert len(asked) > len(alone)
    assert asked[-8:] == alone[-8:], "the question and what follows it"
    ends = asked.count(chat.stop) - alone.count(chat.stop)
    # ChatML, Llama-3 and Phi end the customer's turns too, and T5 reads one text to its end.
    assert ends == {"smollm2": 4, "qwen3": 4, "phi3": 4, "phi4": 4, "llama3": 4, "t5": 0}.get(family, 2)


@pytest.mark.parametrize("family", ALL)
@CONTEXTS
def test_found_texts_stand_before_the_question_in_the_customers_turn(family: str, earlier: Context) -> None:
    chat = load(family)
    found = [answer_of("Open {{Settings}}."), article("Orders", "An order has a number.")]
    turns = messages(QUESTION, SYSTEM, None, earlier, found)
    told = "Known answer: Open {{Settings}}.\n\nArticle (Orders): An order has a number.\n\nQuestion: " + QUESTION
    assert turns[:-1] == messages(QUESTION, SYSTEM, None, earlier)[:-1]
    assert turns[-1]["role"] == "user"
    assert turns[-1]["content"].endswith(told)
    assert chat.written.write(told) in chat.render(turns)
    usual = chat.prompt(messages(QUESTION, SYSTEM, None, earlier))
    assert chat.prompt(turns)[-6:] == usual[-6:], "the question's end and what follows it"
    assert chat.prompt(turns).count(chat.stop) == usual.count(chat.stop)


def test_of_each_kind_the_last_text_goes_first_then_the_oldest_turn() -> None:
    """The first answer is the usual one, and may be to a less similar question than the second."""
    found = [
        answer_of("a" * 10, 0.5),
        answer_of("b" * 20, 0.9),
        article("c", "c" * 30, 0.7),
        article("d", "d" * 5, 0.6),
    ]
    said: Context = [("customer", "x" * 10), ("agent", "y" * 10)]

    def encode(turns: Context, texts: Sequence[RetrievedText]) -> str:
        return "".join([*(text for _, text in turns), *(one.text for one in texts)])

    def kept(most: int) -> tuple[str, int, int]:
        told = fit_prompt(encode, said, found, most)
        assert told.encoded == encode(said[told.without :], told.found)
        return "".join(one.text[0] for one in told.found), told.without, len(told.encoded)

    assert kept(85) == ("abcd", 0, 85)
    assert kept(84) == ("abc", 0, 80)
    assert kept(79) == ("ab", 0, 50)
    assert kept(49) == ("a", 0, 30)
    assert kept(29) == ("", 0, 20)
    assert kept(19) == ("", 1, 10)
    assert kept(9) == ("", 2, 0)


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "phi3", "mistral", "tinyllama"])
@CONTEXTS
def test_the_models_own_template_writes_the_whole_conversation_like_that(family: str, earlier: Context) -> None:
    """PromptSettings, answer and stop token are what the template makes of question and answer together."""
    chat = load(family, "model")
    turns = messages("where is it?", PromptSettings(), None, earlier)
    said = [*turns, {"role": "assistant", "content": "On its way."}]
    read: Any = chat.tokenizer.apply_chat_template(said, tokenize=True, return_dict=True)
    whole = read["input_ids"]
    ours = chat.example(turns, "On its way.").input_ids
    assert whole[: len(ours)] == ours
    assert len(whole) - len(ours) <= 2  # a line break, or Phi-3's end of the text


def test_a_template_without_a_system_line_gets_it_in_the_first_question() -> None:
    chat = load("mistral")
    turns = messages("and now?", SYSTEM, None, EARLIER[:2])
    assert chat.render(turns) == (
        "<s>[INST] Be kind.\n\nHello, I need help. [/INST]Gladly! What is it about?\nAn order?</s>[INST] and now? [/INST]"
    )
    silent = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = tiny_tokenizer("embedded")
    before, tokenizer.chat_template = tokenizer.chat_template, silent
    try:
        assert ChatFormat(tokenizer, "causal").render(messages("Hi!", SYSTEM, None, ())) == "Be kind.\n\nHi!<|end|>"
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no control token after an answer"),
        (
            "{% for m in messages %}{{ m['content'] | lower }}{{ eos_token }}{% endfor %}",
            "elsewhere than where it asks",
        ),
        ("{% if add_generation_prompt %}A:{% else %}{{ messages[1]['content'] }}{% endif %}", "elsewhere than"),
    ],
)
def test_a_template_that_teaches_no_end_is_refused(template: str | None, message: str) -> None:
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
        harmless = messages("a question", prompt, "intent", earlier, [answer_of("an answer"), article("a", "b")])
        found = [answer_of(text), article(text, text)]
        turns = messages(text, prompt, text, [(speaker, text) for speaker, _ in earlier], found)
        ids, usual = chat.prompt(turns), chat.prompt(harmless)
        assert control_ids(chat, ids) == control_ids(chat, usual)
        written, expected = chat.render(turns), chat.render(harmless)
        for marker in chat._markers:
            assert written.count(marker) == expected.count(marker)
    answer = chat.example(messages("a question", PromptSettings(), None, ()), text).answer
    assert control_ids(chat, answer[:-1]) == []


@pytest.mark.parametrize("family", ALL)
@settings(deadline=None, max_examples=40)
@given(text=st.one_of(hostile, st.text(st.characters(exclude_categories=["Cs"]), max_size=20)))
@example(text=" Agent:")
def test_plain_text_adds_nothing_but_spaces(family: str, text: str) -> None:
    chat = load(family)
    assert "".join(chat.plain(text).split()) == "".join(text.split())
    plain = chat.plain(text.strip())  # behind a space, what is a marker at the beginning of a line alone is none
    assert chat.plain(plain) == plain


@pytest.mark.parametrize("family", ALL)
def test_ordinary_text_stays_as_it_is(family: str) -> None:
    chat = load(family)
    texts = [
        "a < b, b > c | [ORDER] <b>bold</b> {% raw %}{{ 7 * 7 }}{% endraw %}",
        "5\N{PRIME} x 3\N{DOUBLE PRIME} «ok»",
    ]
    for text in (QUESTION, *ANSWERS, *texts, "Customer service: none.\n# Output of the agent: 1"):
        assert chat.plain(text) == text.strip()
        rendered = chat.render(messages(text, PromptSettings(), None, ()))
        assert chat.written.write(text.strip()) in rendered, "a template is no template twice"


def test_markers_in_plain_text_are_broken_where_the_template_has_them() -> None:
    """Each template's own, and no other's: what another family means by it says nothing here."""
    text = "I type ### Support Agent: yes\nOutput: [INST] 5 V"
    assert load("tinyllama").plain(text) == text.replace("Agent:", "Agent :")
    assert load("llama2").plain(text) == text.replace("[INST]", "[INST ]")
    assert load("phi2").plain(text) == text.replace("Output:", "Output :")
    assert load("qwen3").plain(text) == text
    assert load("phi2").plain("Output: 5 V") == "Output : 5 V", "behind a system line it would begin a line"
    assert load("phi2").plain("the Output: 5 V") == "the Output: 5 V"
