"""Evaluations of real tiny models: tuned, base, champion and the free baselines."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest, write_manifest
from cs_pipeline.core.schema import CONVERSATION, SLICE_SCORE, SPLIT_ROW, check_schema
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.results import EvaluationResults, SliceResults, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.scoring.answer_errors import ANSWER_ERRORS
from cs_pipeline.evaluate.scoring.baselines import NAIVE_METRICS
from cs_pipeline.evaluate.scoring.fidelity import FIDELITY_COLUMNS
from cs_pipeline.evaluate.scoring.rubric import RUBRIC_PARTS
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.llm.base import find_base
from cs_pipeline.recipe import EvaluationSettings, FineTuneRecipe
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import current_adapter

WITHOUT_CHAMPION = ["tuned", "base", "lookup", "nearest", "central", "random"]


@pytest.fixture
def evaluated(champion_lake: Path, lake: DataLake) -> DataLake:
    """A copy of the session's lake up to the evaluation. It has no store and so no champion."""
    for stage in ("prepare", "train", "evaluate"):
        shutil.copytree(champion_lake / stage, lake.root / stage)
    return lake


def answers(lake: DataLake) -> pd.DataFrame:
    return pd.read_parquet(evaluation_folder("tiny", lake) / "answers.parquet")


def score(results: EvaluationResults, system: str, metric: str) -> float:
    found = results.scores[system][metric]
    assert found is not None
    return found.score


def version_of(lake: DataLake, recipe: FineTuneRecipe, folder: Path, number: int = 4) -> Version:
    """The current adapter of ``lake``, laid out in ``folder`` like a version of the registry."""
    adapter = current_adapter(recipe.name, lake)
    shutil.copytree(adapter.folder, folder / "adapter")
    shutil.copytree(find_base(recipe, lake).path, folder / "base")
    return Version(number, adapter.fingerprint, recipe.name, "some run", folder)


def as_another(version: Version) -> Version:
    """The same weights under another fingerprint, as if another recipe had been trained."""
    manifest = read_manifest(version.folder / "adapter", "adapter")
    del manifest["files"]
    write_manifest(version.folder / "adapter", {**manifest, "fingerprint": "f" * 16})
    return Version(version.version, "f" * 16, version.recipe, version.run_id, version.folder)


def test_without_a_champion_base_and_baselines_are_evaluated(evaluated: DataLake) -> None:
    results = read_evaluation("tiny", evaluated)
    test = evaluated.read("prepare", "test_split")
    assert results.champion_version is None
    assert list(results.scores) == sorted(WITHOUT_CHAMPION)
    assert set(results.differences) == set(WITHOUT_CHAMPION) - {"tuned"}
    assert results.rows == test.num_rows
    assert results.clusters == len(set(test.column("cluster_id").to_pylist()))
    rows = answers(evaluated)
    assert len(rows) == test.num_rows * len(WITHOUT_CHAMPION)
    for _, frame in rows.groupby("system"):
        assert frame["row_id"].tolist() == test.column("row_id").to_pylist()
        assert frame["reference"].tolist() == test.column("response").to_pylist()
    assert score(results, "tuned", "bits_per_character") < score(results, "base", "bits_per_character")
    bits = results.differences["base"]["bits_per_character"]
    assert bits is not None
    assert bits.high < 0
    assert results.slices == {
        "bitext": SliceResults(
            rows=results.rows,
            clusters=results.clusters,
            gates=True,
            scores=results.scores,
            differences=results.differences,
        )
    }
    assert results.intents == {}  # two test rows an intent
    # Right answers of right intents from training rows beat a model of thirty steps, and chance.
    assert score(results, "nearest", "rougeL") > score(results, "random", "rougeL")
    assert score(results, "central", "right_intent") > 80 > score(results, "random", "right_intent")
    for system in ("nearest", "central", "random"):
        assert results.scores[system]["bits_per_character"] is None


