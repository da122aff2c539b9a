"""The embedded base: a byte-level BPE tokenizer and a very small Llama, trained from scratch on Bitext's training rows.

With this base, the whole pipeline runs without a GPU and without a network. Its answers are not fit for customers. It
is never trained on company rows, so a new delivery does not make it out of date, and it has seen no rows that may have
to be forgotten. If the recipe retrieves known answers, the base is trained on prompts that contain them, because a
model this small cannot learn to copy during fine-tuning.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder, remove_leftovers, write_json
from cs_pipeline.core.manifest import MANIFEST_NAME, write_manifest
from cs_pipeline.core.schema import ANSWER, PASSAGE
from cs_pipeline.llm.base import EMBEDDED_TEMPLATE, embedded_data, embedded_folder
from cs_pipeline.llm.model import nats_to_bits, quiet_libraries
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat, chat_messages
from cs_pipeline.recipe import EmbeddedBase, PromptSettings, RetrievalSettings
from cs_pipeline.retrieval.index import RetrievalIndex, write_index
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.copying_heads import ROPE_THETA, init_copying_heads
from cs_pipeline.train.trainer.batches import Batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKERS = ("<|pad|>", "<|customer|>", "<|agent|>", "<|end|>")


def build_embedded(spec: EmbeddedBase, lake: DataLake, report: Callable[[str], None]) -> Path:
    """Trains the base, unless one from the same ``spec`` and rows exists; returns its folder.

    ``report`` gets lines with step, loss in bits per token, tokens per second and remaining time.
    """
    folder = embedded_folder(spec, lake)
    if (folder / MANIFEST_NAME).exists():
        report(f"The embedded base already exists: {folder}")
        return folder
    quiet_libraries()
    data = embedded_data(lake)
    columns = ["row_id", "cluster_id", "instruction", "response", "intent", "source", "split"]
    table = lake.read("prepare", "bitext_splits", columns)
    left_out = pc.is_in(table.column("intent"), pa.array(spec.without_intents, pa.string()))
    table = table.filter(pc.and_not(pc.equal(table.column("split"), "train"), left_out))
    texts = transcripts(table.column("instruction").to_pylist(), table.column("response").to_pylist())
    remove_leftovers(folder)
    with atomic_folder(folder) as temporary:
        tokenizer = _tokenizer(texts, spec.vocab_size)
        batches = _example_batches(tokenizer, table, spec) if spec.known_answers else _blocks(tokenizer, texts, spec)
        model, curve = _train(tokenizer, batches, spec, report)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "loss.json", curve)
        parameters = sum(p.numel() for p in model.parameters())
        facts = {"parameters": parameters, "rows": len(texts), "data": data, "spec": spec.model_dump()}
        write_manifest(temporary, facts)
    return folder


def transcripts(questions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Conversations in the format of EMBEDDED_TEMPLATE. Markers inside a question or an answer are broken up."""
    pairs = ((q.replace("<|", "< |"), a.replace("<|", "< |")) for q, a in zip(questions, answers, strict=True))
    return [f"<|customer|>{q}<|agent|>{a}<|end|>" for q, a in pairs]


