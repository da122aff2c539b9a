"""Checks and loads language models, generates answers and measures likelihoods, in the same way for every stage."""

import json
import logging
import math
import resource
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import read_json
from cs_pipeline.llm.families import Family, family_of, hidden_size
from cs_pipeline.llm.prompt import (
    IGNORE_INDEX,
    ChatFormat,
    Context,
    Example,
    FittedPrompt,
    RetrievedText,
    chat_messages,
    fit_prompt,
)
from cs_pipeline.llm.tokenizer import load_tokenizer
from cs_pipeline.recipe import FineTuneRecipe, Recipe

if TYPE_CHECKING:
    import torch


TOKENS_PER_PASS = 16_384
"""Maximum tokens in one forward pass that measures likelihoods."""

PROMPT_TOKENS_PER_BATCH = 32_768
"""Maximum tokens, with padding, in a batch of prompts. Otherwise 127 short prompts could be padded to one of 8,000."""

_MAX_PADDING_RATIO = 2
"""Maximum ratio of a batch's tokens with padding to its tokens without. It keeps long prompts apart from short ones."""

LOGITS_PER_PASS = {"cpu": 2**25, "cuda": 2**29}
"""Maximum logits in a forward pass that measures likelihoods, 4 bytes each: 128 MiB on a CPU, 2 GiB on a GPU."""


@dataclass(frozen=True)
class Answer:
    """A generated answer. ``stopped`` is False if it was cut off at the recipe's ``max_new_tokens``.

    ``turns_dropped`` is the number of oldest turns that did not fit into the prompt; ``retrieved`` are the texts in it.
    """

    text: str
    stopped: bool
    tokens: int
    turns_dropped: int = 0
    retrieved: tuple[RetrievedText, ...] = ()


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood ``nll`` of a given answer, in nats, summed over its ``tokens`` including the stop token."""

    nll: float
    tokens: int


class Contender(Protocol):
    """Anything that answers customers: a model (``SupportModel``), a look-up (``LookupModel``) or a cascade of both."""

    @property
    def recipe(self) -> Recipe: ...

    def has_room(self, question: str, intent: str | None) -> bool:
        """Whether ``question`` with ``intent``, and an answer, fit into the model's context without earlier turns."""

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
        retrieved: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Answer]:
        """The answers to ``questions``, in the same order (see ``SupportModel.answer``)."""


WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
"""Maps each weight to its file, if the weights are split into several files."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files of the model in ``folder``, sorted; from its index, if there is one."""
    index = folder / WEIGHTS_INDEX
    return sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [WEIGHTS]


def missing_files(folder: Path) -> list[str]:
    """What is missing in ``folder`` for a complete model, as phrases for an error message; empty if nothing is.

    The weights are not read; only the length of their files is checked.
    """
    if not folder.is_dir():
        return ["everything: it is not a folder"]
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).exists()]
    if not any((folder / name).exists() for name in _TOKENIZERS):
        missing.append(" or ".join(_TOKENIZERS))
    try:
        weights = weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [*missing, f"a readable {WEIGHTS_INDEX}"]
    missing += [name for name in weights if not (folder / name).exists()]
    return missing + [
        f"a complete {name}" for name in weights if name not in missing and not _is_complete(folder / name)
    ]


