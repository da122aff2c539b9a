"""The embedded base with known answers in its prompts: its training examples and its initial weights."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pydantic import ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import IGNORE_INDEX
from cs_pipeline.recipe import EmbeddedBase
from cs_pipeline.train.copying_heads import COPYING_HEADS
from cs_pipeline.train.embedded import COPIED_SHARE, _example_batches, _llama
from cs_pipeline_tests.support.tiny import tiny_tokenizer

SPEC = EmbeddedBase(
    source="embedded",
    hidden_size=64,
    num_hidden_layers=2,
    vocab_size=600,
    max_steps=6,
    per_device_train_batch_size=4,
    block_size=900,
    known_answers=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer("embedded")


@pytest.fixture(scope="module")
def table(prepared: Path) -> pa.Table:
    columns = ["row_id", "cluster_id", "instruction", "response", "intent", "source", "split"]
    table = DataLake(prepared).read("prepare", "bitext_splits", columns)
    return table.filter(pc.equal(table.column("split"), "train"))


def test_a_batch_has_whole_examples_with_known_answers_from_other_clusters(tokenizer: Any, table: pa.Table) -> None:
    rows = {row["response"]: row for row in table.to_pylist()}
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        asked.setdefault(row["instruction"], []).append(row)
    known_answers = copied = examples = 0
    for tokens, labels in islice(_example_batches(tokenizer, table, SPEC), SPEC.max_steps):
        assert tokens.shape == labels.shape
        assert (tokens.shape[0], tokens.shape[1] <= SPEC.block_size) == (SPEC.per_device_train_batch_size, True)
        assert (tokens[labels == IGNORE_INDEX] == tokenizer.pad_token_id).all()
        assert (tokens[labels != IGNORE_INDEX] == labels[labels != IGNORE_INDEX]).all()
        for ids in (line[line != tokenizer.pad_token_id].tolist() for line in tokens):
            assert ids[-1] == tokenizer.eos_token_id
            prompt, _, answer = tokenizer.decode(ids[:-1]).partition("<|agent|>")
            examples += 1
            same_question = asked[prompt.rpartition("Question: ")[2]]
            known = [rows[text] for text in rows if f"Known answer: {text}\n\n" in prompt]
            own = [row for row in same_question if row["response"] == answer]
            if not own:
                assert answer in [other["response"] for other in known], "the target is one of the known answers"
                copied += 1
            assert any(
                prompt.startswith(f"Intent: {row['intent']}\n<|customer|>Known answer: ")
                and all(other["cluster_id"] != row["cluster_id"] for other in known)
                for row in own or same_question
            )
            known_answers += len(known)
    assert known_answers > SPEC.max_steps * SPEC.per_device_train_batch_size
    assert 0.3 * examples < copied < 0.7 * examples, COPIED_SHARE


def test_batches_are_reproducible_and_too_small_blocks_are_refused(tokenizer: Any, table: pa.Table) -> None:
    drawn = [[tokens.tolist() for tokens, _ in islice(_example_batches(tokenizer, table, SPEC), 3)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(PipelineError, match="fit into 16 tokens with known answers"):
        next(_example_batches(tokenizer, table, SPEC.model_copy(update={"block_size": 16})))


def test_initial_heads_of_the_first_layer_look_back(tokenizer: Any) -> None:
    model, tokens = untrained(tokenizer, SPEC)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        first = model(input_ids=tokens, output_attentions=True).attentions[0][0]
    for head in range(COPYING_HEADS):
        places = torch.arange(10, tokens.shape[1])
        assert (first[head, places].argmax(-1) == places - head - 1).all()
        assert first[head, places, places - head - 1].min() > 0.8
    plain = _llama(SPEC.model_copy(update={"known_answers": 0}), tokenizer)
    assert plain.model.layers[0].self_attn.q_proj.bias is None


def test_the_untrained_model_repeats_what_it_has_read_once(tokenizer: Any) -> None:
    model, tokens = untrained(tokenizer, SPEC.model_copy(update={"hidden_size": 128, "num_hidden_layers": 4}))
    half = tokens.shape[1] // 2
    again = torch.cat([tokens[:, :half], tokens[:, :half]], dim=1)
    with torch.inference_mode():
        predicted = model(input_ids=again).logits.argmax(-1)
        unseen = model(input_ids=tokens).logits.argmax(-1)
    places = torch.arange(half + 2, 2 * half - 1)
    assert (predicted[:, places] == again[:, places + 1]).float().mean() > 0.7
    assert (unseen[:, places] == tokens[:, places + 1]).float().mean() < 0.05


def untrained(tokenizer: Any, spec: EmbeddedBase) -> tuple[Any, torch.Tensor]:
    """An untrained model, and random tokens [4, 300]."""
    torch.manual_seed(0)
    model = _llama(spec, tokenizer).eval()
    return model, torch.from_numpy(np.random.default_rng(0).integers(4, len(tokenizer), (4, 300)))


def test_a_model_too_small_for_copying_heads_is_refused() -> None:
    for wrong in ({"num_hidden_layers": 1}, {"hidden_size": 48}, {"hidden_size": 80}):
        with pytest.raises(ValidationError, match="num_hidden_layers: 2 or more and hidden_size"):
            EmbeddedBase.model_validate(SPEC.model_dump() | wrong)
