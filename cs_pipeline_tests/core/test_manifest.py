import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.manifest import MANIFEST_NAME, content_hash, read_manifest, write_manifest

FILES = {
    "adapter.safetensors": b"\x00weights",
    "recipe.yaml": b"name: tiny\n",
    "intent_classifier/classifier.json": b"{}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of weights with its manifest."""
    return write(tmp_path / "adapter")


def write(folder: Path, facts: dict[str, object] | None = None) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, facts or {"seed": 0})
    return folder


def test_a_manifest_lists_every_file_with_its_hash(folder: Path) -> None:
    manifest = read_manifest(folder, "adapter")
    assert manifest == {
        "seed": 0,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    }
    assert manifest == json.loads((folder / MANIFEST_NAME).read_text())
    assert len(content_hash(manifest)) == 16


def test_a_rewritten_manifest_does_not_list_itself(folder: Path) -> None:
    first = read_manifest(folder, "adapter")
    assert write_manifest(folder, {"seed": 1}) == first | {"seed": 1}
    assert read_manifest(folder, "adapter")["seed"] == 1


def test_a_manifest_in_a_subfolder_is_a_file_like_any_other(folder: Path) -> None:
    outer = folder.parent
    manifest = write_manifest(outer, {})
    assert f"adapter/{MANIFEST_NAME}" in manifest["files"]
    assert read_manifest(outer, "model_version") == manifest
    (folder / MANIFEST_NAME).write_text("{}")
    with pytest.raises(PipelineError, match="was changed after it was written"):
        read_manifest(outer, "model_version")


def test_the_content_hash_depends_only_on_the_files(folder: Path, tmp_path: Path) -> None:
    same = content_hash(read_manifest(folder, "adapter"))
    assert content_hash(read_manifest(write(tmp_path / "elsewhere", {"seed": 5}), "adapter")) == same
    other = write(tmp_path / "other")
    (other / "recipe.yaml").write_bytes(b"name: other\n")
    assert content_hash(write_manifest(other, {"seed": 0})) != same
    (other / "recipe.yaml").write_bytes(FILES["recipe.yaml"])
    (other / "recipe.yaml").rename(other / "renamed.yaml")
    assert content_hash(write_manifest(other, {"seed": 0})) != same


def change_a_byte(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(b"\x01weights")


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (change_a_byte, "adapter.safetensors was changed after it was written"),
        (lambda f: (f / "intent_classifier/classifier.json").write_bytes(b""), "classifier.json was changed"),
        (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml is missing"),
        (lambda f: (f / "evil.pkl").write_bytes(b""), "evil.pkl was added after the folder was written"),
        (lambda f: (f / "intent_classifier" / "more.json").write_bytes(b""), "more.json was added"),
        (lambda f: (f / MANIFEST_NAME).unlink(), "has no manifest.json: 'adapter' was not finished there"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"seed": 0'), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST_NAME).write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"seed": 0}'), "manifest.json is damaged: KeyError('files')"),
        (lambda f: (f / MANIFEST_NAME).write_text("[]"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"files": 1}'), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"files": {"../../secret": "0"}}'), "secret is missing"),
    ],
)
def test_a_tampered_folder_is_refused(folder: Path, tamper: Callable[[Path], object], complaint: str) -> None:
    tamper(folder)
    with pytest.raises(PipelineError) as raised:
        read_manifest(folder, "adapter")
    assert complaint in raised.value.what
    assert str(folder) in raised.value.what
    assert f"Delete {folder}" in raised.value.fix
    assert "materialise 'adapter' again" in raised.value.fix


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="was not finished there") as raised:
        read_manifest(tmp_path / "nowhere", "base_model")
    assert raised.value.fix == "Materialise 'base_model' first."