def _is_complete(file: Path) -> bool:
    """Whether a safetensors file has its full length. It begins with a JSON header that says where each tensor ends."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return False


MIN_BFLOAT16_SIZE = 512
"""Minimum hidden size for bfloat16 on a CPU that has instructions for it. SmolLM2-135M, with 576, is much faster in bfloat16
(bench/processor.py). Narrower models such as the embedded one have not been measured and stay in float32."""


def compute_dtype(config: dict[str, Any] | None = None) -> "torch.dtype":
    """The type that this machine computes in, for the model with ``config``; None means a large model.

    On a GPU it is bfloat16, or float16 if the GPU is too old for bfloat16. On a CPU it is float32, or bfloat16 if the CPU
    has instructions for it (AMX or AVX512-BF16) and the hidden size is at least MIN_BFLOAT16_SIZE.
    """
    import torch

    if not torch.cuda.is_available():
        # Every CPU can compute in bfloat16, but without these instructions it is slower than float32.
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        wide = config is None or hidden_size(config) >= MIN_BFLOAT16_SIZE
        return torch.bfloat16 if fast and wide else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def base_family(folder: Path) -> Family:
    """The family of the base in ``folder``."""
    return family_of(read_json(folder / "config.json"))


def load_base(folder: Path, quantization: str, dtype: "torch.dtype | None" = None) -> Any:
    """The model in ``folder``, on the GPU if there is one; ``quantization`` is "none" or "nf4".

    Its weights are in ``dtype``; None means ``compute_dtype`` of its config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    quiet_libraries()
    dtype = dtype or compute_dtype(read_json(folder / "config.json"))
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    auto = AutoModelForSeq2SeqLM if base_family(folder).architecture == "encoder-decoder" else AutoModelForCausalLM
    model = auto.from_pretrained(
        folder,
        dtype=dtype,
        # If several processes train, each has set its own GPU as the current device.
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        **options,
    )
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights in the first evaluation. Afterwards they
            # cannot be trained on, and repacking fails if a layer's width is not a multiple of 64.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (not every module has the attribute)
    return model


def load_chat_format(recipe: FineTuneRecipe, base: Path, adapter: Path | None) -> ChatFormat:
    """The chat format with the tokenizer in ``adapter``, else with the base's tokenizer and the recipe's template."""
    quiet_libraries()
    tokenizer = load_tokenizer(adapter or base)
    if adapter is None and (template := recipe.prompt.template_text()) is not None:
        tokenizer.chat_template = template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # any token works, because the attention mask hides padding
    return ChatFormat(tokenizer, base_family(base).architecture)


def reads_earlier_turns(adapter: Path | None) -> bool:
    """Whether prompts for the model in the folder ``adapter`` contain the earlier turns of the conversation.

    A model that was trained on single questions only would take an earlier turn for part of the question. A base alone
    (``adapter`` is None) gets them.
    """
    return adapter is None or rows_with_earlier_turns(adapter) > 0


def rows_with_earlier_turns(adapter: Path) -> int:
    """How many training rows of ``adapter`` had earlier turns; 1 if its metrics do not say so (earlier releases)."""
    metrics = adapter / "metrics.json"
    return int(read_json(metrics).get("rows_with_earlier_turns", 1)) if metrics.exists() else 1