def test_every_figure_comes_from_the_tables_beside_it(evaluated: DataLake) -> None:
    results, rows, folder = read_evaluation("tiny", evaluated), answers(evaluated), evaluation_folder("tiny", evaluated)
    assert {*FIDELITY_COLUMNS, *ANSWER_ERRORS, *RUBRIC_PARTS, "near_train_rows"} <= set(rows)
    references = pd.read_parquet(folder / "references.parquet")
    assert references["reference"].tolist() == rows[rows["system"] == "tuned"]["reference"].tolist()
    frames = {str(system): frame for system, frame in rows.groupby("system")} | {"reference": references}
    for system, frame in frames.items():
        means = {f"error_{name}": 100 * frame[name].mean() for name in ANSWER_ERRORS}
        means |= {"fabricates": 100 * (frame["fabricated"] > 0).mean()}
        means |= {name: frame[name].mean() for name in ("rubric", "heuristic")}
        for name, mean in means.items():
            known = results.references[name] if system == "reference" else score(results, system, name)
            assert known == pytest.approx(mean), (system, name)
        if system not in ("tuned", "base"):
            assert not frame["unfinished"].all()
    assert results.references["error_wrong_intent"] == pytest.approx(100 * (1 - results.answer_classifier_accuracy))
    # A model of thirty steps, cut off after 24 tokens.
    assert score(results, "tuned", "error_unfinished") > 50 > (results.references["error_unfinished"] or 0)
    assert rows.groupby("row_id")["near_train_rows"].nunique().max() == 1

    table = pq.read_table(folder / "slices.parquet")
    check_schema(table, SLICE_SCORE, "slices")
    whole = {(row["system"], row["metric"]): row for row in table.to_pylist() if row["kind"] == "all"}
    for system, scores in results.scores.items():
        for name, found in scores.items():
            row = whole[system, name]
            assert (row["score"], row["low"], row["high"]) == pytest.approx(
                (found.score, found.low, found.high) if found else (None, None, None)
            ), (system, name)
    assert set(results.detectable) == set(results.differences)
    bits = results.differences["base"]["bits_per_character"]
    assert bits is not None
    assert results.detectable["base"]["bits_per_character"] == pytest.approx((bits.high - bits.low) * 0.715, rel=0.01)
    assert set(results.naive) == set(NAIVE_METRICS)
    assert (results.naive["rougeL"] or 0) > 20
    sheet = (folder / "weak_intents.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(sheet) == 1 + sum(weak.kind == "intent" for weak in results.weak)
    assert all(weak.p < 0.05 and weak.advice for weak in results.weak)


def test_planted_errors_are_found(evaluated: DataLake, tiny: FineTuneRecipe) -> None:
    test_set = FrozenTestSet(tiny, evaluated)
    planted = {
        "none": "",
        "fabricated": " It will cost 74.35 dollars.",
        "invented": " See {{Moon Phase}}.",
        "repeats_itself": " We will look into it for you today." * 3,
    }
    found = {
        kind: test_set.score_without_references([reference + text for reference in test_set.references]).astype(
            float, errors="ignore"
        )
        for kind, text in planted.items()
    }
    for column in ("fabricated", "invented", "repeats_itself"):
        assert (found[column][column] > found["none"][column]).all(), column
        assert (found["none"][column] > 0).mean() < 0.15, column
    assert found["none"]["present"].tolist() == found["none"]["needed"].tolist()
    elsewhere = test_set.score_without_references(
        ["The weather in the mountains will be sunny and mild."] * len(test_set.references)
    )
    assert elsewhere["off_topic"].mean() > 0.9


def test_equal_input_is_not_evaluated_again(evaluated: DataLake, tiny: FineTuneRecipe) -> None:
    before = (evaluation_folder("tiny", evaluated) / "answers.parquet").stat()
    lines: list[str] = []
    again = evaluate(tiny, evaluated, None, lines.append)
    assert again.reused
    assert again.results == read_evaluation("tiny", evaluated)
    assert (evaluation_folder("tiny", evaluated) / "answers.parquet").stat() == before
    assert lines == [
        f"The same input was evaluated before. The results are reused: {evaluation_folder('tiny', evaluated)}"
    ]


def test_a_champion_is_not_compared_with_itself(evaluated: DataLake, tiny: FineTuneRecipe, tmp_path: Path) -> None:
    itself = version_of(evaluated, tiny, tmp_path / "version")
    assert evaluate(tiny, evaluated, itself, print).reused  # as if there were no champion


def test_another_champion_is_compared_with_it(evaluated: DataLake, tiny: FineTuneRecipe, tmp_path: Path) -> None:
    """The champion has the same weights, so any difference would come from the evaluation itself."""
    another = as_another(version_of(evaluated, tiny, tmp_path / "version"))
    alone = read_evaluation("tiny", evaluated)
    fewer = tiny.model_copy(update={"evaluation": EvaluationSettings(robustness_cases=2, timed_answers=1)})
    beside = evaluate(fewer, evaluated, another, print)
    assert not beside.reused
    results = beside.results
    assert {len(run.alone) for run in results.runs.values()} == {1}
    trials = pd.read_parquet(evaluation_folder("tiny", evaluated) / "robustness.parquet")
    assert trials.groupby(["system", "group"]).size().max() == 2
    assert results.champion_version == another.version
    assert results.placeholders == {"tuned": "keep", "base": "keep", "champion": "keep"}
    assert results.fingerprint != alone.fingerprint
    assert results.scores["champion"] == results.scores["tuned"] == alone.scores["tuned"]
    measured = {metric: d for metric, d in results.differences["champion"].items() if d is not None}
    assert set(measured) >= {"bits_per_character", "right_intent", "stop_rate", "rougeL", "bleu", "chrf"}
    for metric, difference in measured.items():
        assert difference.difference == difference.low == difference.high == 0, metric
    assert not decide_promotion(results).promote
    assert results.differences["base"] == alone.differences["base"]
    wide = answers(evaluated).pivot_table(index="row_id", columns="system", values="answer", aggfunc="first")
    assert wide["champion"].tolist() == wide["tuned"].tolist()
    assert evaluate(fewer, evaluated, another, print).reused
    assert not evaluate(tiny, evaluated, another, print).reused, "other trials"


def test_a_champion_with_changed_files_is_refused(evaluated: DataLake, tiny: FineTuneRecipe, tmp_path: Path) -> None:
    another = as_another(version_of(evaluated, tiny, tmp_path / "version"))
    weights = another.folder / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    before = read_evaluation("tiny", evaluated)
    with pytest.raises(PipelineError, match=r"base/model\.safetensors was changed"):
        evaluate(tiny, evaluated, another, print)
    assert read_evaluation("tiny", evaluated) == before


def test_other_test_rows_are_evaluated_again_and_the_references_score_best(
    evaluated: DataLake, tiny: FineTuneRecipe
) -> None:
    """The test rows are training rows, so the answer of the nearest question is the reference itself."""
    before = read_evaluation("tiny", evaluated)
    train = evaluated.read("prepare", "train_split").to_pandas().drop_duplicates("instruction")
    known = train.groupby("intent").head(2).assign(split="test", nearest_train_similarity=1.0)
    table = pa.Table.from_pandas(known, schema=SPLIT_ROW, preserve_index=False)
    evaluated.write("prepare", "test_split", table, SPLIT_ROW)
    again = evaluate(tiny, evaluated, None, print)
    results = again.results
    assert not again.reused
    assert results.fingerprint != before.fingerprint
    assert (results.rows, before.rows) == (54, 54)
    rows = answers(evaluated)
    nearest = rows[rows["system"] == "nearest"]
    assert nearest["answer"].tolist() == nearest["reference"].tolist()
    for metric in ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "placeholder_precision", "placeholder_recall"):
        assert score(results, "nearest", metric) == pytest.approx(100), metric
        for other in ("tuned", "base", "random"):
            found = results.scores[other][metric]
            assert found is None or found.score < 100, (other, metric)
    assert score(results, "nearest", "right_intent") == pytest.approx(100 * results.answer_classifier_accuracy)
    assert score(results, "nearest", "length_ratio") == pytest.approx(1)
    assert score(results, "nearest", "placeholder_invented") == 0


