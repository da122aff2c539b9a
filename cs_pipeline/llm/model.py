"""A base model with or without an adapter: loaded in one way, and asked in one way, by every stage."""

import json
import logging
import math
import resource
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import read_json
from cs_pipeline.llm.families import Family, family_of
from cs_pipeline.llm.prompt import IGNORED, ChatFormat, Context, Example, RetrievedText, Told, fit_found_texts, messages
from cs_pipeline.recipe import Recipe

if TYPE_CHECKING:
    import torch


TOKENS_PER_PASS = 16_384
"""Most tokens of one forward pass when likelihoods are measured."""

PROMPTS_PER_PASS = 32_768
"""Most tokens of the prompts that are answered together, padded: one question of 8,000 tokens beside 127 short ones would
make each of them as long."""

LOGITS_PER_PASS = {"cpu": 2**25, "cuda": 2**29}
"""Most logits of one such pass, 4 bytes each: 128 MiB beside the tests of a laptop, 2 GiB on a GPU."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote; ``stopped`` is false where it had to be cut off at the recipe's ``max_new_tokens``.

    ``left_out`` earlier turns, the oldest, were too much for the prompt and not told; ``found`` are the texts that it held.
    """

    text: str
    stopped: bool
    tokens: int
    left_out: int = 0
    found: tuple[RetrievedText, ...] = ()


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


def base_family(folder: Path) -> Family:
    """The family of the base in ``folder``."""
    return family_of(read_json(folder / "config.json"))


