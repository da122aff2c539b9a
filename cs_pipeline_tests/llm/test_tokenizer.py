"""Every base's tokenizer gives the ids of its tokenizer.json, and a training on other ids does not begin."""

import json
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.model import load_chat_format
from cs_pipeline.llm.tokenizer import check_token_ids, load_tokenizer
from cs_pipeline.recipe import PathBase, load_fine_tune_recipe
from cs_pipeline.train import finetune
from cs_pipeline.train.adapter import train_adapter
from cs_pipeline_tests.conftest import SHARED
from cs_pipeline_tests.support.stand_ins import STAND_INS, stand_in
from cs_pipeline_tests.support.tiny import tiny_base
from cs_pipeline_tests.train import company_rows, write_split

REAL = sorted(path.parent.name for path in (SHARED / "tokenizers").glob("*/tokenizer.json"))
MARKERS = [
    "<|im_start|>user\nOrder 4711?<|im_end|>\n",
    "<s>[INST] Hi [/INST] Hello</s>\nHi",
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "a\n\n\tb    c  ½ ٣",
]


@pytest.mark.parametrize("name", REAL)
def test_a_real_tokenizer_gives_the_ids_of_its_file(name: str, bitext_texts: list[str]) -> None:
    folder = SHARED / "tokenizers" / name
    texts = [*bitext_texts, *MARKERS]
    assert check_token_ids(load_tokenizer(folder), folder, texts) == len(texts)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_gives_the_ids_of_its_file(name: str, tmp_path: Path) -> None:
    from cs_pipeline.ingest.sample import sample_rows

    texts = [*sample_rows(200)["response"], *MARKERS]
    folder = published(name, tmp_path)
    assert check_token_ids(load_tokenizer(folder), folder, texts) == len(texts)


def published(name: str, folder: Path) -> Path:
    """A stand-in as such tokenizers are published: its configuration names a class that rebuilds it."""
    stand_in(name).save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    names = {
        "digits": "GPT2Tokenizer",
        "sentencepiece": "LlamaTokenizer",
        "t5": "T5Tokenizer",
        "bytes": "GPT2Tokenizer",
    }
    config["tokenizer_class"] = names[STAND_INS[name].kind]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_that_transformers_rebuilds_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = published("smollm2-135m-instruct", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    rebuilt = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(PipelineError, match=r"gives other token ids than .* for 1 of 2 training texts") as raised:
        check_token_ids(rebuilt, folder, ["secret:\n\n1. secret", "a secret"])
    assert "secret" not in str(raised.value)


def test_a_folder_without_the_file_has_nothing_to_compare_with(tmp_path: Path) -> None:
    assert check_token_ids(stand_in("phi-2"), tmp_path, ["a"]) == 0


def test_no_step_is_trained_on_other_ids(lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_fine_tune_recipe("smollm2_135m")
    recipe = recipe.model_copy(update={"base": PathBase(source="path", path=tiny_base(tmp_path / "base", "smollm2"))})
    write_split(lake, "train", company_rows(8))
    write_split(lake, "validation", company_rows(2))

    def other(*arguments: Any) -> Any:
        from tokenizers import pre_tokenizers

        chat = load_chat_format(*arguments)
        backend: Any = chat.tokenizer
        backend.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return chat

    monkeypatch.setattr(finetune, "load_chat_format", other)
    monkeypatch.setattr(finetune, "build_peft_model", None)
    with pytest.raises(PipelineError, match="gives other token ids than"):
        train_adapter(recipe, lake, lambda line: None)
