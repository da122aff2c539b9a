"""Everything that README and docs name exists."""

import re
import subprocess
from pathlib import Path

import pytest

from cs_pipeline.cli.commands import app

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
DOCS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), PROJECT / "data_lake" / "README.md"]


def tracked() -> set[str]:
    command = ["git", "-C", str(PROJECT), "ls-files"]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")


def tree() -> list[str]:
    """Paths of the annotated tree: indentation of two spaces a level, folders end with a slash."""
    block = README.split("## The tree")[1].split("```")[1]
    paths, folders = [], [""]
    for line in block.strip("\n").splitlines():
        name = line.split("#")[0]
        depth = (len(name) - len(name.lstrip())) // 2
        name = name.strip()
        folders = folders[: depth + 1]
        paths.append(folders[-1] + name)
        if name.endswith("/"):
            folders.append(folders[-1] + name)
    return paths


def test_the_tree_shows_every_folder_and_only_existing_ones() -> None:
    """The tree must show all folders at the top and every package. It may leave out files and other folders."""
    folders = {f"{parent}/" for path in tracked() for parent in Path(path).parents if str(parent) != "."}
    shown = set(tree())
    assert shown <= folders
    packages = {folder for folder in folders if folder.startswith("cs_pipeline/")}
    assert packages <= shown
    assert {folder for folder in folders if folder.count("/") == 1} <= shown


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 200


def test_every_line_of_the_tree_has_a_comment() -> None:
    block = README.split("## The tree")[1].split("```")[1]
    assert not [line for line in block.strip("\n").splitlines() if len(line.split("#")) < 2]


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"\.venv/bin/cs-pipeline ([a-z]+)", README)) <= names


def test_named_recipes_exist() -> None:
    named = set(re.findall(r"^\| `(\w+)`(?: \(the demo\))? \|", README.split("## Which model")[1], re.M))
    assert {"embedded", "smoke"} < named < {path.stem for path in (PROJECT / "cs_pipeline" / "recipes").glob("*.yaml")}


def test_link_targets_exist() -> None:
    for page in DOCS:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_placeholder_for_a_figure_is_filled() -> None:
    assert not [page for page in DOCS if re.search(r"@[A-Z]+@", page.read_text())]
