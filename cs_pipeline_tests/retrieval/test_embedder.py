"""Retrieval with a sentence-embedding model: a tiny one with random weights."""

from pathlib import Path

import numpy as np
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.retrieval.embedder import Embedder
from cs_pipeline.retrieval.index import RetrievalIndex, write_index
from cs_pipeline_tests.retrieval.test_index import FEW, HELP

TEXTS = ["where is my refund", "a", "cancel my order please, it is late and I have waited for very long"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("embedder") / "model", seed=0)


def tiny_model(folder: Path, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz.?,"]
    tokenizer = Tokenizer(models.WordLevel({letter: at for at, letter in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_embeddings_are_means_over_tokens_of_length_one(model: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    vectors = Embedder(str(model)).embed(TEXTS)
    assert vectors.shape == (3, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    tokenizer, library_model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):  # alone, without padding
        with torch.inference_mode():
            mean = library_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert Embedder(str(model)).embed([]).shape == (0, 16)


def test_an_index_with_embeddings_searches_excludes_clusters_and_reuses_vectors(model: Path, tmp_path: Path) -> None:
    folder, tables = tmp_path / "index", {"answers": FEW, "passages": HELP}
    summary = write_index(folder, tables, Embedder(str(model)))
    assert (summary.vectorised, summary.vectorizer) == (6, str(model))
    index = RetrievalIndex.load(folder)
    [found, others] = index.answers(["where is my refund"] * 2, 4, excluded_clusters=[None, "a"])
    assert found[0].id == "row0"
    assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert {one.id for one in others} <= {"row2", "row3"}
    fewer = write_index(folder, tables | {"answers": FEW.slice(1)}, Embedder(str(model)))
    assert fewer.vectorised == 0
    assert write_index(folder, tables).vectorised == 6, "another vectorizer has other vectors"
    assert write_index(folder, tables).version != summary.version


def test_a_modified_model_is_refused(model: Path, tmp_path: Path) -> None:
    mine = tiny_model(tmp_path / "model", seed=1)
    write_index(tmp_path / "index", {"answers": FEW, "passages": HELP}, Embedder(str(mine)))
    tiny_model(mine, seed=2)
    with pytest.raises(PipelineError, match="is not the one that the retrieval index was built with"):
        RetrievalIndex.load(tmp_path / "index")


def test_a_missing_or_pickled_model_is_refused(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match=r"has no config\.json, tokenizer\.json, model\.safetensors") as raised:
        Embedder(str(tmp_path))
    assert "CS_EMBEDDER" in raised.value.fix
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    with pytest.raises(PipelineError, match="could not be downloaded"):
        Embedder(f"somebody/model@{'0' * 40}")
    # A pickle instead of the weights is not loaded.
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in model.iterdir():
        to = pickled / ("pytorch_model.bin" if path.suffix == ".safetensors" else path.name)
        to.write_bytes(path.read_bytes())
    with pytest.raises(PipelineError, match=r"has no model\.safetensors"):
        Embedder(str(pickled))
