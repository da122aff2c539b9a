"""The embedded base that reads known answers: what its steps hold, and how it begins."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.prompt import IGNORED
from cs_pipeline.recipe import EmbeddedBase
from cs_pipeline.train.embedded import LOOK_BACK, _llama, _whole_examples
from cs_pipeline_tests.tiny import tiny_tokenizer

SPEC = EmbeddedBase(
    source="embedded", width=64, layers=2, vocabulary=600, steps=6, blocks=4, block_tokens=900, known_answers=2
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer("embedded")


@pytest.fixture(scope="module")
def table(prepared: Path) -> pa.Table:
    columns = ["row_id", "cluster_id", "instruction", "response", "intent", "split"]
    table = DataLake(prepared).read("prepare", "bitext_splits", columns)
    return table.filter(pc.equal(table.column("split"), "train"))


def test_a_step_holds_whole_examples_with_known_answers_of_other_clusters(tokenizer: Any, table: pa.Table) -> None:
    rows = {row["response"]: row for row in table.to_pylist()}
    read = 0
    for tokens, labels in islice(_whole_examples(tokenizer, table, SPEC), SPEC.steps):
        assert tokens.shape == labels.shape
        assert (tokens.shape[0], tokens.shape[1] <= SPEC.block_tokens) == (SPEC.blocks, True)
        assert (tokens[labels == IGNORED] == tokenizer.pad_token_id).all()
        assert (tokens[labels != IGNORED] == labels[labels != IGNORED]).all()
        for ids in (line[line != tokenizer.pad_token_id].tolist() for line in tokens):
            assert ids[-1] == tokenizer.eos_token_id
            prompt, _, answer = tokenizer.decode(ids[:-1]).partition("<|agent|>")
            row = rows[answer]
            assert prompt.startswith(f"Intent: {row['intent']}\n<|customer|>Known answer: ")
            assert prompt.endswith(f"Question: {row['instruction']}")
            known = [rows[text] for text in rows if f"Known answer: {text}\n\n" in prompt]
            assert all(other["cluster_id"] != row["cluster_id"] for other in known)
            read += len(known)
    assert read > SPEC.steps * SPEC.blocks


def test_equal_rows_give_equal_steps_and_too_short_blocks_are_told(tokenizer: Any, table: pa.Table) -> None:
    drawn = [[tokens.tolist() for tokens, _ in islice(_whole_examples(tokenizer, table, SPEC), 3)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(PipelineError, match="fit with known answers into 16 tokens"):
        next(_whole_examples(tokenizer, table, SPEC.model_copy(update={"block_tokens": 16})))


def test_its_first_heads_begin_by_looking_back(tokenizer: Any) -> None:
    import torch

    torch.manual_seed(0)
    model = _llama(SPEC, len(tokenizer), tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 300, (1, 40)))
    with torch.inference_mode():
        first = model(input_ids=ids, output_attentions=True).attentions[0][0]
    for head in range(LOOK_BACK):
        places = torch.arange(10, 40)
        assert (first[head, places].argmax(-1) == places - head - 1).all()
        assert first[head, places, places - head - 1].min() > 0.8
    plain = _llama(SPEC.model_copy(update={"known_answers": 0}), len(tokenizer), tokenizer)
    assert plain.model.layers[0].self_attn.q_proj.bias is None