class SupportModel:
    """A model that answers customers' questions, with the prompts and settings of its recipe.

    ``adapter`` is None for the base alone, which gets the same prompts. On a CPU, NF4 weights are dequantized once and keep
    their rounded values: a CPU has no 4-bit arithmetic and would dequantize them again for every token.
    """

    def __init__(self, recipe: FineTuneRecipe, base: Path, adapter: Path | None) -> None:
        self.recipe = recipe
        self.chat = load_chat_format(recipe, base, adapter)
        self._base, self._adapter = base, adapter
        self.reads_earlier_turns = reads_earlier_turns(adapter)
        self.model = self._load(None)
        self.stop_ids = self.chat.stop_ids | stop_ids_of(self.model)

    def _load(self, dtype: "torch.dtype | None") -> Any:
        """The merged model in ``dtype``; None means ``compute_dtype`` of its config."""
        import torch

        recipe, adapter, on_gpu = self.recipe, self._adapter, torch.cuda.is_available()
        folder = adapter if adapter is not None and recipe.lora is None else self._base
        model = load_base(folder, recipe.quantization, dtype)
        if recipe.quantization == "nf4" and not on_gpu:
            model = model.dequantize()
        if adapter is not None and recipe.lora is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
            if recipe.quantization == "none" or not on_gpu:
                model = model.merge_and_unload()
        return model.eval()

    @cached_property
    def _exact(self) -> Any:
        """The model that measures likelihoods: on a CPU in float32, because the differences between models are small."""
        import torch

        needs_copy = self.model.device.type == "cpu" and self.model.dtype != torch.float32
        return self._load(torch.float32) if needs_copy else self.model

    def answer(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        progress: Callable[[int], None] = lambda done: None,
        retrieved: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Answer]:
        """Greedy answers to ``questions``, in the same order.

        Each question comes with the router's intent, its earlier turns and, unless ``retrieved`` is None, its retrieved
        texts. If a prompt is longer than ``trainer.max_length``, retrieved texts are dropped first, then the oldest turns.
        Questions of similar length are answered together; ``progress`` gets the number of answers so far. Raises
        PipelineError if a question is too long for the model.
        """
        import torch

        from cs_pipeline.llm.generation import greedy_answers

        texts = [()] * len(questions) if retrieved is None else retrieved
        fitted = [self._prompt(*row) for row in zip(questions, intents, contexts, texts, strict=True)]
        prompts = [prompt.encoded for prompt in fitted]
        self._check_lengths(prompts)
        answers: dict[int, Answer] = {}
        rows = self.recipe.generation.per_device_eval_batch_size
        for batch in batches_by_length(list(map(len, prompts)), rows, PROMPT_TOKENS_PER_BATCH):
            inputs = self.chat.tokenizer.pad({"input_ids": [prompts[i] for i in batch]}, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=self.recipe.generation.max_new_tokens,
                    eos_token_id=sorted(self.stop_ids),
                    pad_token_id=self.chat.tokenizer.pad_token_id,
                    custom_generate=greedy_answers,
                )
            for i, ids in zip(batch, output.tolist(), strict=True):
                answers[i] = self._answer(ids, fitted[i])
            progress(len(answers))
        return [answers[i] for i in range(len(prompts))]

    def likelihoods(
        self,
        questions: Sequence[str],
        intents: Sequence[str | None],
        contexts: Sequence[Context],
        references: Sequence[str],
        retrieved: Sequence[Sequence[RetrievedText]] | None = None,
    ) -> list[Likelihood]:
        """The likelihood of each reference answer after its prompt, which is the same as in a training row.

        On a CPU it is computed in float32, with a second copy of the model if answers are generated in bfloat16.
        """
        import torch

        texts = [()] * len(questions) if retrieved is None else retrieved
        rows = [self._example(*row) for row in zip(questions, intents, contexts, texts, references, strict=True)]
        model = self._exact
        results: dict[int, Likelihood] = {}
        max_tokens = min(TOKENS_PER_PASS, LOGITS_PER_PASS[self.model.device.type] // self.model.config.vocab_size)
        for batch in batches_by_length(list(map(len, rows)), len(rows), max_tokens):
            ids = self._tensor([rows[j].input_ids for j in batch], 0)
            labels = self._tensor([rows[j].labels for j in batch], IGNORE_INDEX)
            with torch.inference_mode():
                if self.chat.architecture == "encoder-decoder":
                    mask = self._tensor([[1] * len(rows[j].input_ids) for j in batch], 0)
                    logits = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).logits
                else:  # no mask: causal attention never looks at padding on the right
                    labels = labels[:, 1:]
                    kept = (labels != IGNORE_INDEX).any(dim=0).nonzero().flatten()  # positions with a label in any row
                    logits, labels = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits, labels[:, kept]
                # Flattened, because on a CPU torch sums accurately only if the vocabulary is the last dimension. Otherwise
                # it adds 32,000 probabilities one by one in float32, with an error of a thousandth of a nat per row.
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
                ).view(labels.shape)
            for j, nll in zip(batch, losses.double().sum(dim=1).tolist(), strict=True):
                results[j] = Likelihood(nll, len(rows[j].answer))
        return [results[i] for i in range(len(rows))]

    def _prompt(
        self, question: str, intent: str | None, earlier: Context, retrieved: Sequence[RetrievedText]
    ) -> FittedPrompt[list[int]]:
        def encode(turns: Context, texts: Sequence[RetrievedText]) -> list[int]:
            return self.chat.encode_prompt(chat_messages(question, self.recipe.prompt, intent, turns, texts))

        max_tokens = min(self.recipe.trainer.max_length, self._max_prompt_tokens())
        return fit_prompt(encode, earlier if self.reads_earlier_turns else (), retrieved, max_tokens)

    def _example(
        self, question: str, intent: str | None, earlier: Context, retrieved: Sequence[RetrievedText], reference: str
    ) -> Example:
        def encode(turns: Context, texts: Sequence[RetrievedText]) -> Example:
            messages = chat_messages(question, self.recipe.prompt, intent, turns, texts)
            return self.chat.encode_example(messages, reference)

        turns = earlier if self.reads_earlier_turns else ()
        return fit_prompt(encode, turns, retrieved, self.recipe.trainer.max_length).encoded

    def has_room(self, question: str, intent: str | None) -> bool:
        """Whether ``question`` with ``intent``, and an answer, fit into the model's context without earlier turns."""
        return len(self._prompt(question, intent, (), ()).encoded) <= self._max_prompt_tokens()

    def _check_lengths(self, prompts: Sequence[list[int]]) -> None:
        """Raises PipelineError if a prompt is too long. Prompts are not truncated: the end of the prompt is the question."""
        limit = self._max_prompt_tokens()
        for i, prompt in enumerate(prompts):
            if len(prompt) > limit:
                answer = self.recipe.generation.max_new_tokens
                raise PipelineError(
                    f"Question {i + 1} of {len(prompts)} makes a prompt of {len(prompt):,} tokens; this model has a context "
                    f"of {limit + answer:,.0f}, and its answer may take {answer:,} of them.",
                    "Shorten the question, or lower generation.max_new_tokens in the recipe.",
                )

    def _max_prompt_tokens(self) -> float:
        # T5 has relative positions, without a limit.
        positions = getattr(self.model.config, "max_position_embeddings", math.inf)
        return float(positions) - self.recipe.generation.max_new_tokens

    def _answer(self, ids: list[int], prompt: FittedPrompt[list[int]]) -> Answer:
        end = next((i for i, id_ in enumerate(ids) if id_ in self.stop_ids), None)
        text = self.chat.decode(ids[:end])
        return Answer(text, end is not None, len(ids[:end]), prompt.turns_dropped, prompt.retrieved)

    def _tensor(self, rows: Sequence[list[int]], padding: int) -> "torch.Tensor":
        import torch

        width = max(map(len, rows))
        return torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=self.model.device)


