"""The layout of the package: its dependencies, file sizes and names.

import-linter (``make check``) verifies the layers. This file verifies the rules that import-linter cannot express.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cs_pipeline"
STAGES = ("ingest", "prepare", "train", "evaluate", "register", "serve")
FILES = {path.relative_to(PACKAGE): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path) for path in FILES}


def imports_between_stages() -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of an importing module and a module of another stage."""
    pairs = set()
    for path, text in FILES.items():
        importer = module_of(path)
        if not importer or importer[0] not in STAGES:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cs_pipeline."):
                base = tuple(node.module.split(".")[1:])
                for alias in node.names:
                    imported = (*base, alias.name) if (*base, alias.name) in MODULES else base
                    if imported[0] in STAGES and imported[0] != importer[0]:
                        pairs.add((importer, imported))
    return pairs


def test_stages_depend_on_few_modules_of_other_stages() -> None:
    assert len(imports_between_stages()) <= 25


def test_few_imports_skip_a_stage() -> None:
    skipping = {
        (importer, imported)
        for importer, imported in imports_between_stages()
        if STAGES.index(importer[0]) - STAGES.index(imported[0]) > 1
    }
    assert len(skipping) <= 12, skipping


def test_files_have_a_readable_size() -> None:
    lines = {str(path): text.count("\n") for path, text in FILES.items() if path.name != "__init__.py"}
    assert not [path for path, count in lines.items() if count > 600]
    small = [path for path, count in lines.items() if count < 60]
    assert len(small) <= 15, small


def test_no_two_public_classes_or_functions_share_a_name() -> None:
    paths = defaultdict(list)
    for path, text in FILES.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                paths[node.name].append(str(path))
    public = {name for name in paths if not name.startswith("_") and name != "main"}
    assert not {name: paths[name] for name in public if len(paths[name]) > 1}


def test_every_module_has_a_docstring() -> None:
    assert not [str(path) for path, text in FILES.items() if not ast.get_docstring(ast.parse(text))]


ARCHAIC = re.compile(r"\b(?:mend(?:s|ed)?|anew|alike to|hangs on|liken(?:s|ed)?)\b", re.IGNORECASE)


def test_no_text_contains_archaic_words() -> None:
    project = PACKAGE.parent
    texts = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja"), *project.glob("*.md"), *(project / "docs").glob("*.md")]
    found = [(str(path), match[0]) for path in texts for match in ARCHAIC.finditer(path.read_text())]
    assert not found
