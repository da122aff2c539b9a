"""The report page: it is self-contained, escaped and reproducible. An evaluation that does not fit is refused."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.report.report import EMBEDDED_WARNING, write_report
from cs_pipeline.evaluate.results import evaluation_file, evaluation_folder, write_evaluation
from cs_pipeline.recipe import FineTuneRecipe, HubBase
from cs_pipeline_tests.support.reported import HOSTILE, Page, evaluated
from cs_pipeline_tests.support.reported import recipe as recipe  # the fixture


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory, recipe: FineTuneRecipe) -> str:
    """The page of 40 rows and all systems except a champion."""
    lake = DataLake(tmp_path_factory.mktemp("report"))
    evaluated(lake, recipe)
    return write_report(recipe, lake).path.read_text()


def test_nothing_is_fetched_from_outside(html: str) -> None:
    page = Page(html)
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["svg"] > 15
    assert not tags.keys() & {"script", "link", "iframe", "object", "embed", "base", "img", "image", "foreignobject"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert "://" not in (value or ""), (tag, name, value)
            if name in ("href", "xlink:href", "src"):
                assert (value or "").startswith("#"), (tag, value)
            assert re.sub(r"url\(#\w+\)", "", value or "").count("url(") == 0
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert html.count("<style") == 1


def test_every_reference_inside_the_page_has_one_target(html: str) -> None:
    page = Page(html)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    used = set()
    for _, attributes in page.elements:
        used |= {(attributes.get("href") or "")[1:], *re.findall(r"url\(#(\w+)\)", attributes.get("clip-path") or "")}
    assert used - {""} <= ids.keys()
    assert set(ids.values()) == {1}


def test_text_of_the_data_stays_text_in_html(html: str) -> None:
    assert HOSTILE in Page(html).text  # line breaks and quotes too
    assert "<i>odd</i> | intent" in Page(html).text
    assert "Small & <b>quick</b>" in Page(html).text
    assert "<script" not in html
    assert "<b>Odd</b>" not in html
    assert "<mark>{{Order Number}}</mark>" in html


def test_text_of_the_data_stays_text_in_markdown(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, rows=3)
    report = write_report(recipe, lake)
    assert report.markdown == report.path.with_suffix(".md").read_text()
    lines = report.markdown.splitlines()
    assert len(lines) < 200
    shown = "\n".join(line for line in lines if "evil" in line)
    assert r"&lt;script src='https://evil.example/x.js'&gt;alert(1)&lt;/script&gt; \| a \| \`b\` \[c\]" in shown
    assert r"{{Order Number}} {{&lt;b&gt;Odd&lt;/b&gt;}} \*star\* \_under\_ \~\~gone\~\~" in shown
    assert not re.search(r"<\w|(?<!\\)[`\[]", report.markdown)
    assert not any(line.startswith("#") for line in lines)


def test_equal_input_gives_equal_bytes(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe)
    first = write_report(recipe, lake)
    html, markdown = first.path.read_bytes(), first.path.with_suffix(".md").read_bytes()
    second = write_report(recipe, lake)
    assert second == first
    assert (second.path.read_bytes(), second.path.with_suffix(".md").read_bytes()) == (html, markdown)
    assert sorted(path.name for path in first.path.parent.iterdir()) == ["demo.html", "demo.md"]


def test_a_single_source_is_not_a_slice(html: str) -> None:
    assert "By source" not in html
    assert "On the bitext rows" not in html


def test_only_a_demo_base_gets_a_warning(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe)
    report = write_report(recipe, lake)
    assert EMBEDDED_WARNING in report.path.read_text()
    assert EMBEDDED_WARNING in report.markdown
    base = HubBase(source="hub", repo="owner/model", revision="0" * 40, licence="MIT")
    hub = recipe.model_copy(update={"name": "hub", "base": base})
    evaluated(lake, hub)
    report = write_report(hub, lake)
    assert EMBEDDED_WARNING not in report.path.read_text() + report.markdown


def test_missing_similarities_a_short_training_and_empty_answers_still_make_a_report(
    lake: DataLake, recipe: FineTuneRecipe
) -> None:
    evaluated(lake, recipe, curve=[])
    path = evaluation_folder(recipe.name, lake) / "answers.parquet"
    pd.read_parquet(path).assign(nearest_train_similarity=np.nan, answer=" ").to_parquet(path)
    html = write_report(recipe, lake).path.read_text()
    assert "have no similarity to the training questions" in html
    assert '<p class="empty">nothing</p>' in html


def test_another_adapter_than_the_evaluated_one_is_refused(lake: DataLake, recipe: FineTuneRecipe) -> None:
    results = evaluated(lake, recipe)
    write_evaluation(results.model_copy(update={"adapter_fingerprint": "another"}), evaluation_file(recipe.name, lake))
    with pytest.raises(PipelineError, match="of adapter another, but the recipe's adapter is now 0123456789abcdef"):
        write_report(recipe, lake)
    assert not lake.path("evaluate", "evaluation_report").exists()


def test_a_recipe_that_was_not_evaluated_is_refused(lake: DataLake, recipe: FineTuneRecipe) -> None:
    with pytest.raises(PipelineError, match=r"evaluation\.json is missing"):
        write_report(recipe, lake)
