"""LoRA layers computed in one product give what PEFT's own layers give."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from cs_pipeline.train.trainer.fused_lora import fuse_lora

IDS = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))


def small_model(dtype: torch.dtype, scale: float = 0.1, dropout: float = 0.0, **config: Any) -> Any:
    torch.manual_seed(0)
    llama = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=97,
        tie_word_embeddings=True,
        **config,
    )
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    base: Any = LlamaForCausalLM(llama)
    model = get_peft_model(base.to(dtype), lora)
    random = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=random) * scale
    return model


def outputs(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits, and the gradients of the trained weights."""
    logits = model(input_ids=IDS, labels=IDS)
    logits.loss.backward()
    return logits.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def fused(model: Any) -> Any:
    fuse_lora(model)
    return model


def test_logits_and_gradients_equal_those_of_peft() -> None:
    expected, found = outputs(small_model(torch.float32)), outputs(fused(small_model(torch.float32)))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert len(found[1]) == 2 * 2 * 7, "A and B of seven layers in each of two blocks, and nothing else"
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_4_bit_weights_give_what_peft_gives() -> None:
    from bitsandbytes.nn.modules import Linear4bit

    four_bit_layer: Any = Linear4bit

    def four_bit() -> Any:
        model = small_model(torch.float32)
        for layer in [m for m in model.modules() if hasattr(m, "base_layer")]:
            weight = layer.base_layer.weight.data
            layer.base_layer = four_bit_layer(
                *weight.T.shape, bias=False, compute_dtype=torch.float32, quant_type="nf4"
            )
            layer.base_layer.load_state_dict({"weight": weight})
            layer.base_layer.to("cpu")
        return model

    expected, found = outputs(four_bit()), outputs(fused(four_bit()))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-2, atol=1e-5)
    assert (found[0] - outputs(small_model(torch.float32))[0]).abs().max() > 1e-3, "the weights were not quantised"


def test_a_small_contribution_of_the_adapter_survives_bfloat16() -> None:
    """PEFT rounds the base layer's output before it adds the adapter's, so that a small addition can vanish."""

    def effect(model: Any) -> torch.Tensor:
        """What the adapter adds to the output of one layer."""
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        inputs = torch.randn(256, 64, generator=torch.Generator().manual_seed(3)).to(layer.base_layer.weight.dtype)
        with torch.no_grad():
            return (layer(inputs) - layer.base_layer(inputs)).float()

    exact = effect(small_model(torch.float32, 0.001))

    def share(model: Any) -> float:
        """How much of the exact addition is in the output: 1 if only rounding without bias is between them."""
        return float((effect(model) * exact).sum() / (exact * exact).sum())

    assert share(small_model(torch.bfloat16, 0.001)) < 0.7
    assert share(fused(small_model(torch.bfloat16, 0.001))) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"attention_bias": True}])
def test_layers_with_dropout_or_a_bias_stay_as_they_are(options: dict[str, Any]) -> None:
    model = fused(small_model(torch.float32, **options))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert "forward" not in vars(layer)
