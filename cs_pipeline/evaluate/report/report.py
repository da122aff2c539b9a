"""The evaluation as one HTML file that needs nothing beside it, and a summary of it in Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.company import load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.evaluation import SYSTEMS, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.people.people import opinions
from cs_pipeline.evaluate.report import tables as exhibits
from cs_pipeline.evaluate.report import tables as scrutiny
from cs_pipeline.evaluate.report.pages import plain, template
from cs_pipeline.evaluate.report.plots import loss_picture
from cs_pipeline.evaluate.report.verdict import Statement, figure, odd_questions, promotable, verdict, weak_slices
from cs_pipeline.evaluate.retrieval_effect import COMPARED, misled_groups
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.adapter import current_adapter

DEMO = (
    "A demo model, not fit for customers: its base is very small and was trained from scratch in minutes, to "
    "prove that the pipeline works."
)

_IN_MARKDOWN = ("bits_per_character", "right_intent", "rougeL", "bleu", "chrf", "placeholder_recall", "stop_rate")
_MARKDOWN_CHARACTERS = 280


@dataclass(frozen=True)
class Report:
    """Where the HTML file lies, and the summary in Markdown."""

    path: Path
    markdown: str


def write_report(recipe: Recipe, lake: DataLake) -> Report:
    """Writes ``evaluate/evaluation_report/<recipe>.html`` and ``<recipe>.md`` of the recipe's last evaluation.

    Equal input gives equal bytes. Raises PipelineError when the recipe was not evaluated, or when the evaluation is not
    of its current adapter.
    """
    facts, adapter = read_evaluation(recipe.name, lake), current_adapter(recipe.name, lake)
    if facts["adapter_fingerprint"] != adapter.fingerprint:
        raise PipelineError(
            f"The evaluation of '{recipe.name}' is of adapter {facts['adapter_fingerprint']}, but the recipe's adapter"
            f" is now {adapter.fingerprint}.",
            f"Materialise 'evaluation' for the partition '{recipe.name}' again, then its report.",
        )
    answers, references, slices, probe = (
        pd.read_parquet(evaluation_folder(recipe.name, lake) / f"{name}.parquet")
        for name in ("answers", "references", "slices", "probe")
    )
    systems = {system: words for system, words in SYSTEMS.items() if system in facts["scores"]}
    models = [system for system in systems if system in facts["runs"]]
    intents = exhibits.by_intent(answers)
    findings = [
        promotable(facts),
        *verdict(facts, intents[intents["system"] == "tuned"]),
        weak_slices(facts["weak"]),
        odd_questions(facts["robustness"]),
    ]
    demo = DEMO if recipe.base.source == "embedded" else ""
    examples = exhibits.examples(answers)
    m = adapter.metrics
    losses = m["loss"], m["steps"], m["validation_loss_before"], m["validation_loss_after"]
    html = template("report.html.jinja").render(
        recipe=recipe,
        facts=facts,
        systems=systems,
        models=models,
        demo=demo,
        findings=findings,
        training=m,
        loss=loss_picture(*losses, "Training loss by step, validation loss before and after"),
        scores=exhibits.score_pictures(facts, list(systems)),
        differences=exhibits.difference_pictures(facts, list(systems)),
        heat=exhibits.heat_map(intents, list(systems)),
        similarity=exhibits.similarity_pictures(answers),
        slice_heat=scrutiny.slice_heat(slices, list(systems)),
        errors=scrutiny.error_counts(answers, references, list(systems)),
        made_up=scrutiny.made_up(answers),
        rubric=scrutiny.rubric_means(answers, references, list(systems)),
        odd=scrutiny.odd_groups(facts["robustness"], models),
        unlearnt=scrutiny.unlearnt(probe),
        costs=scrutiny.costs(facts, models, load_company(lake).price_per_hour),
        compared=COMPARED,
        misled=misled_groups(facts["retrieval"]) if facts["retrieval"] else [],
        people=opinions(lake),
        naive=scrutiny.naive_beside_honest(facts),
        smallest=scrutiny.smallest_seen(facts),
        best=exhibits.best_systems(facts),
        training_facts=exhibits.training_facts(recipe, adapter),
        versions=exhibits.versions(recipe, facts, adapter),
        examples=examples,
    )
    # The worst is the last; two that were drawn stand before it.
    markdown = _markdown(facts, list(systems), demo, findings, [*examples[:-1][:2], examples[-1]])
    path = lake.path("evaluate", "evaluation_report", f"{recipe.name}.html")
    for file, text in ((path, html), (path.with_suffix(".md"), markdown)):
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Report(path, markdown)


def _markdown(
    facts: dict[str, Any],
    systems: Sequence[str],
    demo: str,
    findings: Iterable[Statement],
    examples: Iterable[exhibits.ShownExample],
) -> str:
    """The verdict, the most telling metrics and a few examples; no text of the data can be more than text in it."""
    lines = [f"**{demo}**", ""] if demo else []
    lines += [f"- **{f.about}: {f.judgement}.** {plain(f.sentence)}" for f in findings]
    lines += ["", "In brackets: the 95 % interval of the difference.", ""]
    lines += [f"| {facts['rows']:,} test questions | {' | '.join(systems)} |", "|---|" + "---:|" * len(systems)]
    for name in _IN_MARKDOWN:
        scores = [facts["scores"][system][name] for system in systems]
        cells = [figure(name, score and score["score"]) for score in scores]
        lines.append(f"| {METRICS[name].label} {exhibits.BETTER[METRICS[name].better][0]} | {' | '.join(cells)} |")
    for example in examples:
        lines += [
            "",
            f"**{'The worst by chrF' if example.worst else 'An example'}:** {plain(_short(example.question))}",
            "",
        ]
        texts = {"reference": example.reference} | {answer.system: answer.text for answer in example.answers}
        lines += [f"- *{who}*: {plain(_short(text))}" for who, text in texts.items()]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MARKDOWN_CHARACTERS else f"{line[:_MARKDOWN_CHARACTERS].rstrip()} …"
