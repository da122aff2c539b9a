"""A base model with or without an adapter: loaded in one way, and asked in one way, by every stage."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.prompt import IGNORED, Context, Example, encode_example, encode_prompt, fit, messages
from cs_pipeline.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TOKENS_PER_PASS = 16_384
"""Tokens of one forward pass when likelihoods are measured: about 130 MB of logits for a vocabulary of 2,048."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote; ``stopped`` is false where it had to be cut off at the recipe's ``max_new_tokens``."""

    text: str
    stopped: bool
    tokens: int


@dataclass(frozen=True)
class Likelihood:
    """How probable a given answer is: ``nll`` in nats, summed over its ``tokens``, the stop token included."""

    nll: float
    tokens: int


def compute_type() -> "torch.dtype":
    """bfloat16 where the GPU computes in it, float16 on older GPUs, float32 on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_base(folder: Path, quantisation: str) -> Any:
    """The causal model in ``folder``, on the GPU if there is one, in NF4 if ``quantisation`` says so."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    hush()
    options: dict[str, Any] = {}
    if quantisation == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_type(),
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=compute_type(),
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        **options,
    )
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            # bitsandbytes 0.50 repacks 4-bit weights in the first evaluation on such a CPU, cannot train on them
            # afterwards, and fails where a layer's width is no multiple of 64.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (no attribute of every module)
    return model


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``folder``, padding on the left as generation needs it."""
    from transformers import AutoTokenizer

    hush()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # a mask hides the padding, so any token will do
    return tokenizer


class SupportModel:
    """A model that answers customers' questions by its recipe.

    ``adapter`` is None for the base alone, which is asked with the same prompt. Weights that NF4 has rounded stay rounded,
    but on a CPU they are unpacked once: it has no 4-bit arithmetic, and would unpack them again for every token.
    """

    def __init__(self, recipe: Recipe, base: Path, adapter: Path | None) -> None:
        import torch

        self.recipe = recipe
        self.tokenizer = load_tokenizer(adapter or base)
        model = load_base(base, recipe.quantisation)
        if recipe.quantisation == "nf4" and not torch.cuda.is_available():
            model = model.dequantize()
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
            if recipe.quantisation == "none" or not torch.cuda.is_available():
                model = model.merge_and_unload()
        self.model = model.eval()

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer]:
        """Greedy answers to ``questions``, in their order.

        For each question there are an intent, the classifier's, and its earlier turns: of these the model is told the
        latest, as many as make no prompt longer than the longest row of its training. Questions of like length are answered
        together; ``progress`` is told how many are done.
        """
        import torch

        prompts = [self._prompt(q, i, c) for q, i, c in zip(questions, intents, contexts, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), self.recipe.generation.batch_size):
            batch = order[start : start + self.recipe.generation.batch_size]
            inputs = self.tokenizer.pad({"input_ids": [prompts[i] for i in batch]}, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=self.recipe.generation.max_new_tokens,
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            for i, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[i] = self._answer(ids)
            progress(len(answers))
        return [answers[i] for i in range(len(prompts))]

    def likelihoods(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        references: Sequence[str],
    ) -> list[Likelihood]:
        """How probable each reference answer is to the model, after what a row of its training would have before it."""
        import torch

        rows = [self._example(*row) for row in zip(questions, intents, contexts, references, strict=True)]
        results: dict[int, Likelihood] = {}
        batch: list[int] = []
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        for place, i in enumerate(order):
            batch.append(i)
            longest = len(rows[order[min(place + 1, len(order) - 1)]])
            if place + 1 < len(order) and (len(batch) + 1) * longest <= TOKENS_PER_PASS:
                continue
            width = max(len(rows[j]) for j in batch)
            # Padded on the right: causal attention never looks there, so no mask is needed.
            ids = torch.tensor([_padded(rows[j].input_ids, width, 0) for j in batch], device=self.model.device)
            labels = torch.tensor([_padded(rows[j].labels, width, IGNORED) for j in batch], device=self.model.device)
            with torch.inference_mode():
                logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                losses = torch.nn.functional.cross_entropy(
                    logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
                )
            for j, nll in zip(batch, losses.double().sum(dim=1).tolist(), strict=True):
                results[j] = Likelihood(nll, sum(label != IGNORED for label in rows[j].labels))
            batch = []
        return [results[i] for i in range(len(rows))]

    def _prompt(self, question: str, intent: str | None, earlier: Context) -> list[int]:
        def encode(turns: Context) -> list[int]:
            return encode_prompt(self.tokenizer, messages(question, self.recipe.prompt, intent, turns))

        return fit(encode, earlier, self.recipe.trainer.max_length)[0]

    def _example(self, question: str, intent: str | None, earlier: Context, reference: str) -> Example:
        def encode(turns: Context) -> Example:
            return encode_example(self.tokenizer, messages(question, self.recipe.prompt, intent, turns), reference)

        return fit(encode, earlier, self.recipe.trainer.max_length)[0]

    def _answer(self, ids: list[int]) -> Answer:
        stop = self.tokenizer.eos_token_id
        stopped = stop in ids
        ids = ids[: ids.index(stop)] if stopped else ids
        return Answer(str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip(), stopped, len(ids))


def bits(nll: float) -> float:
    """Nats in bits."""
    return nll / math.log(2)


def hush() -> None:
    """Our own lines tell the progress; the libraries' bars and hints to developers would only tear them."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def _padded(values: list[int], width: int, value: int) -> list[int]:
    return values + [value] * (width - len(values))
