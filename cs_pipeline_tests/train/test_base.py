"""The base model from a folder and from the hub: what is taken, what is refused, and what is said when it is not there.

The hub is a server on this machine that speaks the part of the hub's API that a download at a commit asks for: the list
of files, and each file with its ETag and commit. The library under it is the real one.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, file_sha256
from cs_pipeline.model import load_base, load_tokenizer
from cs_pipeline.recipe import EmbeddedBase, HubBase, PathBase, Recipe
from cs_pipeline.schema import CONVERSATION
from cs_pipeline.train.base import find_base, find_hub_or_folder_base, needs_training
from cs_pipeline.train.embedded import build_embedded, embedded_folder
from cs_pipeline.train.manifest import read_manifest
from cs_pipeline_tests.train import add_to_side, company_rows

REPO, REVISION = "our-team/tiny-chat", "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_notForAnybodysEyes"
TAKEN = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
LEFT = {"pytorch_model.bin": b"a pickle", "modeling_tiny.py": b"import os", "weights.pt": b"a pickle"}


class Hub(ThreadingHTTPServer):
    """``files`` at one revision; ``asked`` is what was asked for. ``mood`` is how it answers."""

    files: dict[str, bytes]
    mood: str
    asked: list[tuple[str, str]]
    tokens: set[str | None]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        self.server.tokens.add(self.headers.get("Authorization"))
        tree, files = f"/api/models/{REPO}/tree/{REVISION}", f"/{REPO}/resolve/{REVISION}/"
        if self.server.mood == "no repository":
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif self.server.mood == "bad token":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path.startswith(f"/api/models/{REPO}/tree/") and (path != tree or self.server.mood == "no revision"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path == tree:
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": sha1(c)} for n, c in self.server.files.items()
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif path.startswith(files) and self.server.mood.startswith("gated"):
            self._send(int(self.server.mood[-3:]), b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(files):
            content = self.server.files[path.removeprefix(files)]
            self._send(200, content, {"ETag": f'"{sha1(content)}"', "X-Repo-Commit": REVISION})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.mood == "broken off" and len(body) > 10_000:
            self.wfile.write(body[:5000])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@cache
def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def base_folder(champion_lake: Path, tiny: Recipe) -> Path:
    assert tiny.base.source == "embedded"
    return embedded_folder(tiny.base, DataLake(champion_lake))


@pytest.fixture
def hub(base_folder: Path) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answer)
    server.files = {p.name: p.read_bytes() for p in base_folder.iterdir() if p.name in TAKEN} | LEFT
    server.mood, server.asked, server.tokens = "open", [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """What a fresh process gets for the base at ``REVISION``: its library reads the settings when it is imported."""
    code = f"""if True:
        import json
        from cs_pipeline.errors import PipelineError
        from cs_pipeline.recipe import HubBase
        from cs_pipeline.train.base import find_hub_or_folder_base
        try:
            base = find_hub_or_folder_base(HubBase(source="hub", repo={REPO!r}, revision={REVISION!r}, licence="MIT"))
            print(json.dumps({{"path": base.path, **base.facts()}}))
        except PipelineError as error:
            print(json.dumps({{"what": error.what, "mend": error.mend}}))
        """
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **more}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert TOKEN not in ran.stdout + ran.stderr
    answer: dict[str, str] = json.loads(ran.stdout)
    return answer


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_the_hub_gives_safetensors_and_nothing_that_could_run(hub: Hub, tmp_path: Path) -> None:
    found = fetch(address(hub), tmp_path, HF_TOKEN=TOKEN)
    assert (found["source"], found["name"], found["revision"]) == ("hub", REPO, REVISION)
    folder = Path(found["path"])
    assert {path.name for path in folder.iterdir()} == TAKEN
    assert all((folder / name).read_bytes() == hub.files[name] for name in TAKEN)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    asked = {path for _, path in hub.asked}
    assert {f"/{REPO}/resolve/{REVISION}/{name}" for name in TAKEN} < asked
    assert not any(path.endswith(name) for path in asked for name in LEFT)
    # A model that stages further on can load.
    assert load_tokenizer(folder).chat_template
    assert sum(p.numel() for p in load_base(folder, "none").parameters()) > 100_000

    hub.asked.clear()
    assert fetch(address(hub), tmp_path, HF_HUB_OFFLINE="1") == found
    assert hub.asked == []


def test_a_cut_off_download_is_said_and_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    hub.mood = "broken off"
    failed = fetch(address(hub), tmp_path)
    assert failed["what"].startswith(f"The base model {REPO} at revision {REVISION} could not be fetched")
    offline = fetch(address(hub), tmp_path, HF_HUB_OFFLINE="1")
    assert offline["what"].startswith(f"The base model {REPO} at revision {REVISION} could not be fetched")
    hub.mood = "open"
    assert (Path(fetch(address(hub), tmp_path)["path"]) / "model.safetensors").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("mood", "what", "mend"),
    [
        ("gated 401", "is gated (MIT)", f"Accept its licence at https://huggingface.co/{REPO}, then set HF_TOKEN"),
        ("gated 403", "is gated (MIT)", f"Accept its licence at https://huggingface.co/{REPO}, then set HF_TOKEN"),
        ("no revision", "is not on the hub", "Mend base.repo and base.revision"),
        ("no repository", "is not on the hub", "Mend base.repo and base.revision"),
        ("bad token", "could not be fetched: the hub answered 401", "Set HF_TOKEN to a token that is valid"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, tmp_path: Path, mood: str, what: str, mend: str) -> None:
    hub.mood = mood
    failed = fetch(address(hub), tmp_path, HF_TOKEN=TOKEN)
    assert failed["what"].startswith(f"The base model {REPO} at revision {REVISION} {what}")
    assert failed["mend"].startswith(mend)


@pytest.fixture(scope="module", autouse=True)
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Future[dict[str, str]]"]:
    """What is said of a hub that does not answer; the library tries for a while, and other tests run meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        # Nobody listens on the discard port.
        yield pool.submit(fetch, "http://127.0.0.1:9", tmp_path_factory.mktemp("away"), HF_TOKEN=TOKEN)