def _tokenizer(texts: list[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = (text.replace("<|customer|>", "").replace("<|end|>", "").split("<|agent|>") for text in texts)
    tokenizer.train_from_iterator((part for pair in pairs for part in pair), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|customer|>", "<|agent|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = EMBEDDED_TEMPLATE
    return wrapped


def _blocks(
    tokenizer: "PreTrainedTokenizerFast", texts: list[str], spec: EmbeddedBase
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of tokens and labels, both [blocks, block_size], cut from the shuffled ``texts``.

    Raises PipelineError if the texts are not longer than one block.
    """
    random = np.random.default_rng(spec.seed)
    shuffled = [texts[i] for i in random.permutation(len(texts))]
    encoded = tokenizer(shuffled, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
    if len(tokens) <= spec.block_size:
        raise PipelineError(
            f"Bitext's training rows have {len(tokens):,} tokens, and base.block_size is {spec.block_size:,}.",
            "Lower base.block_size in the recipe, or add rows.",
        )
    question_starts = np.cumsum([0, *(len(ids) for ids in encoded)])
    question_starts = question_starts[question_starts + spec.block_size <= len(tokens)]
    while True:
        # Half of the blocks begin with a question, to teach answering. The others begin anywhere, so that they also
        # cover the later parts of long answers.
        starts = random.integers(0, len(tokens) - spec.block_size, size=spec.per_device_train_batch_size)
        starts[::2] = random.choice(question_starts, size=len(starts[::2]))
        block = np.stack([tokens[start : start + spec.block_size] for start in starts])
        yield block, block


COPIED_SHARE = 0.5
"""Share of examples whose target is a known answer from the prompt. After 400 steps, a base copied 62 % of that answer's
words; without such examples, 6 %. Its loss on real answers was also lower: 0.72 instead of 0.75 bits per character."""


def _example_batches(
    tokenizer: "PreTrainedTokenizerFast", table: pa.Table, spec: EmbeddedBase
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of tokens and labels, both [examples, length of the longest]. Each example is a row of ``table``.

    The prompt contains the most typical answers to similar questions from other clusters. For COPIED_SHARE of the rows, the
    target is the first of these answers, word for word, so that the model learns to use them. Rows of similar length are
    batched together.

    Examples longer than ``block_size`` tokens are left out. Raises PipelineError if the others do not fill a batch.
    """
    chat = ChatFormat(tokenizer, "causal")
    random = np.random.default_rng(spec.seed)
    drawn = random.permutation(table.num_rows)[: spec.max_steps * spec.per_device_train_batch_size]
    rows = table.take(pa.array(drawn)).to_pylist()
    prompt = PromptSettings(route="intent", retrieve=RetrievalSettings(answers=spec.known_answers, passages=0))
    with tempfile.TemporaryDirectory() as folder:
        known = table.select(["row_id", "cluster_id", "instruction", "response", "intent", "source"])
        known = known.rename_columns(ANSWER.names)
        write_index(Path(folder, "index"), {"answers": known.cast(ANSWER), "passages": PASSAGE.empty_table()})
        index = RetrievalIndex.load(Path(folder, "index"))
        questions, intents, clusters = ([row[name] for row in rows] for name in ("instruction", "intent", "cluster_id"))
        retrieved = retrieve(index, prompt, PlaceholderMode.KEEP, questions, intents, clusters)
    copied = random.random(len(rows)) < COPIED_SHARE
    examples = [
        chat.encode_example(
            chat_messages(row["instruction"], prompt, row["intent"], (), texts),
            texts[0].text if copy and texts else row["response"],
        )
        for row, texts, copy in zip(rows, retrieved, copied, strict=True)
    ]
    examples = [example for example in examples if len(example) <= spec.block_size]
    if len(examples) < spec.per_device_train_batch_size:
        raise PipelineError(
            f"Only {len(examples)} of Bitext's training rows fit into {spec.block_size:,} tokens with known answers.",
            "Raise base.block_size in the recipe, or add rows.",
        )
    batches = Batches(
        [len(example) for example in examples],
        spec.per_device_train_batch_size,
        spec.per_device_train_batch_size * spec.block_size,
        spec.seed,
        0,
        1,
    )
    for epoch in count():
        batches.set_epoch(epoch)
        for indices in batches.steps():
            shape = len(indices), max(len(examples[i]) for i in indices)
            tokens, labels = np.full(shape, tokenizer.pad_token_id), np.full(shape, IGNORE_INDEX)
            for row, i in enumerate(indices):
                ids = examples[i].input_ids
                tokens[row, : len(ids)] = labels[row, : len(ids)] = ids
            yield tokens, labels


def _train(
    tokenizer: "PreTrainedTokenizerFast",
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    spec: EmbeddedBase,
    report: Callable[[str], None],
) -> tuple[Any, list[dict[str, float]]]:
    """Trains with AdamW, warm-up and cosine decay; returns the model and its loss curve."""
    import torch

    torch.manual_seed(spec.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _llama(spec, tokenizer).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, spec.max_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / spec.max_steps)),
    )
    curve: list[dict[str, float]] = []
    first = next(batches)  # before the clock starts, because this call prepares the data
    started = reported = time.monotonic()
    for step, batch in zip(range(1, spec.max_steps + 1), chain([first], batches), strict=False):
        tokens, labels = (torch.from_numpy(array).to(device) for array in batch)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == spec.max_steps:
            curve.append({"step": step, "loss": loss.item()})
        if time.monotonic() - reported > 5 or step == spec.max_steps:
            reported = time.monotonic()
            rate = step / (reported - started)
            report(
                f"base step {step}/{spec.max_steps}, {nats_to_bits(loss.item()):.2f} bits per token, "
                f"{rate * tokens.numel():,.0f} tokens/s, {(spec.max_steps - step) / rate:.0f} s left"
            )
    return model.cpu().eval(), curve


def _llama(spec: EmbeddedBase, tokenizer: "PreTrainedTokenizerFast") -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rotary: Any = {"rope_type": "default", "rope_theta": ROPE_THETA}
    model = LlamaForCausalLM(
        LlamaConfig(
            **spec.llama_config() | {"vocab_size": len(tokenizer)},
            max_position_embeddings=8192,  # enough for a question of 2,000 characters of four bytes each
            attention_bias=spec.known_answers > 0,
            rope_parameters=rotary if spec.known_answers else None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    if spec.known_answers:
        init_copying_heads(model)
    return model
