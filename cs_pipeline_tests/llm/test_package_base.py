"""Base models from packages: a tiny GGUF file from an index on this machine, and the real one where it is reachable."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.package import models_folder
from cs_pipeline.llm import package_base as module
from cs_pipeline.llm.base import base_of_version, find_base, find_pretrained_base
from cs_pipeline.llm.model import load_base, load_chat_format, missing_files, stop_ids_of
from cs_pipeline.llm.package_base import cached_package_base
from cs_pipeline.llm.tokenizer import load_tokenizer
from cs_pipeline.recipe import FineTuneRecipe, PackageBase, load_fine_tune_recipe
from cs_pipeline.register.lineage import lineage_tree
from cs_pipeline.train.adapter import train_adapter
from cs_pipeline_tests.conftest import SHARED
from cs_pipeline_tests.support.gguf_file import Source, package_of, write_gguf
from cs_pipeline_tests.support.index import Index, index_in_use
from cs_pipeline_tests.train import company_rows, write_split

TEXTS = ["Order 4711 of 2026-11-03, 1,250.99 €", "<|im_start|>user\nWhere is {{Order Number}}?<|im_end|>\n", " ½ ٣ x²"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with index_in_use(tmp_path / "index", monkeypatch) as server:
        yield server


@pytest.fixture
def spec(written: tuple[Path, Source], tmp_path: Path, index: Index) -> PackageBase:
    return package_of(written[0], tmp_path / "index")


def test_the_converted_model_is_the_source_model(spec: PackageBase, written: tuple[Path, Source]) -> None:
    source, lines = written[1], list[str]()
    base = find_pretrained_base(spec, lines.append)
    folder = Path(base.path)
    assert [line.split()[0] for line in lines] == ["Fetching", "Converting"]
    assert missing_files(folder) == []
    model = load_base(folder, "none")
    assert type(model) is type(source.model)
    assert not hasattr(model.config, "quantization_config")
    ids = torch.tensor([source.tokenizer(TEXTS[0])["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, source.model(ids).logits)
    assert stop_ids_of(model) == {source.tokenizer.eos_token_id}
    assert model.generation_config.pad_token_id == source.tokenizer.pad_token_id
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == source.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == source.tokenizer.chat_template
    named = ("bos_token", "eos_token", "pad_token", "unk_token")
    assert [getattr(tokenizer, name) for name in named] == [getattr(source.tokenizer, name) for name in named]


def test_a_base_is_converted_once_and_found_offline(
    spec: PackageBase, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached_package_base(spec) is None
    with ThreadPoolExecutor(2) as pool:
        lines = list[str]()
        first, second = pool.map(lambda _: find_pretrained_base(spec, lines.append), range(2))
    assert first == second
    assert [line.split()[0] for line in lines] == ["Fetching", "Converting"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    index.asked.clear()
    assert find_pretrained_base(spec, lines.append) == first
    assert (len(lines), index.asked) == (2, [])
    assert cached_package_base(spec) == Path(first.path)
    with pytest.raises(PipelineError, match="HF_HUB_OFFLINE forbids"):  # the same file, but not that wheel
        find_pretrained_base(spec.model_copy(update={"wheel_sha256": "0" * 64}))


def test_the_conversion_is_part_of_the_bases_identity(spec: PackageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_pretrained_base(spec)
    monkeypatch.setattr(module, "CONVERSION_VERSION", "another")
    after = find_pretrained_base(spec)
    assert after.sha256 != before.sha256
    assert after.path != before.path
    assert read_manifest(Path(after.path), "base_model")["conversion"] == "another"


def test_a_killed_conversion_is_made_again(spec: PackageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            find_pretrained_base(spec)
    assert cached_package_base(spec) is None
    folder = module._converted_folder(spec)
    folder.with_name(f".{folder.name}.left").mkdir()  # what a process leaves that was not even interrupted
    base = find_pretrained_base(spec)
    assert Path(base.path) == folder
    left = {path.name for path in models_folder().iterdir() if path.is_dir()}
    assert left == {Path(base.path).name, f"tiny-model-1.2-{spec.wheel_sha256[:12]}"}


def test_a_changed_conversion_is_refused(spec: PackageBase) -> None:
    folder = Path(find_pretrained_base(spec).path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"config\.json was changed"):
        find_pretrained_base(spec)


def test_an_unknown_tokenizer_is_refused(tmp_path: Path, index: Index) -> None:
    write_gguf(tmp_path / "other.gguf", pre_tokenizer="tekken")
    spec = package_of(tmp_path / "other.gguf", tmp_path / "index")
    with pytest.raises(PipelineError, match="pre-tokenizer tekken, which is not supported"):
        find_pretrained_base(spec)
    assert cached_package_base(spec) is None


def test_a_disk_without_room_for_the_conversion(spec: PackageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(PipelineError, match=r"takes 0\.0 GB in .* are free") as raised:
        find_pretrained_base(spec)
    assert "CS_MODELS" in raised.value.fix


@pytest.fixture
def trained(spec: PackageBase, lake: DataLake) -> tuple[FineTuneRecipe, Path]:
    """The package recipe on the tiny model, trained two steps as version 1 would be."""
    recipe = load_fine_tune_recipe("smollm2_135m_package")
    trainer = recipe.trainer.model_copy(update={"max_steps": 2, "per_device_train_batch_size": 2})
    recipe = recipe.model_copy(update={"base": spec, "trainer": trainer})
    write_split(lake, "train", company_rows(8))
    write_split(lake, "validation", company_rows(2))
    return recipe, train_adapter(recipe, lake, lambda line: None).folder


def test_lineage_keeps_the_package_and_how_it_was_quantised(
    trained: tuple[FineTuneRecipe, Path], spec: PackageBase, lake: DataLake, tmp_path: Path
) -> None:
    recipe, folder = trained
    facts: dict[str, Any] = read_manifest(folder, "adapter")["base"]
    assert (facts["source"], facts["name"], facts["revision"]) == ("package", "tiny-model/tiny.F32", "1.2")
    kept = spec.model_dump(exclude={"source"})
    assert facts["origin"] == kept | {"quantisation": "GGUF, 20 tensors F32"}
    assert facts["sha256"] == find_base(recipe, lake).sha256
    found = dict.fromkeys(("version", "recipe", "run", "mlflow_run", "git_commit"), "x")
    shown = lineage_tree({**found, "aliases": [], "base": facts, "sides": {}, "files": [], "checks": [], "history": []})
    (of_base, *_) = shown.children
    assert str(of_base.label) == "base: tiny-model/tiny.F32, 1.2"
    assert f"file_sha256: {spec.file_sha256}" in [str(child.label) for child in of_base.children]

    version = tmp_path / "version"
    version.mkdir()
    (version / "adapter").symlink_to(folder)
    assert str(base_of_version(recipe, version)) == find_base(recipe, lake).path
    other = recipe.model_copy(update={"base": spec.model_copy(update={"file_sha256": "0" * 64})})
    with pytest.raises(PipelineError, match="does not have the expected hash"):
        base_of_version(other, version)


def test_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """SmolLM2 from its package: the ids of the published tokenizer on 1,000 texts, and a model that knows English."""
    published = SHARED / "tokenizers" / "smollm2-135m-instruct" / "tokenizer.json"
    recipe = load_fine_tune_recipe("smollm2_135m_package")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    try:
        base = Path(find_base(recipe, DataLake(tmp_path)).path)
    except PipelineError as error:
        if (
            "could not be fetched" in error.what
            or "is not in the package index" in error.what
            or "neither" in error.what
        ):
            pytest.skip(error.what)
        raise
    chat = load_chat_format(recipe, base, None)
    model = load_base(base, "none")
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    ids = torch.tensor([chat.encode_prompt([{"role": "user", "content": "What is the capital of France?"}])])
    with torch.inference_mode():
        written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in chat.decode(written.tolist())
    if not published.exists():
        pytest.skip(f"{published} is not there")
    from tokenizers import Tokenizer

    ours, theirs = Tokenizer.from_file(str(base / "tokenizer.json")), Tokenizer.from_file(str(published))
    texts = [*request.getfixturevalue("bitext_texts"), *TEXTS]
    for one, other in zip(ours.encode_batch(texts), theirs.encode_batch(texts), strict=True):
        assert one.ids == other.ids
    assert json.loads(ours.to_str())["added_tokens"] == json.loads(theirs.to_str())["added_tokens"]
