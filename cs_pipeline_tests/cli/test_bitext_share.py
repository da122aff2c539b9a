"""How much of Bitext should stay is judged by a company's own questions, on a copy of the lake's tables."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cs_pipeline.cli import bitext_share
from cs_pipeline.cli.bitext_share import SHARES, ShareResult, best_share, compare_bitext_shares
from cs_pipeline.cli.commands import app
from cs_pipeline.company import company_file
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.evaluate.scoring.statistics import Difference
from cs_pipeline.prepare.splits.conversations import trial_folder
from cs_pipeline_tests.conftest import own_world


def files_of(lake: DataLake) -> dict[Path, str]:
    return {path: file_sha256(path) for path in sorted(lake.root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def lake(company_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """Tables and settings of a lake with 120 rows of a company."""
    lake = DataLake(tmp_path_factory.mktemp("shares") / "lake")
    shutil.copytree(company_lake / "prepare", lake.path("prepare"))
    shutil.copy(company_file(DataLake(company_lake)), company_file(lake))
    return lake


@pytest.fixture(scope="module")
def compared(lake: DataLake) -> tuple[list[ShareResult], list[str]]:
    """The results, and the lines that were reported. The lake is the same afterwards."""
    before, lines = files_of(lake), list[str]()
    (trial_folder(lake) / "prepare").mkdir(parents=True)  # left by a run that was killed
    with own_world(lake.root):
        results = compare_bitext_shares(lake, lines.append)
    assert files_of(lake) == before
    assert not trial_folder(lake).exists()
    return results, lines


def test_every_share_is_judged_on_the_same_questions(
    compared: tuple[list[ShareResult], list[str]], company_lake: Path
) -> None:
    results, lines = compared
    assert [result.share for result in results] == list(SHARES)
    assert len(lines) == len(SHARES)
    judged = read_evaluation("tiny", DataLake(company_lake)).company
    assert judged is not None
    everything, *_, nothing = results
    assert {result.questions for result in results} == {judged.rows}
    assert (everything.handed_over, everything.from_bitext) == (judged.handed_over, judged.from_bitext)
    assert everything.from_bitext > nothing.from_bitext == 0
    assert everything.difference is None
    for result in results[1:]:
        assert result.difference is not None
        assert result.difference.difference == pytest.approx(result.quality - everything.quality, abs=1e-6)


def result(share: float, quality: float, low: float) -> ShareResult:
    return ShareResult(share, 100, 5, 50, quality, Difference(quality - 50, low, low + 10, 0.9, 100, 80))


def test_a_smaller_share_is_advised_only_if_it_is_clearly_better() -> None:
    everything = ShareResult(1.0, 100, 5, 60, 50.0, None)
    unsure, better, best = result(0.3, 60, -1), result(0.1, 55, 0.5), result(0.0, 57, 2)
    assert best_share([everything, unsure]) is everything
    assert best_share([everything, unsure, better]) is better
    assert best_share([everything, unsure, better, best]) is best


@pytest.mark.parametrize(
    ("others", "advice"),
    [([result(0.1, 55, 0.5)], "bitext_share: 0.1 in"), ([result(0.1, 55, -1)], "keep all of Bitext")],
)
def test_the_command_shows_the_results_and_says_what_to_do(
    lake: DataLake, monkeypatch: pytest.MonkeyPatch, others: list[ShareResult], advice: str
) -> None:
    monkeypatch.setenv("CS_LAKE", str(lake.root))
    results = [ShareResult(1.0, 100, 5, 60, 50.0, None), *others]
    monkeypatch.setattr(bitext_share, "compare_bitext_shares", lambda lake, report: results)
    shown = CliRunner().invoke(app, ["bitext-share"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert advice in shown.output
    assert "+5.0 (" in shown.output


def test_without_a_company_there_is_nothing_to_compare(prepared_lake: DataLake) -> None:
    with pytest.raises(PipelineError, match="The company's questions are in 0 clusters, and at least"):
        compare_bitext_shares(prepared_lake, print)
    assert not trial_folder(prepared_lake).exists()
