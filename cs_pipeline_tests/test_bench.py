"""The benchmarks at a small size: they run, their checks hold, and the checks can fail."""

import multiprocessing.dummy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from bench import embedders, gpu, graph, grouping, prepare, processor, retrieval, router, side_by_side
from bench.flops import peak_of, utilisation
from bench.rows import read_rows
from cs_pipeline.llm import model
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, load_fine_tune_recipe
from cs_pipeline.retrieval import search
from cs_pipeline.retrieval.embedder import Embedder
from cs_pipeline_tests.retrieval.test_embedder import tiny_model
from cs_pipeline_tests.support.tiny import tiny_base


def test_the_bench_of_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_csv: Path) -> None:
    monkeypatch.setattr(prepare, "DAYS", 4)
    result = prepare.measure(400, tmp_path, str(small_csv))
    assert result["rows"] == 400
    assert result["conversations"] > 800 + 200, "the sample rows and most of the company's"
    assert set(result["sides"]) == {"train", "validation", "test"}
    for kind, ratio in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
        seconds = result[kind]
        assert list(seconds)[-1] == "together"
        assert seconds["clean_bitext"]["landing"] == 0, "Bitext is not prepared again"
        for arm, total in seconds.pop("together").items():
            assert total == pytest.approx(sum(step[arm] for step in seconds.values()))
        assert 0 < result[ratio] < 1


@pytest.mark.parametrize("most_compared", [50_000, 300])
def test_the_bench_of_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_compared: int) -> None:
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", most_compared)
    monkeypatch.setattr(search, "_TRAINING_ROWS", 300)
    questions = read_rows(None, 640)["instruction"].drop_duplicates().tolist()
    result = retrieval.measure(questions, 20, 1, tmp_path / "index")
    assert result["rows"] == len(questions) - 20
    assert retrieval.MIN_RECALL <= result["recall_at_1"] <= 1
    assert ("faiss" in {path.suffix[1:] for path in (tmp_path / "index").iterdir()}) == (most_compared == 300)
    assert retrieval.generated_questions(3) == retrieval.generated_questions(3)


def test_the_bench_of_retrieval_refuses_an_index_that_does_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "lookups", lambda index, asked: [0] * len(asked))
    with pytest.raises(AssertionError, match="true nearest"):
        retrieval.measure(read_rows(None, 200)["instruction"].tolist(), 20, 1, tmp_path / "index")


def test_the_bench_of_embedders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "FEW", 5)
    rows = embedders.read_split_rows(None, tmp_path).groupby("intent").head(25)
    embedder = Embedder(str(tiny_model(tmp_path / "model", seed=0)))
    result = embedders.measure(rows, embedder, 1, tmp_path)
    answers, articles = result["answers"], result["articles"]
    assert answers["known"] == (rows["split"] == "train").sum()
    assert answers["asked"] < (rows["split"] == "validation").sum()
    assert set(answers["figures"]) == {"all rows", "5 rows per intent", "most typical of all rows"}
    for by_metric in (*answers["figures"]["all rows"].values(), *articles["figures"].values()):
        for figures in by_metric.values():
            for name in ("mixture", "sentences"):
                difference, low, high = figures[f"{name} - characters"]
                assert difference == pytest.approx(figures[name] - figures["characters"])
                assert low - 1e-9 <= difference <= high + 1e-9
    assert articles["figures"]["same_words"]["first"]["characters"] > 90
    assert 0 < answers["weight"] < 1
    assert 0 < articles["weight"] < 1
    assert embedders.table_of(result).row_count == 2 * 11 + 6 + 2


def test_the_bench_of_the_router(tmp_path: Path) -> None:
    rows = embedders.read_split_rows(None, tmp_path).groupby("intent").head(20)
    rows = rows[rows["split"] == "train"].reset_index(drop=True)
    arm = router.measure(rows, [20], None)
    (draw,) = arm["draws"]
    assert len(draw["unknown_handed_over_by_intent"]) == router.LEFT_OUT
    assert arm["mean"]["accuracy"] == draw["accuracy"] > 0.8
    for shop, counts in arm["shops"].items():
        assert (counts["paraphrases"], counts["foreign"]) == (30, 15)
        wrong = (
            counts["paraphrases"] - counts["routed_right"] + counts["foreign_to_subject"] + counts["foreign_to_intent"]
        )
        assert len(arm["not_as_expected"][shop]) == wrong
    result = {"characters": arm, "sentences": arm, "embedder": "a model", "rows": len(rows)}
    assert router.table_of(result).row_count == 5 + 2 * 8


def test_a_mixture_is_chosen_among_true_mixtures() -> None:
    assert embedders.best_weight(np.array([9, 1, 2, 5, 4, 3, 2, 1, 1, 1, 9])) == 0.3


def test_arms_run_in_turn_and_their_times_are_compared() -> None:
    ran: list[str] = []

    def arm(name: str, seconds: float) -> Any:
        def run() -> str:
            ran.append(name)
            time.sleep(seconds)
            return name

        return run

    arms = side_by_side.in_turn({"slow": arm("slow", 0.3), "fast": arm("fast", 0.1)}, rounds=2)
    assert ran == ["fast", "slow", "slow", "fast", "fast", "slow"], (
        "a round to warm up, and each begins with another arm"
    )
    assert arms["slow"].computed == ["slow"] * 2
    assert len(arms["slow"].seconds) == len(arms["slow"].processor) == 2
    assert side_by_side.ratio(arms["slow"], arms["fast"])["clock"] == pytest.approx(3, rel=0.5)


