"""The untuned base, prompted: a tiny instruct model with SmolLM2's tokenizer and chat template, really evaluated."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.evaluation import BASELINES_FILE, evaluate
from cs_pipeline.evaluate.judge.judge import JUDGED_QUESTIONS
from cs_pipeline.evaluate.prompted_base import FEW_SHOT_EXAMPLES, evaluate_prompted_base, prompt_of, solved_examples
from cs_pipeline.evaluate.report.rendering import figure
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import PROMPTED_SYSTEMS, SYSTEMS, EvaluationResults, evaluation_folder
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, smallest_ids
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import (
    EvaluationSettings,
    FineTuneRecipe,
    GenerationSettings,
    LoraSettings,
    PathBase,
    PromptSettings,
    TrainerSettings,
)
from cs_pipeline.retrieval.index import RetrievalIndex, retrieval_folder
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.adapter import train_adapter
from cs_pipeline_tests.conftest import RECIPES, own_world
from cs_pipeline_tests.evaluate.judge.test_judge import server
from cs_pipeline_tests.evaluate.judge.test_jury import longer
from cs_pipeline_tests.support.tiny import tiny_base

ASKED = 30
SYSTEM = (
    "You are a customer support agent. Answer the customer's question. Write every value that you do not know as a"
    " placeholder in double braces, for example {{Order Number}} or {{Customer Support Phone Number}}."
)
RETRIEVAL_SYSTEM = f"{SYSTEM} If a known answer to a similar question stands before the question, use it."


@dataclass(frozen=True)
class Prompted:
    """An evaluation, and the prompts of the untuned base in their order, with control tokens."""

    lake: DataLake
    base: Path
    recipe: FineTuneRecipe
    results: EvaluationResults
    prompts: list[str]

    @property
    def answers(self) -> pd.DataFrame:
        return pd.read_parquet(evaluation_folder(self.recipe.name, self.lake) / "answers.parquet")

    @property
    def baselines(self) -> pd.DataFrame:
        return pd.read_parquet(evaluation_folder(self.recipe.name, self.lake) / BASELINES_FILE)

    def again(self, recipe: FineTuneRecipe, base: Path, report: Callable[[str], None] = print) -> Any:
        """Prompts ``base`` for ``recipe``, beside the stored answers of the other systems."""
        stats = {str(s): frame.reset_index(drop=True) for s, frame in self.answers.groupby("system")}
        index = RetrievalIndex.load(retrieval_folder(self.lake))
        return evaluate_prompted_base(recipe, base, FrozenTestSet(recipe, self.lake), stats, index, report)


def recipe_of(base: Path, **changed: Any) -> FineTuneRecipe:
    settings: dict[str, Any] = {
        "name": "instruct",
        "description": "A tiny instruct model.",
        "base": PathBase(source="path", path=base),
        "quantization": "none",
        "lora": LoraSettings(r=2, lora_alpha=4),
        "prompt": PromptSettings(route="intent"),
        "train_rows": 16,
        "validation_rows": 8,
        "trainer": TrainerSettings(max_steps=2, learning_rate=1e-3, per_device_train_batch_size=4, max_length=320),
        "generation": GenerationSettings(max_new_tokens=8),
        "evaluation": EvaluationSettings(robustness_cases=1, timed_answers=1, baseline_questions=ASKED),
    }
    return FineTuneRecipe(**settings | changed)


@pytest.fixture(scope="module")
def prompted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    folder = tmp_path_factory.mktemp("prompted")
    lake, base = DataLake(folder / "lake"), tiny_base(folder / "base", "smollm2")
    shutil.copytree(prepared / "prepare", lake.root / "prepare")
    recipe, prompts = recipe_of(base), []
    fit = SupportModel._prompt

    def recorded(model: SupportModel, *question: Any) -> Any:
        prompt = fit(model, *question)
        if model.recipe.prompt != recipe.prompt:
            assert prompt.turns_dropped == 0
            prompts.append(str(model.chat.tokenizer.decode(prompt.encoded)))
        return prompt

    with own_world(lake.root) as patch:
        patch.setenv("CS_RECIPES", str(RECIPES))
        train_adapter(recipe, lake, print)
        patch.setattr(SupportModel, "_prompt", recorded)
        with server(longer) as (endpoint, _):
            patch.setenv("CS_JUDGE_URL", endpoint.url)
            patch.setenv("CS_JUDGE_MODEL", endpoint.model)
            results = evaluate(recipe, lake, None, print).results
    return Prompted(lake, base, recipe, results, prompts)


def chat(system: str, *turns: str) -> str:
    """The text of a conversation in SmolLM2's template; the customer begins."""
    roles = ["user", "assistant"]
    text = "".join(f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
    return f"<|im_start|>system\n{system}<|im_end|>\n{text}<|im_start|>assistant\n"


def test_the_base_is_asked_as_a_practitioner_would_ask_it(prompted: Prompted) -> None:
    test = prompted.lake.read("prepare", "test_split").to_pandas()
    asked = test[test["row_id"].isin(sorted(test["row_id"])[:ASKED])]
    questions = asked["instruction"].tolist()
    train = prompted.lake.read("prepare", "train_split").to_pandas().set_index("row_id")
    assert prompted.results.baselines is not None
    examples = train.loc[prompted.results.baselines.examples]
    turns = [text for row in examples.itertuples() for text in (row.instruction, row.response)]
    rows = prompted.answers
    known = rows[rows["system"] == "lookup"].set_index("row_id")["answer"].loc[asked["row_id"]].tolist()
    assert prompted.prompts == [
        *(chat(SYSTEM, question) for question in questions),
        *(chat(SYSTEM, *turns, question) for question in questions),
        *(
            chat(RETRIEVAL_SYSTEM, f"Known answer: {answer}\n\nQuestion: {question}" if answer else question)
            for answer, question in zip(known, questions, strict=True)
        ),
    ]
    assert sum(map(bool, known)) > ASKED / 2
    assert not any(intent in prompt for prompt in prompted.prompts[:ASKED] for intent in set(test["intent"]))


def test_the_examples_are_training_rows_of_different_intents(prompted: Prompted) -> None:
    baselines = prompted.results.baselines
    assert baselines is not None
    rows = FrozenTestSet(prompted.recipe, prompted.lake)
    examples = solved_examples(rows, ())
    assert examples["row_id"].tolist() == baselines.examples
    assert len(examples) == examples["intent"].nunique() == FEW_SHOT_EXAMPLES
    assert set(examples["row_id"]) <= set(rows.train["row_id"])
    assert not set(examples["cluster_id"]) & set(rows.test["cluster_id"])
    held_out = examples["intent"].iloc[0]
    without = solved_examples(rows, [held_out])
    assert held_out not in set(without["intent"])
    assert without["intent"].nunique() == FEW_SHOT_EXAMPLES
    # A row of a tested cluster, of an earlier conversation or of unknown intent is no example, whatever its id.
    first = rows.train["row_id"] == examples["row_id"].iloc[0]
    for column, value in (
        ("cluster_id", rows.test["cluster_id"].iloc[0]),
        ("context", [("customer", "Hi")]),
        ("source", "company"),
    ):
        rows.train = FrozenTestSet(prompted.recipe, prompted.lake).train
        rows.train.loc[first, column] = pd.Series([value] * len(rows.train), rows.train.index)[first]
        assert not set(solved_examples(rows, ())["row_id"]) & {baselines.examples[0]}, column
    rows = FrozenTestSet(prompted.recipe, prompted.lake)
    rows.own_rows = [[], [baselines.examples[0]]]
    assert baselines.examples[0] not in set(solved_examples(rows, ())["row_id"]), "it is of a question's conversation"


def test_all_systems_are_compared_on_the_questions_that_the_base_was_asked(prompted: Prompted) -> None:
    baselines = prompted.results.baselines
    assert baselines is not None
    stored, everyone = prompted.baselines, prompted.answers
    assert set(stored["system"]) == set(PROMPTED_SYSTEMS)
    asked = set(stored["row_id"])
    assert asked == set(sorted(set(everyone["row_id"]))[:ASKED])
    assert (baselines.questions, baselines.same_as_base) == (ASKED, [])
    rows = pd.concat([stored, everyone[everyone["row_id"].isin(asked)]])
    assert set(baselines.scores) == set(rows["system"]) == {*prompted.results.scores, *PROMPTED_SYSTEMS}
    assert baselines.clusters == rows["cluster_id"].nunique()
    for system, frame in rows.groupby("system"):
        for name in ("right_intent", "fabricates"):
            score = baselines.scores[str(system)][name]
            assert score is not None
            assert score.score == pytest.approx(100 * frame[name].mean()), (system, name)
        assert baselines.scores[str(system)]["quality"] is not None
    assert set(baselines.differences) == set(baselines.scores) - {"tuned"}
    for system, differences in baselines.differences.items():
        change = differences["right_intent"]
        ours, theirs = (baselines.scores[name]["right_intent"] for name in ("tuned", system))
        assert change is not None
        assert ours is not None
        assert theirs is not None
        assert change.difference == pytest.approx(ours.score - theirs.score)
        assert change.rows == ASKED
    # Elsewhere they do not appear: their answers are of a part of the questions.
    assert not set(PROMPTED_SYSTEMS) & {*prompted.results.scores, *prompted.results.runs, *everyone["system"]}
    slices = pd.read_parquet(evaluation_folder("instruct", prompted.lake) / "slices.parquet")
    assert not set(PROMPTED_SYSTEMS) & set(slices["system"])


def test_the_judge_compares_the_best_of_them(prompted: Prompted) -> None:
    judge, baselines = prompted.results.judge, prompted.results.baselines
    assert judge is not None
    assert baselines is not None
    assert list(judge.against) == sorted(["base", "lookup", baselines.strongest])
    best, asked = judge.against[baselines.strongest], min(JUDGED_QUESTIONS, prompted.results.rows)
    assert best.won + best.lost + best.ties == ASKED < asked
    rows = prompted.answers[prompted.answers["system"].isin(["tuned", "base"])]
    words = rows.pivot(index="row_id", columns="system", values="answer").map(len)
    base = judge.against["base"]
    assert (base.won, base.lost) == ((words["tuned"] > words["base"]).sum(), (words["tuned"] < words["base"]).sum())
    assert base.won + base.lost + base.ties == asked
    statement = write_report(prompted.recipe, prompted.lake).markdown.split("By a judge")[1].splitlines()[0]
    assert f"Against base: it won {base.won}, lost {base.lost}" in statement


def test_the_report_has_their_table_and_names_the_best_prompt(prompted: Prompted) -> None:
    baselines = prompted.results.baselines
    assert baselines is not None
    report = write_report(prompted.recipe, prompted.lake)
    html = report.path.read_text()
    table = html[html.index("<h3>Untuned baselines</h3>") : html.index("<h3>What a random split")]
    names = re.findall(r'<tr><th scope="row">(\w+)<small>', table)
    quality = {system: score.score for system, scores in baselines.scores.items() if (score := scores["quality"])}
    assert names == sorted(filter(quality.__contains__, SYSTEMS), key=quality.__getitem__, reverse=True)
    assert set(names) >= {"tuned", "base", "lookup", *PROMPTED_SYSTEMS}
    cells = re.findall(r'<th scope="row">(\w+)<small>[^<]*</small></th><td>([^<\s]+)', table)
    assert dict(cells) == {system: figure("quality", value) for system, value in quality.items()}
    assert f"{ASKED} test questions" in table
    assert "Against prompting the base" in html
    best = max(PROMPTED_SYSTEMS, key=quality.__getitem__)
    assert baselines.strongest == best
    assert f"The best is {best}".replace("_", r"\_") in report.markdown


def test_a_prompt_that_the_base_has_been_asked_with_is_not_asked_again(prompted: Prompted) -> None:
    same = recipe_of(
        prompted.base,
        prompt=PromptSettings(system=SYSTEM),
        evaluation=EvaluationSettings(baseline_questions=12),
    )
    found = prompted.again(same, prompted.base)
    assert found.results.same_as_base == ["zero_shot"]
    assert list(found.stats) == ["few_shot", "zero_shot_with_retrieval"]
    assert "zero_shot" not in found.results.scores
    assert found.results.questions == 12


def test_there_are_no_prompts_for_a_base_that_cannot_chat_or_if_none_are_wanted(
    prompted: Prompted, tmp_path: Path
) -> None:
    lines: list[str] = []
    none = recipe_of(prompted.base, evaluation=EvaluationSettings(baseline_questions=0))
    assert prompted.again(none, prompted.base, lines.append) is None
    assert not lines
    t5 = tiny_base(tmp_path / "t5", "t5")
    no_chat = recipe_of(t5, prompt=PromptSettings(template="t5_v1"))
    assert prompted.again(no_chat, t5, lines.append) is None
    assert [line for line in lines if "no chat template" in line] == lines != []
    few = recipe_of(prompted.base, evaluation=EvaluationSettings(baseline_questions=3))
    assert prompted.again(few, prompted.base, lines.append) is None
    assert "too few" in lines[-1]


def test_only_a_version_that_keeps_placeholders_is_told_about_them() -> None:
    for mode in PlaceholderMode:
        assert ("{{Order Number}}" in prompt_of("zero_shot", mode).system) == (mode is PlaceholderMode.KEEP)


def test_the_smallest_ids_are_chosen_in_place() -> None:
    assert smallest_ids(["d", "a", "c", "b"], 2).tolist() == [False, True, False, True]
    assert smallest_ids(["b", "a"], 5).all()
    assert EvaluationSettings().baseline_questions == JUDGED_QUESTIONS  # the judge compares on the same questions