def load_base(folder: Path, quantization: str, dtype: "torch.dtype | None" = None) -> Any:
    """The model in ``folder``, on the GPU if there is one, in NF4 if ``quantization`` says so.

    Its weights are of ``dtype``, None for ``compute_type``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    hush()
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_type(),
        )
    auto = AutoModelForSeq2SeqLM if base_family(folder).kind == "encoder-decoder" else AutoModelForCausalLM
    model = auto.from_pretrained(
        folder,
        dtype=dtype or compute_type(),
        # Of several processes that train together each has made a GPU its own.
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
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


def load_chat(recipe: Recipe, base: Path, adapter: Path | None) -> ChatFormat:
    """How the model is spoken to: with the tokenizer that an adapter brings, else the base's with the recipe's template."""
    from transformers import AutoTokenizer

    hush()
    tokenizer = AutoTokenizer.from_pretrained(adapter or base, local_files_only=True, padding_side="left")
    if adapter is None and (template := recipe.prompt.template_text()) is not None:
        tokenizer.chat_template = template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # a mask hides the padding, so any token will do
    return ChatFormat(tokenizer, base_family(base).kind)


class SupportModel:
    """A model that answers customers' questions by its recipe.

    ``adapter`` is None for the base alone, which is asked with the same prompt. Weights that NF4 has rounded stay rounded,
    but on a CPU they are unpacked once: it has no 4-bit arithmetic, and would unpack them again for every token.
    """

    def __init__(self, recipe: Recipe, base: Path, adapter: Path | None) -> None:
        import torch

        self.recipe = recipe
        self.chat = load_chat(recipe, base, adapter)
        whole = adapter is not None and recipe.lora is None
        model = load_base(adapter if adapter is not None and whole else base, recipe.quantization)
        if recipe.quantization == "nf4" and not torch.cuda.is_available():
            model = model.dequantize()
        if adapter is not None and not whole:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
            if recipe.quantization == "none" or not torch.cuda.is_available():
                model = model.merge_and_unload()
        self.model = model.eval()
        self.stops = self.chat.stops | stops_of(model)

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
        found: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Answer]:
        """Greedy answers to ``questions``, in their order.

        For each question there are an intent, the classifier's, and its earlier turns: of these the model is told the
        latest, as many as make no prompt longer than the longest row of its training. ``found`` are the texts retrieved for
        each question, None for none at all; those that do not fit go before any turn does. Questions of like length are
        answered together; ``progress`` is told how many are done. Raises PipelineError when a question is too long for the
        model.
        """
        import torch

        texts = _none_found(questions) if found is None else found
        asked = [self._prompt(*row) for row in zip(questions, intents, contexts, texts, strict=True)]
        prompts = [told.encoded for told in asked]
        self._assert_room(prompts)
        answers: dict[int, Answer] = {}
        for batch in _batches(
            list(map(len, prompts)), self.recipe.generation.per_device_eval_batch_size, PROMPTS_PER_PASS
        ):
            inputs = self.chat.tokenizer.pad({"input_ids": [prompts[i] for i in batch]}, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=self.recipe.generation.max_new_tokens,
                    eos_token_id=sorted(self.stops),
                    pad_token_id=self.chat.tokenizer.pad_token_id,
                )
            # A decoder writes behind its start token, a causal model behind the prompt.
            begin = 1 if self.chat.kind == "encoder-decoder" else inputs["input_ids"].shape[1]
            for i, ids in zip(batch, output[:, begin:].tolist(), strict=True):
                answers[i] = self._answer(ids, asked[i])
            progress(len(answers))
        return [answers[i] for i in range(len(prompts))]

    def likelihoods(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        references: Sequence[str],
        found: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Likelihood]:
        """How probable each reference answer is to the model, after what a row of its training would have before it."""
        import torch

        texts = _none_found(questions) if found is None else found
        rows = [self._example(*row) for row in zip(questions, intents, contexts, texts, references, strict=True)]
        results: dict[int, Likelihood] = {}
        most = min(TOKENS_PER_PASS, LOGITS_PER_PASS[self.model.device.type] // self.model.config.vocab_size)
        for batch in _batches(list(map(len, rows)), len(rows), most):
            ids = self._tensor([rows[j].input_ids for j in batch], 0)
            labels = self._tensor([rows[j].labels for j in batch], IGNORED)
            with torch.inference_mode():
                if self.chat.kind == "encoder-decoder":
                    mask = self._tensor([[1] * len(rows[j].input_ids) for j in batch], 0)
                    logits = self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).logits
                else:  # padded on the right, where causal attention never looks, so no mask is needed
                    logits, labels = self.model(input_ids=ids, use_cache=False).logits[:, :-1], labels[:, 1:]
                # Flat: beside a last dimension that is no vocabulary, torch sums the probabilities of 32,000 tokens on a CPU
                # one by one in float32, and loses a thousandth of a nat a row.
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
                ).view(labels.shape)
            for j, nll in zip(batch, losses.double().sum(dim=1).tolist(), strict=True):
                results[j] = Likelihood(nll, len(rows[j].answer))
        return [results[i] for i in range(len(rows))]

    def _prompt(
        self, question: str, intent: str | None, earlier: Context, found: Sequence[RetrievedText]
    ) -> Told[list[int]]:
        def encode(turns: Context, known: Sequence[RetrievedText]) -> list[int]:
            return self.chat.prompt(messages(question, self.recipe.prompt, intent, turns, known))

        longest = self._longest_prompt()
        trained = self.recipe.trainer.max_length
        return fit_found_texts(encode, earlier, found, trained if longest is None else min(trained, longest))

    def _example(
        self, question: str, intent: str | None, earlier: Context, found: Sequence[RetrievedText], reference: str
    ) -> Example:
        def encode(turns: Context, known: Sequence[RetrievedText]) -> Example:
            return self.chat.example(messages(question, self.recipe.prompt, intent, turns, known), reference)

        return fit_found_texts(encode, earlier, found, self.recipe.trainer.max_length).encoded

    def has_room(self, question: str, intent: str | None) -> bool:
        """Whether the model can read ``question``, told with ``intent`` and no earlier turns, and answer it."""
        most = self._longest_prompt()
        return most is None or len(self._prompt(question, intent, (), ()).encoded) <= most

    def _assert_room(self, prompts: Sequence[list[int]]) -> None:
        """What does not fit is never cut: the end of a question is where its answer begins."""
        most = self._longest_prompt()
        for i, prompt in enumerate(prompts):
            if most is not None and len(prompt) > most:
                answer = self.recipe.generation.max_new_tokens
                raise PipelineError(
                    f"Question {i + 1} of {len(prompts)} makes a prompt of {len(prompt):,} tokens; this model reads "
                    f"{most + answer:,}, and its answer may take {answer:,} of them.",
                    "Ask more briefly, or lower generation.max_new_tokens in the recipe.",
                )

    def _longest_prompt(self) -> int | None:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is None:
            return None  # T5 has relative positions, and no such end
        return int(positions) - self.recipe.generation.max_new_tokens

    def _answer(self, ids: list[int], told: Told[list[int]]) -> Answer:
        end = next((i for i, id_ in enumerate(ids) if id_ in self.stops), None)
        return Answer(self.chat.read(ids[:end]), end is not None, len(ids[:end]), told.without, told.found)

    def _tensor(self, rows: Sequence[list[int]], padding: int) -> "torch.Tensor":
        import torch

        width = max(map(len, rows))
        return torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=self.model.device)


def _batches(lengths: Sequence[int], rows: int, tokens: int) -> Iterator[list[int]]:
    """Places in ``lengths`` from the shortest to the longest, at most ``rows`` together, and at most ``tokens`` where each
    is padded to the longest; one alone may be longer."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[place] > tokens):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _none_found(questions: Sequence[str]) -> list[tuple[()]]:
    return [()] * len(questions)


def stops_of(model: Any) -> set[int]:
    """The ids on which the base's own generation config stops: Phi-3's chat turns end on any of three."""
    ids = model.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def memory_used() -> float:
    """GiB at the peak: of the GPU since the process began or the count was reset, else of the process itself."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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


WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Names the shard in which each weight lies, where they are too large for one file."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def shards(folder: Path) -> list[str]:
    """The names of the weight files that a model in ``folder`` needs, sorted; the index is read where there is one."""
    index = folder / INDEX
    if not index.exists():
        return [WEIGHTS]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def missing_files(folder: Path) -> list[str]:
    """What keeps ``folder`` from being a whole model, for people; nothing: it is one. Weights are measured, not read."""
    if not folder.is_dir():
        return ["everything: it is no folder"]
    lacks = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).exists()]
    if not any((folder / name).exists() for name in _TOKENIZERS):
        lacks.append(" or ".join(_TOKENIZERS))
    try:
        needed = shards(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [*lacks, f"a readable {INDEX}"]
    return [*lacks, *(text for name in needed if (text := _lacks_weights(folder / name)))]


def _lacks_weights(file: Path) -> str:
    """A safetensors file begins with the length of a JSON header, which says where each tensor ends."""
    if not file.exists():
        return file.name
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        whole = file.stat().st_size == 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        whole = False
    return "" if whole else f"a whole {file.name}"
