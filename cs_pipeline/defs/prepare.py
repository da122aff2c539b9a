"""Assets and checks of the prepare stage, except those of retrieval."""

from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from cs_pipeline.defs.ingest import DAYS, bitext_conversations, company_interactions
from cs_pipeline.defs.metadata import count_table, data_check, markdown_table, rows_by_reason, table_result
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.prepare import checks

if TYPE_CHECKING:
    from cs_pipeline.prepare.subjects.subjects import Subject

# The stages are imported inside the functions: loading the definitions must not import pandas and scipy.


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[bitext_conversations])
def clean_bitext(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Normalised whitespace, Unicode and placeholders. Incomplete, too short, too long and broken rows are set aside."""
    from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
    from cs_pipeline.text.clean import clean

    raw = lake.lake.read("ingest", "bitext_conversations")
    cleaned = clean(raw)
    lake.lake.write("prepare", "clean_bitext", cleaned.rows, CONVERSATION)
    lake.lake.write("prepare", "clean_bitext_set_aside", cleaned.set_aside, SET_ASIDE)
    context.log.info(f"{cleaned.rows.num_rows:,} of {raw.num_rows:,} rows kept")
    return table_result(
        lake.lake.table("prepare", "clean_bitext"),
        cleaned.rows,
        {
            "rows_in": raw.num_rows,
            "rows_set_aside": cleaned.set_aside.num_rows,
            "set_aside": rows_by_reason(lake.lake, "clean_bitext_set_aside"),
            "unknown_placeholders": count_table(dict(cleaned.unknown_placeholders.most_common(20))),
        },
        lineage={name: [("bitext_conversations", name)] for name in ("instruction", "response")},
    )


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[clean_bitext])
def bitext_splits(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The frozen split: duplicates are set aside, clusters of near-duplicates are assigned to train, validation and test."""
    import pyarrow.compute as pc

    from cs_pipeline.prepare.splits.split import split_bitext, split_counts

    split = split_bitext(lake.lake)
    rows_per_split = split_counts(split.rows).sum()
    clusters = pc.count_distinct(split.rows.column("cluster_id")).as_py()
    context.log.info(
        f"{clusters:,} clusters; " + ", ".join(f"{name} {rows:,}" for name, rows in rows_per_split.items())
    )
    return table_result(
        lake.lake.table("prepare", "bitext_splits"),
        split.rows,
        {
            "rows_in": split.rows.num_rows + split.set_aside.num_rows,
            "rows_set_aside": split.set_aside.num_rows,
            "clusters": clusters,
            **{f"rows_{name}": int(rows) for name, rows in rows_per_split.items()},
            "set_aside": rows_by_reason(lake.lake, "bitext_splits_set_aside"),
        },
        lineage={
            "cluster_id": [("clean_bitext", "instruction"), ("clean_bitext", "intent")],
            "split": [("clean_bitext", "instruction"), ("clean_bitext", "intent"), ("clean_bitext", "row_id")],
        },
    )


@dg.asset(group_name="prepare", kinds={"scikitlearn"}, deps=[bitext_splits])
def intent_classifier(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """TF-IDF and logistic regression on Bitext's training questions. It predicts the intents of company questions.

    A second classifier, trained on the answers, is stored next to it. It finds company answers that do not fit their
    question.
    """
    from cs_pipeline.prepare.intent_classifier import train_classifiers

    trained = train_classifiers(lake.lake)
    context.log.info(f"{trained.test_accuracy:.1%} of {trained.test_rows:,} test questions get the right intent")
    return dg.MaterializeResult(
        metadata={
            "test_accuracy": trained.test_accuracy,
            "test_rows": trained.test_rows,
            "intents": trained.intents,
            "dagster/uri": trained.folder.as_uri(),
        },
        data_version=dg.DataVersion(trained.version),
    )


@dg.asset(group_name="prepare", kinds={"parquet"}, partitions_def=DAYS, deps=[company_interactions, intent_classifier])
def clean_interactions(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """A day's questions and answers: personal data replaced by placeholders, intents predicted, suspected poison flagged."""
    from cs_pipeline.company import load_company
    from cs_pipeline.prepare.company.interactions import clean_day

    day = date.fromisoformat(context.partition_key)
    cleaned = clean_day(lake.lake, load_company(lake.lake), day, context.run.run_id)
    counts = cleaned.counts
    context.log.info(
        f"{cleaned.rows.num_rows:,} of {counts['customer_messages']:,} customer messages may be trained on"
    )
    return table_result(
        lake.lake.table("prepare", f"clean_interactions/{day}"),
        cleaned.rows,
        {
            "customer_messages": counts["customer_messages"],
            "set_aside": count_table(counts["set_aside"]),
            "flagged": count_table(counts["flagged"]),
            "placeholders": count_table(counts["placeholders"]),
            "labelled": counts["labelled"],
            "labels_dropped": counts["labels_dropped"],
        },
        lineage={name: [("company_interactions", "text")] for name in ("instruction", "response", "context")}
        | {"label": [("company_interactions", "label")]},
    )


@dg.asset(group_name="prepare", kinds={"scikitlearn"}, deps=[bitext_splits, clean_interactions])
def subjects(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What the company's customers write about: found and named automatically, edited by a person in subjects.yaml."""
    from cs_pipeline.company import load_company
    from cs_pipeline.prepare.subjects.subjects import find_subjects

    found = find_subjects(lake.lake, load_company(lake.lake))
    context.log.info(
        f"{len(found.subjects):,} subjects; " + ", ".join(f"{name} {n:,}" for name, n in found.counts.items())
    )
    return table_result(
        lake.lake.table("prepare", "subjects"),
        found.rows,
        {
            **found.counts,
            "subjects": _subjects_table(found.subjects),
            "new": markdown_table(["new subject"], [[subject] for subject in found.new]),
            "candidates": markdown_table(
                ["similar conversations", "since", "questions"],
                [[one.conversations, one.first_day, " / ".join(one.examples)] for one in found.candidates],
            ),
            "unknown": markdown_table(["only in subjects.yaml"], [[subject] for subject in found.unknown]),
        },
        lineage={"subject": [("clean_interactions", name) for name in ("instruction", "response", "label")]},
    )


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[bitext_splits, clean_interactions, subjects])
def conversations(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Both sources together. Company rows join clusters, new clusters are assigned to a split. No row changes its split."""
    from cs_pipeline.prepare.splits.conversations import join_conversations

    joined = join_conversations(lake.lake)
    context.log.info(", ".join(f"{name} {count:,}" for name, count in joined.counts.items()))
    return table_result(
        lake.lake.table("prepare", "conversations"),
        joined.rows,
        {**joined.counts, "reasons": rows_by_reason(lake.lake, "conversations_set_aside")},
        lineage={
            **{name: [("bitext_splits", name), ("clean_interactions", name)] for name in ("instruction", "response")},
            "intent": [("bitext_splits", "intent"), ("subjects", "subject")],
        },
    )


@dg.asset(group_name="prepare", kinds={"scikitlearn"}, deps=[conversations, "knowledge_base"])
def router(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """One classifier for Bitext's intents and the company's subjects, and its predictions. It may predict no label."""
    from dataclasses import asdict

    from cs_pipeline.prepare.router import train_router
    from cs_pipeline.retrieval.embedder import embedder_in_use

    trained = train_router(lake.lake, embedder_in_use(lake.lake), context.log.info)
    quality = trained.quality
    if quality.accuracy is not None:
        context.log.info(
            f"{quality.labels} labels; the most probable one is right for {quality.accuracy:.1%} of "
            f"{quality.validation_rows:,} validation questions; {quality.handed_over:.1%} get no label"
        )
    measured = {name: value for name, value in asdict(quality).items() if value is not None}
    return dg.MaterializeResult(
        metadata={**measured, "embedder": trained.embedder or "characters", "dagster/uri": trained.folder.as_uri()},
        data_version=dg.DataVersion(trained.version),
    )


def _split_asset(split: str, use: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{split}_split",
        group_name="prepare",
        kinds={"parquet"},
        deps=[conversations, router],
        description=f"The {split} split, with predicted intents: {use}.",
    )
    def split_table(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cs_pipeline.prepare.splits.split_tables import write_split

        table, leakage = write_split(lake.lake, split)
        metadata = {}
        if leakage:
            context.log.info(
                "median cosine between a test question and the nearest training question: "
                f"{leakage['cluster_split']['median']:.2f}, in a random split {leakage['random_split']['median']:.2f}"
            )
            metadata["similarity_to_training"] = dg.MetadataValue.md(_histogram(leakage))
        unchanged = {
            name: [("conversations", name)] for name in ("instruction", "response", "intent", "cluster_id", "split")
        }
        return table_result(
            lake.lake.table("prepare", f"{split}_split"),
            table,
            metadata,
            lineage=unchanged | {"predicted_intent": [("conversations", "instruction")]},
        )

    return split_table


train_split = _split_asset("train", "adapters are trained on it")
validation_split = _split_asset("validation", "the loss is measured on it during training")
test_split = _split_asset("test", "models are evaluated on it")


def _histogram(leakage: dict[str, Any]) -> str:
    """The leakage report as a Markdown table with bars."""
    ours, random, bins = leakage["cluster_split"], leakage["random_split"], leakage["bins"]
    lines = ["| cosine | this split | | random split | |", "|---|---:|---|---:|---|"]
    for low, high, a, b in zip(bins, bins[1:], ours["shares"], random["shares"], strict=False):
        lines.append(f"| {low}–{high} | {a:.1%} | {'█' * round(40 * a)} | {b:.1%} | {'█' * round(40 * b)} |")
    return "\n".join([*lines, f"| median | {ours['median']:.2f} | | {random['median']:.2f} | |"])


def _subjects_table(subjects: "list[Subject]") -> dg.MetadataValue:
    """Size, trend and examples of each subject. A question mark follows an intent that is only suggested."""
    columns = ["id", "name", "conversations", "share before", "last 4 weeks", "Bitext's intent", "examples"]
    rows: list[list[str | int]] = [
        [
            subject.id,
            subject.name,
            subject.conversations,
            "" if subject.earlier_share is None else f"{subject.earlier_share:.1%}",
            f"{subject.recent_share:.1%}",
            subject.intent or (f"{subject.suggested}?" if subject.suggested else ""),
            " / ".join(subject.examples),
        ]
        for subject in subjects
    ]
    return markdown_table(columns, rows)


ASSETS = [clean_bitext, bitext_splits, intent_classifier, clean_interactions, subjects, conversations, router]
ASSETS += [train_split, validation_split, test_split]
CHECKS = [
    data_check(clean_bitext, checks.clean_bitext_reconciles, name="counts_reconcile"),
    data_check(clean_bitext, checks.placeholders_balanced),
    data_check(bitext_splits, checks.bitext_splits_reconcile, name="counts_reconcile"),
    data_check(bitext_splits, checks.split_disjoint_and_stratified),
    data_check(intent_classifier, checks.classifier_accuracy),
    data_check(clean_interactions, checks.messages_reconcile, name="counts_reconcile"),
    data_check(subjects, checks.subjects_reconcile, name="counts_reconcile"),
    data_check(subjects, checks.subjects_reviewed, blocking=False),
    data_check(conversations, checks.conversations_reconcile, name="counts_reconcile"),
    data_check(conversations, checks.no_cluster_in_two_splits),
    data_check(conversations, checks.no_leakage),
    data_check(router, checks.router_calibrated, blocking=False),
]