def test_the_bench_of_grouping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = EmbeddedBase(source="embedded", hidden_size=16, num_hidden_layers=1, vocab_size=400, max_steps=20)
    result = grouping.measure(read_rows(None, 150), 1, 1, base, tmp_path)
    arms = result["arms"]
    assert arms["grouped"]["real_token_share"] > arms["random"]["real_token_share"]
    assert all(arm["validation_loss"] < result["validation_loss_before"] for arm in arms.values())
    assert all(arm["tokens_per_second"] > 0 for arm in arms.values())
    monkeypatch.setattr(grouping, "MAX_LOSS_DIFFERENCE", 0)
    with pytest.raises(AssertionError, match="the arms end at different losses"):
        grouping.measure(read_rows(None, 40), 1, 1, base, tmp_path)


def test_the_bench_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In threads: four processes would import torch, transformers, PEFT and TRL again.
    monkeypatch.setattr(processor, "get_context", lambda method: multiprocessing.dummy)
    monkeypatch.setattr(model, "MIN_BFLOAT16_SIZE", model.MIN_BFLOAT16_SIZE)  # the plain arms change it
    recipe = load_fine_tune_recipe(processor.RECIPE)
    recipe = recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"max_new_tokens": 4})})
    result = processor.measure(tiny_base(tmp_path / "base", "embedded"), recipe, None, rows=16, questions=4, rounds=1)
    assert set(result["arms"]) == {f"{work}, {arm}" for work in ("training", "answering") for arm in ("plain", "ours")}
    assert all(one["tokens_per_second"] > 0 for rounds in result["arms"].values() for one in rounds)


def test_the_bench_of_the_graph(tmp_path: Path) -> None:
    """Time inside the functions of assets and checks is not overhead; all other time of the run is."""
    recipes = dg.StaticPartitionsDefinition(["one"])

    @dg.asset(partitions_def=recipes)
    def quick(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        time.sleep(0.2)
        return dg.MaterializeResult(metadata={"partition": context.partition_key})

    @dg.asset(
        partitions_def=recipes, deps=[quick], check_specs=[dg.AssetCheckSpec("fine", asset="in_parts")], name="in_parts"
    )
    def in_parts() -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        time.sleep(0.1)
        yield dg.MaterializeResult()
        time.sleep(0.1)
        yield dg.AssetCheckResult(check_name="fine", passed=True)

    @dg.asset_check(asset=in_parts)
    def checked() -> dg.AssetCheckResult:
        time.sleep(0.1)
        return dg.AssetCheckResult(passed=True)

    parts: dict[str, Any] = {"assets": [quick, in_parts], "asset_checks": [checked]}
    defs = dg.Definitions(**parts, jobs=[dg.define_asset_job("all")])
    result = graph.measure(defs.resolve_job_def("all"), "one", tmp_path / "home", rounds=1)
    for run in (result["first"], *result["again"]):
        assert run["steps"] == 3
        assert run["functions"] == pytest.approx(0.5, abs=0.1)
        assert run["above_per_step"] * 3 == pytest.approx(run["wall"] - run["functions"])
    assert result["above_per_step"] == result["again"][0]["above_per_step"] > 0


def test_the_bench_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    result = gpu.measure(tmp_path, gpu.TOY_SHAPE, rows=20, rounds=1)
    arms = result["training"]["arms"]
    assert list(arms) == [gpu.PLAIN, *gpu.STEPS]
    assert all(arm["tokens_per_second"] > 0 for arm in arms.values())
    assert set(result["loss"]["arms"]) == {"full logits", "fused"}
    assert result["answers"]["texts_that_differ"] == 0
    assert [table.row_count for table in gpu.tables(result)] == [7, 2, 3]


def test_model_flop_utilisation(tmp_path: Path) -> None:
    recipe = FineTuneRecipe.model_validate(
        {
            "name": "mfu",
            "description": "For this test.",
            "base": {"source": "path", "path": str(tmp_path)},
            "quantization": "nf4",
            "lora": {"r": 8, "lora_alpha": 16, "target_modules": "attention"},
            "trainer": {
                "max_steps": 1,
                "learning_rate": 1,
                "per_device_train_batch_size": 1,
                "max_length": 32,
                "gradient_checkpointing": True,
            },
            "generation": {"max_new_tokens": 8},
        }
    )
    frozen, trained = 4 * 64 * 64 + 3 * 64 * 128 + 64 * 600, 4 * 8 * (64 + 64)
    needed = 4 * frozen + 6 * trained  # forward and backward; trained weights have gradients of their own too
    assert utilisation(recipe, gpu.TOY_SHAPE, 1000, 1e9) == pytest.approx(1000 * needed / 1e9)
    assert utilisation(recipe, gpu.TOY_SHAPE, 1000, None) is None
    assert peak_of("NVIDIA H100 80GB HBM3") == peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA L40S") != peak_of("NVIDIA L4") == 121e12
    assert peak_of("NVIDIA A10G") is peak_of("CPU") is None
