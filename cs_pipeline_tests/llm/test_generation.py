"""The batch shrinks as answers end; each answer is the one that transformers' own loop gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cs_pipeline.llm.generation import greedy_answers
from cs_pipeline.llm.model import load_base
from cs_pipeline_tests.support.tiny import FAMILIES, tiny_base

ROWS, NEW_TOKENS = 24, 24


@pytest.mark.parametrize(("family", "penalty"), [*((family, 1.0) for family in FAMILIES), ("smollm2", 2.0)])
def test_the_answers_are_those_of_transformers(
    family: str, penalty: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base(tiny_base(tmp_path / "base", family, spread=0.3), "none", torch.float32)
    torch.manual_seed(0)
    vocabulary = model.config.vocab_size
    lengths = torch.randint(3, 20, (ROWS,)).tolist()
    ids = torch.randint(5, vocabulary, (ROWS, max(lengths)))
    mask = torch.tensor([[0] * (ids.shape[1] - length) + [1] * length for length in lengths])
    # So many stop tokens that a model with random weights ends most answers early, and each at another step.
    stops = torch.randperm(vocabulary)[: vocabulary // 15].tolist()
    widths: list[int] = []
    forward = type(model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        widths.append(len(outputs.logits))
        return outputs

    monkeypatch.setattr(type(model), "forward", counted)

    def generate(**options: Any) -> list[list[int]]:
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=stops,
            pad_token_id=0,
            repetition_penalty=penalty,
            **options,
        )
        return list(output.tolist())

    begin = 1 if model.config.is_encoder_decoder else ids.shape[1]
    expected = [_up_to_stop(row[begin:], set(stops)) for row in generate()]
    widths.clear()
    given = [_up_to_stop(row, set(stops)) for row in generate(custom_generate=greedy_answers)]
    assert given == expected
    assert widths[0] == ROWS
    assert widths == sorted(widths, reverse=True)
    if family == "t5":
        return  # with random weights it may repeat one token forever; the trained one of test_families.py does not
    assert len({len(answer) for answer in expected}) > 2
    # A penalty keeps a state of each row, so then all rows stay.
    assert (widths[-1] < ROWS) == (penalty == 1)


def _up_to_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, id_ in enumerate(ids) if id_ in stops), len(ids) - 1)
    return ids[: end + 1]