def test_a_model_of_pickles_alone_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    failed = fetch(address(hub), tmp_path)
    assert failed["what"] == f"The base model {REPO} at revision {REVISION} has no safetensors weights."
    assert "pickles are never loaded" in failed["mend"]


def test_a_folder_is_known_by_its_content(base_folder: Path, tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("one", "two")]
    for copy in copies:
        copy.mkdir()
        for file in base_folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    one, two = (find_hub_or_folder_base(PathBase(source="path", path=copy)) for copy in copies)
    assert (one.name, two.name) == ("one", "two")
    assert one.sha256 == two.sha256
    (copies[1] / "config.json").write_text((copies[1] / "config.json").read_text() + "\n")
    assert find_hub_or_folder_base(PathBase(source="path", path=copies[1])).sha256 != one.sha256


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_refused(base_folder: Path, tmp_path: Path, lacking: str) -> None:
    for file in base_folder.iterdir():
        if file.name != lacking:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(PipelineError, match="lacks") as error:
        find_hub_or_folder_base(PathBase(source="path", path=tmp_path))
    assert str(tmp_path) in error.value.what
    assert lacking.replace("model", "*") in error.value.what or lacking in error.value.what
    assert "save_pretrained" in error.value.mend


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="nowhere lacks config"):
        find_hub_or_folder_base(PathBase(source="path", path=tmp_path / "nowhere"))


def test_the_embedded_base_must_have_been_trained(lake: DataLake, prepared: Path, tiny: Recipe) -> None:
    with pytest.raises(PipelineError, match="'base_model' was not finished there"):
        find_base(tiny, DataLake(prepared))


def test_company_rows_change_no_embedded_base(lake: DataLake, champion_lake: Path, tiny: Recipe) -> None:
    shutil.copytree(champion_lake / "prepare", lake.root / "prepare")
    shutil.copytree(champion_lake / "train", lake.root / "train")
    before = find_base(tiny, lake)
    add_to_side(lake, "train", company_rows(5))
    assert find_base(tiny, lake) == before
    assert not needs_training(tiny, lake)
    splits = lake.read("prepare", "bitext_splits")
    lake.write("prepare", "bitext_splits", splits.slice(1), CONVERSATION)
    assert needs_training(tiny, lake)


def test_the_embedded_base_is_made_of_the_training_rows_of_bitext(lake: DataLake, prepared: Path) -> None:
    splits = DataLake(prepared).read("prepare", "bitext_splits")
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    spec = EmbeddedBase(source="embedded", width=16, layers=1, vocabulary=300, steps=1)
    folder = build_embedded(spec, lake, print)
    manifest = read_manifest(folder, "base_model")
    assert manifest["rows"] == splits.column("split").to_pylist().count("train") < splits.num_rows
    assert manifest["data"] == {"bitext_splits": file_sha256(lake.table("prepare", "bitext_splits"))}


def test_hub_names_are_pinned() -> None:
    with pytest.raises(ValueError, match="revision"):
        HubBase(source="hub", repo=REPO, revision="main", licence="MIT")


def test_a_hub_that_is_away(away: "Future[dict[str, str]]") -> None:
    failed = away.result()
    assert failed["what"].startswith(f"The base model {REPO} at revision {REVISION} could not be fetched")
    assert "Check the network and HF_HUB_OFFLINE" in failed["mend"]
    assert "source: path" in failed["mend"]
