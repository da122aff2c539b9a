"""The loss of the answers equals cross-entropy on all logits, in every family and however a step is divided."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, TrainingArguments

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORE_INDEX
from cs_pipeline.train.trainer import loss as module
from cs_pipeline.train.trainer.loss import AnswerLossTrainer, answer_nll
from cs_pipeline.train.trainer.peft_model import _collate_pairs

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 97,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama, tied": {"model_type": "llama", **_SMALL, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_SMALL, "num_key_value_heads": 1, "sliding_window": 64},
    "qwen3": {"model_type": "qwen3", **_SMALL, "num_key_value_heads": 1, "head_dim": 16},
    "phi, with a bias in the output layer": {"model_type": "phi", **_SMALL},
    "phi3": {"model_type": "phi3", **_SMALL, "pad_token_id": 0},
    "gptj, with a bias in the output layer": {
        "model_type": "gptj",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "rotary_dim": 8,
        "vocab_size": 97,
    },
    "t5, tied": {
        "model_type": "t5",
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 16,
        "num_heads": 2,
        "num_layers": 2,
        "vocab_size": 97,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    },
}


def small_model(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIGS[name])
    config.eos_token_id = 1
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


def example_rows() -> list[dict[str, list[int]]]:
    """Eight rows of different lengths: two question tokens without labels, then an answer."""
    random = torch.Generator().manual_seed(1)
    rows = []
    for length in (5, 9, 17, 30, 8, 12, 21, 3):
        ids = torch.randint(3, 97, (length,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * 2 + ids[2:]})
    return rows


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_equal_those_of_all_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_TOKENS", 7)
    model, batch = small_model(name), _collate_pairs(example_rows())
    nll, count = answer_nll(model, batch)
    torch.autograd.backward(nll / count)
    found = gradients(model)

    logits, labels = model(**batch).logits, batch["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
    torch.autograd.backward(mean)
    assert count == sum(len(row["labels"]) - 2 for row in example_rows())
    assert nll.item() / count == pytest.approx(mean.item(), rel=1e-5)
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-6)


def test_rows_without_answers_give_zero_and_not_nan() -> None:
    model = small_model("t5, tied")
    nll, count = answer_nll(model, _collate_pairs([{"input_ids": [5], "labels": [IGNORE_INDEX]}]))
    torch.autograd.backward(nll)
    assert (nll.item(), count) == (0, 0)


def test_a_model_that_changes_its_logits_afterwards_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gemma2", **_SMALL, num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.1)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(PipelineError, match="family gemma2 change the logits"):
        AnswerLossTrainer(AutoModelForCausalLM.from_config(config), arguments)


@pytest.mark.parametrize("name", ["llama, tied", "t5, tied"])
def test_the_gradient_does_not_depend_on_how_a_step_is_divided(name: str, tmp_path: Path) -> None:
    def norm(rows: int, accumulation: int) -> float:
        trainer = AnswerLossTrainer(
            small_model(name),
            TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=1,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=accumulation,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            data_collator=_collate_pairs,
            train_dataset=example_rows(),
        )
        trainer.train()
        (first, *_) = trainer.state.log_history
        return float(first["grad_norm"])

    undivided = norm(8, 1)
    assert undivided > 0
    assert [norm(4, 2), norm(1, 8)] == pytest.approx([undivided, undivided], rel=1e-4)
