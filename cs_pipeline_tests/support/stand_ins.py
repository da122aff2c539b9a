"""Small tokenizers with the traits of the real families, trained in a second on the sample rows.

The tests use them where the real tokenizers are missing. They keep what has broken training before: a T5 vocabulary without
braces and line breaks, SentencePiece with byte fallback, markers that are plain text, markers that swallow the newline to
their right, a template that refuses a system turn, no pad token, more embeddings than tokens. Templates are ours, written
after the formats that the model cards describe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class StandIn:
    """``special`` are tokens in the order of their ids; ``named`` are the tokenizer's own, such as ``eos_token``."""

    kind: Literal["bytes", "digits", "sentencepiece", "t5"]
    special: tuple[str, ...]
    named: dict[str, str]
    chat_template: str | None = None
    adds_bos: bool = False
    swallow_newline: tuple[str, ...] = ()
    """Markers that take the white space to their right with them."""
    stop: tuple[str, ...] = ()
    """The generation config's stop tokens, where they are more than eos."""
    spare_embeddings: int = 0


_IM = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
_IM_ASSISTANT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
_SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    f"{{% for m in messages %}}{_IM}{{% endfor %}}{_IM_ASSISTANT}{{% endif %}}"
)
_QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
    f"{{% else %}}{_IM}{{% endif %}}{{% endfor %}}{_IM_ASSISTANT}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_TINYLLAMA = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_LLAMA_TOKENS = ("<unk>", "<s>", "</s>")
_LLAMA_NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_END_OF_TEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}

STAND_INS = {
    "t5-small": StandIn(
        "t5", ("<pad>", "</s>", "<unk>"), {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    ),
    "tinyllama-1.1b-chat": StandIn(
        "sentencepiece", _LLAMA_TOKENS, {**_LLAMA_NAMED, "pad_token": "</s>"}, _TINYLLAMA, adds_bos=True
    ),
    "mistral-7b-instruct-v0.2": StandIn("sentencepiece", _LLAMA_TOKENS, _LLAMA_NAMED, _MISTRAL, adds_bos=True),
    "phi-3-mini-4k": StandIn(
        "sentencepiece",
        (*_LLAMA_TOKENS, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        {**_LLAMA_NAMED, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        _PHI3,
        swallow_newline=("<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        stop=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        spare_embeddings=24,
    ),
    "phi-2": StandIn("bytes", ("<|endoftext|>",), _END_OF_TEXT, spare_embeddings=50),
    "gpt-j-6b": StandIn("bytes", ("<|endoftext|>",), _END_OF_TEXT, spare_embeddings=10),
    "smollm2-135m-instruct": StandIn(
        "digits",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        _SMOLLM2,
    ),
    "qwen3": StandIn(
        "bytes",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        _QWEN3,
        stop=("<|im_end|>", "<|endoftext|>"),
        spare_embeddings=20,
    ),
}


def stand_in(name: str) -> Any:
    """A tokenizer as transformers wraps one, with the traits of the real tokenizer in the folder ``name``."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    traits = STAND_INS[name]
    tokenizer = _trained(traits)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, rstrip=token in traits.swallow_newline) for token in traits.special]
    )
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **traits.named
    )
    if traits.chat_template:
        wrapped.chat_template = traits.chat_template
    return wrapped


def _trained(traits: StandIn) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(traits.special)
    if traits.kind == "t5":
        tokenizer = Tokenizer(models.Unigram())
        # Like T5's own: white space becomes one space, and braces, angle brackets and line breaks have no token.
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.NFKC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [chr(i) for i in range(33, 127) if chr(i) not in "{}<\\^`~"]
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=800,
            special_tokens=special,
            unk_token="<unk>",
            initial_alphabet=[*alphabet, *"éèäöüß€£–’“”«»′"],
            show_progress=False,
        )
        tokenizer.train_from_iterator((_without(text, "{}<\\^`~") for text in _texts()), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
        return tokenizer
    if traits.kind == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=[*special[:3], *bytes_],
            limit_alphabet=120,
            max_token_length=12,
            show_progress=False,
        )
        tokenizer.train_from_iterator(_texts(), trainer)
        if traits.adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
            )
        return _without_special_bytes(tokenizer, bytes_)
    tokenizer = Tokenizer(models.BPE())
    by_bytes: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes]) if traits.kind == "digits" else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _without_special_bytes(tokenizer: Any, bytes_: list[str]) -> Any:
    """The trainer makes the byte tokens special; those of a real SentencePiece model are ordinary ones."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in set(bytes_)]
    return Tokenizer.from_str(json.dumps(state))


def _without(text: str, characters: str) -> str:
    return text.translate(str.maketrans("", "", characters))


def _texts() -> Iterator[str]:
    from cs_pipeline.ingest.sample import sample_rows

    rows = sample_rows(300)
    yield from rows["instruction"]
    yield from rows["response"]