def batches_by_length(lengths: Sequence[int], rows: int, tokens: int) -> Iterator[list[int]]:
    """Batches of indices of ``lengths``, shortest first: at most ``rows`` indices and at most ``tokens`` with padding.

    A row begins a new batch if over half of the batch would be padding. A row longer than ``tokens`` gets its own batch.
    """
    batch: list[int] = []
    used = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(batch) + 1) * lengths[i]
        if batch and (len(batch) == rows or padded > min(tokens, _MAX_PADDING_RATIO * (used + lengths[i]))):
            yield batch
            batch, used = [], 0
        batch.append(i)
        used += lengths[i]
    if batch:
        yield batch


def stop_ids_of(model: Any) -> set[int]:
    """The stop tokens in the base's own generation config; Phi-3, for example, has three."""
    ids = model.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def peak_memory_gib() -> float:
    """Peak GPU memory in GiB since the process began or the counter was reset; without a GPU, the process's peak memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class MainMemory:
    """Bytes of main memory: the ``total`` of this machine or its container, and what is ``available`` of it."""

    total: float
    available: float


def main_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> MainMemory:
    """The main memory that this process may use. ``cgroup`` has the container's limit and use (cgroup v2), if there is one.

    Of the memory that a container uses, files that it has not read lately count as available: the kernel frees them first.
    """
    import psutil

    machine, limit = psutil.virtual_memory(), cgroup / "memory.max"
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return MainMemory(machine.total, machine.available)
    statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    used = int((cgroup / "memory.current").read_text()) - int(statistics["inactive_file"])
    return MainMemory(min(machine.total, int(most)), max(0, min(machine.available, int(most) - used)))


def nats_to_bits(nll: float) -> float:
    """A negative log-likelihood in bits instead of nats."""
    return nll / math.log(2)


def quiet_libraries() -> None:
    """Turns off the libraries' progress bars and hints to developers, which would interrupt this project's log lines."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