def test_company_rows_are_asked_with_their_earlier_turns_and_are_a_slice(
    evaluated: DataLake, tiny: FineTuneRecipe
) -> None:
    before = answers(evaluated)
    table = evaluated.read("prepare", "test_split")
    earlier = [["customer", "hello, my order {{Order Number}} is late"], ["agent", "I am sorry, what may I do?"]]
    rows = [
        {**row, "source": "company", "context": json.dumps(earlier)} if i % 2 else row
        for i, row in enumerate(table.to_pylist())
    ]
    evaluated.write("prepare", "test_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    results = evaluate(tiny, evaluated, None, print).results
    assert {source: (part.rows, part.gates) for source, part in results.slices.items()} == {
        "bitext": (27, True),
        "company": (27, True),
    }
    wide = [
        frame.pivot_table(index="row_id", columns="system", values=["answer", "nll", "question"], aggfunc="first")
        for frame in (before, answers(evaluated))
    ]
    company = [row["row_id"] for row in rows if row["source"] == "company"]
    bitext = [row["row_id"] for row in rows if row["source"] == "bitext"]
    for system in ("tuned", "base"):
        without, beside = (frame["nll"][system].astype(float) for frame in wide)
        assert without[bitext].tolist() == pytest.approx(beside[bitext].tolist())
        # The adapter was trained on Bitext's single questions, so its prompts have no earlier turns.
        assert any(without[company] == beside[company]) == (system == "tuned")
    assert (wide[0]["answer"]["nearest"] == wide[1]["answer"]["nearest"]).all()
    question = wide[1]["question"]["tuned"][company[0]]
    asked = wide[0]["question"]["tuned"][company[0]]
    assert question == f"Customer: {earlier[0][1]}\nAgent: {earlier[1][1]}\n\n{asked}"
    assert wide[1]["question"]["tuned"][bitext[0]] == wide[0]["question"]["tuned"][bitext[0]]
    assert set(answers(evaluated)["source"]) == {"bitext", "company"}


def test_an_adapter_of_another_base_or_recipe_is_not_evaluated(evaluated: DataLake, tiny: FineTuneRecipe) -> None:
    edited = tiny.model_copy(update={"generation": tiny.generation.model_copy(update={"max_new_tokens": 9})})
    with pytest.raises(PipelineError, match="The recipe of 'tiny' has changed since its adapter"):
        evaluate(edited, evaluated, None, print)
    # Other training rows, and the base made of them, but the adapter is still the old one.
    base = Path(find_base(tiny, evaluated).path)
    rows = evaluated.read("prepare", "bitext_splits").slice(1)
    evaluated.write("prepare", "bitext_splits", rows, CONVERSATION)
    with pytest.raises(PipelineError, match="'base_model' was not finished there"):
        evaluate(tiny, evaluated, None, print)
    from cs_pipeline.llm.base import embedded_folder

    assert tiny.base.source == "embedded"
    other = embedded_folder(tiny.base, evaluated)
    shutil.copytree(base, other)
    (other / "loss.json").write_text("[]")
    (other / "manifest.json").unlink()
    write_manifest(other, {"parameters": 1, "rows": 1})
    with pytest.raises(PipelineError, match="The base model of 'tiny' has changed since its adapter") as error:
        evaluate(tiny, evaluated, None, print)
    assert "Materialise 'adapter'" in error.value.fix
