"""Assets of the prepare stage."""

from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg

from cs_pipeline.core.lake import DataLake, digest, file_sha256, read_json, write_json
from cs_pipeline.defs.ingest import DAYS, bitext_conversations, company_interactions
from cs_pipeline.defs.metadata import counts, table_result
from cs_pipeline.defs.resources import LakeResource

# The stages are imported where they are used: loading the definitions must not cost what pandas and scipy cost.

SIDES = {
    "train": "what adapters are trained on",
    "validation": "what the loss is watched on",
    "test": "what models are judged on",
}

LEAST_ACCURACY = 0.9
"""Below this the intent classifier routes and judges too badly to train on; 0.998 on Bitext's own rows."""


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[bitext_conversations], code_version="1")
def clean_bitext(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Regular whitespace and Unicode, canonical placeholders; incomplete, too short and broken rows set aside."""
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
            **counts("set_aside", _reasons(lake.lake, "clean_bitext_set_aside")),
            **counts("placeholders_not_in_the_catalogue", dict(cleaned.unknown_placeholders.most_common(20))),
        },
        lineage={name: [("bitext_conversations", name)] for name in ("instruction", "response")},
    )


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[clean_bitext], code_version="1")
def bitext_splits(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Duplicates out, near-duplicates clustered, clusters dealt to train, validation and test: the frozen yardstick."""
    import pyarrow.compute as pc

    from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
    from cs_pipeline.prepare.splits.split import split, split_shares

    rows = lake.lake.read("prepare", "clean_bitext")
    before = lake.lake.table("prepare", "bitext_splits")
    dealt = split(rows, lake.lake.read("prepare", "bitext_splits") if before.exists() else None)
    lake.lake.write("prepare", "bitext_splits", dealt.rows, CONVERSATION)
    lake.lake.write("prepare", "bitext_splits_set_aside", dealt.set_aside, SET_ASIDE)
    per_side = split_shares(dealt.rows).sum()
    clusters = pc.count_distinct(dealt.rows.column("cluster_id")).as_py()
    context.log.info(f"{clusters:,} clusters; " + ", ".join(f"{side} {per_side[side]:,}" for side in per_side.index))
    return table_result(
        before,
        dealt.rows,
        {
            "rows_in": rows.num_rows,
            "rows_set_aside": dealt.set_aside.num_rows,
            "clusters": clusters,
            **{f"rows_{side}": int(per_side[side]) for side in per_side.index},
            **counts("set_aside", _reasons(lake.lake, "bitext_splits_set_aside")),
        },
        lineage={
            "cluster_id": [("clean_bitext", "instruction"), ("clean_bitext", "intent")],
            "split": [("clean_bitext", "instruction"), ("clean_bitext", "intent"), ("clean_bitext", "row_id")],
        },
    )


@dg.asset(group_name="prepare", kinds={"scikitlearn"}, deps=[bitext_splits], code_version="2")
def intent_classifier(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """TF-IDF and logistic regression on the training questions: labels tickets, routes questions.

    One of the training answers is kept beside it: it tells a company's answers that belong to another question.
    """
    import pandas as pd

    from cs_pipeline.prepare.company.interactions import ANSWERS, INTENTS
    from cs_pipeline.text.classifier import TextClassifier

    columns = ["instruction", "response", "intent", "split"]
    frame = lake.lake.read("prepare", "bitext_splits", columns).to_pandas()
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    answers = TextClassifier.fit(train["response"].tolist(), train["intent"].tolist(), "words")
    answers.save(lake.lake.path("prepare", ANSWERS))
    model = TextClassifier.fit(train["instruction"].tolist(), train["intent"].tolist(), "characters")
    folder = lake.lake.path("prepare", INTENTS)
    model.save(folder)
    predicted, _ = model.predict(test["instruction"].tolist())
    accuracy = float((pd.Series(predicted, index=test.index) == test["intent"]).mean())
    write_json(lake.lake.path("prepare", "intent_classifier.json"), {"test_accuracy": accuracy, "test_rows": len(test)})
    context.log.info(f"{accuracy:.1%} of {len(test):,} test questions get their intent")
    version = digest({path.name: file_sha256(path) for path in sorted(folder.iterdir())})
    return dg.MaterializeResult(
        metadata={
            "test_accuracy": accuracy,
            "test_rows": len(test),
            "intents": frame["intent"].nunique(),
            "dagster/uri": folder.as_uri(),
        },
        data_version=dg.DataVersion(version),
    )


@dg.asset(
    group_name="prepare",
    kinds={"parquet"},
    partitions_def=DAYS,
    deps=[company_interactions, intent_classifier],
    code_version="1",
)
def clean_interactions(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """A day's questions and answers: personal data replaced by placeholders, intent predicted, poison flagged."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import day_facts
    from cs_pipeline.ingest.ledger import Ledger
    from cs_pipeline.prepare.company.interactions import clean_day

    day = date.fromisoformat(context.partition_key)
    cleaned = clean_day(lake.lake, load_company(lake.lake), day)
    with Ledger(lake.lake) as ledger:  # those that were read; another may have landed since
        ledger.mark_ingested(day, [file.sha256 for file in day_facts(lake.lake, day).files], context.run.run_id)
    shown = cleaned.counts
    context.log.info(f"{cleaned.rows.num_rows:,} of {shown['customer_messages']:,} customer messages may train")
    return table_result(
        lake.lake.table("prepare", f"clean_interactions/{day}"),
        cleaned.rows,
        {
            "customer_messages": shown["customer_messages"],
            **counts("set_aside", shown["set_aside"]),
            **counts("flagged", shown["flagged"]),
            **counts("placeholders_put_in", shown["placeholders"]),
        },
        lineage={name: [("company_interactions", "text")] for name in ("instruction", "response", "context")},
    )


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=[bitext_splits, clean_interactions], code_version="1")
def conversations(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Both sources together: company rows join the clusters, new clusters get a side, and none ever moves."""
    from cs_pipeline.prepare.splits.conversations import join

    joined = join(lake.lake)
    context.log.info(", ".join(f"{name} {count:,}" for name, count in joined.counts.items()))
    return table_result(
        lake.lake.table("prepare", "conversations"),
        joined.rows,
        {**joined.counts, **counts("reasons", _reasons(lake.lake, "conversations_set_aside"))},
        lineage={
            name: [("bitext_splits", name), ("clean_interactions", name)]
            for name in ("instruction", "response", "intent")
        },
    )


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            f"{side}_split",
            group_name="prepare",
            kinds={"parquet"},
            deps=[conversations, intent_classifier],
            code_version="2",
            description=f"The {side} side: {use}.",
        )
        for side, use in zip(
            SIDES,
            ("what adapters are trained on", "what the loss is watched on", "what models are judged on"),
            strict=True,
        )
    ]
)
def split_sides(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[dg.MaterializeResult]:
    """The sides of the split with the classifier's view of each question, and the leakage report."""
    from cs_pipeline.core.schema import SPLIT_ROW
    from cs_pipeline.prepare.splits.sides import bitext_view, take_sides
    from cs_pipeline.text.classifier import TextClassifier

    classifier = TextClassifier.load(lake.lake.path("prepare", "intent_classifier"))
    rows = lake.lake.read("prepare", "conversations")
    tables, leakage = take_sides(rows, classifier, bitext_view(lake.lake))
    facts = leakage.facts()
    write_json(lake.lake.path("prepare", "leakage.json"), facts)
    context.log.info(
        f"nearest training question of a test question: median cosine {facts['cluster_split']['median']:.2f}, "
        f"{facts['random_split']['median']:.2f} in a random split"
    )
    for side, table in tables.items():
        lake.lake.write("prepare", f"{side}_split", table, SPLIT_ROW)
        shown = {"similarity_to_training": dg.MetadataValue.md(_histogram(facts))} if side == "test" else {}
        yield table_result(
            lake.lake.table("prepare", f"{side}_split"),
            table,
            shown,
            asset_key=f"{side}_split",
            lineage={
                name: [("conversations", name)] for name in ("instruction", "response", "intent", "cluster_id", "split")
            }
            | {"predicted_intent": [("conversations", "instruction")]},
        )


@dg.asset_check(asset=clean_bitext, blocking=True, name="counts_reconcile")
def clean_counts_reconcile(lake: LakeResource) -> dg.AssetCheckResult:
    """Rows in are rows kept and rows set aside."""
    return _reconciles(lake.lake, "ingest", "bitext_conversations", "clean_bitext")


@dg.asset_check(asset=bitext_splits, blocking=True, name="counts_reconcile")
def split_counts_reconcile(lake: LakeResource) -> dg.AssetCheckResult:
    """Rows in are rows kept and rows set aside."""
    return _reconciles(lake.lake, "prepare", "clean_bitext", "bitext_splits")


@dg.asset_check(asset=clean_bitext, blocking=True)
def placeholders_balanced(lake: LakeResource) -> dg.AssetCheckResult:
    """Every brace of a placeholder has its partner."""
    from cs_pipeline.text.placeholders import is_balanced

    table = lake.lake.read("prepare", "clean_bitext", ["row_id", "instruction", "response"]).to_pylist()
    broken = [row["row_id"] for row in table if not (is_balanced(row["instruction"]) and is_balanced(row["response"]))]
    return dg.AssetCheckResult(passed=not broken, metadata={"broken": len(broken), "examples": broken[:10]})


@dg.asset_check(asset=bitext_splits, blocking=True)
def split_disjoint_and_stratified(lake: LakeResource) -> dg.AssetCheckResult:
    """No cluster on two sides, no row twice, every intent on every side, the shares near what was meant."""
    from cs_pipeline.prepare.splits.split import SHARES, split_shares

    table = lake.lake.read("prepare", "bitext_splits", ["row_id", "cluster_id", "intent", "split"])
    frame = table.to_pandas()
    torn = int((frame.groupby("cluster_id")["split"].nunique() > 1).sum())
    repeated = int(frame["row_id"].duplicated().sum())
    per_intent = split_shares(table)
    lacking = per_intent.index[(per_intent == 0).any(axis=1)].tolist()
    actual = {side: float(per_intent[side].sum() / len(frame)) for side in SHARES}
    off = max(abs(actual[side] - share) for side, share in SHARES.items())
    return dg.AssetCheckResult(
        passed=torn == 0 and repeated == 0 and not lacking and off < 0.05,
        metadata={
            "clusters_on_two_sides": torn,
            "repeated_rows": repeated,
            "intents_lacking_a_side": lacking,
            **actual,
        },
    )


@dg.asset_check(asset=clean_interactions, blocking=True, name="counts_reconcile")
def messages_reconcile(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Every customer's message of the day may train, is set aside, flagged or forgotten."""
    day = context.op_execution_context.partition_key
    names = ("clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged")
    rows = {name: lake.lake.read("prepare", f"{name}/{day}", ["row_id"]).num_rows for name in names}
    shown = read_json(lake.lake.path("prepare", "clean_interactions", f"{day}.json"))
    return dg.AssetCheckResult(
        passed=shown["customer_messages"] == sum(rows.values()) + shown["forgotten"],
        metadata={"customer_messages": shown["customer_messages"], "forgotten": shown["forgotten"], **rows},
    )


@dg.asset_check(asset=conversations, blocking=True, name="counts_reconcile")
def conversations_reconcile(lake: LakeResource) -> dg.AssetCheckResult:
    """The rows of both sources are kept, set aside, superseded or forgotten."""
    from cs_pipeline.prepare.splits.conversations import counts_of

    shown = counts_of(lake.lake)
    kept = lake.lake.read("prepare", "conversations", ["row_id"]).num_rows
    aside = lake.lake.read("prepare", "conversations_set_aside", ["row_id"]).num_rows
    total = kept + aside + shown["superseded"] + shown["forgotten"]
    return dg.AssetCheckResult(passed=shown["bitext"] + shown["company"] == total, metadata=shown)


@dg.asset_check(asset=conversations, blocking=True)
def no_cluster_on_two_sides(lake: LakeResource) -> dg.AssetCheckResult:
    """Every cluster stands on one side, and every row has one."""
    import pyarrow.compute as pc

    rows = lake.lake.read("prepare", "conversations", ["cluster_id", "split"])
    pairs = rows.group_by(["cluster_id", "split"]).aggregate([]).num_rows
    clusters = pc.count_distinct(rows.column("cluster_id")).as_py()
    without = rows.column("split").null_count + rows.column("cluster_id").null_count
    return dg.AssetCheckResult(
        passed=pairs == clusters and not without, metadata={"clusters": clusters, "rows_without": without}
    )


@dg.asset_check(asset=conversations, blocking=True)
def no_leakage(lake: LakeResource) -> dg.AssetCheckResult:
    """No question of test or validation is a near-duplicate of a training question, found without the clusters."""
    from cs_pipeline.prepare.splits.leaks import leaks

    found = leaks(lake.lake.read("prepare", "conversations"))
    return dg.AssetCheckResult(
        passed=not found, metadata={"pairs": len(found), "examples": [list(p) for p in found[:5]]}
    )


@dg.asset_check(asset=intent_classifier, blocking=True)
def classifier_accuracy(lake: LakeResource) -> dg.AssetCheckResult:
    """The classifier knows the intent of most test questions."""
    accuracy = read_json(lake.lake.path("prepare", "intent_classifier.json"))["test_accuracy"]
    return dg.AssetCheckResult(passed=accuracy >= LEAST_ACCURACY, metadata={"test_accuracy": accuracy})


def _reconciles(lake: DataLake, stage: str, source: str, name: str) -> dg.AssetCheckResult:
    rows_in = lake.read(stage, source, ["row_id"]).num_rows
    kept = lake.read("prepare", name, ["row_id"]).num_rows
    aside = lake.read("prepare", f"{name}_set_aside", ["row_id"]).num_rows
    return dg.AssetCheckResult(
        passed=rows_in == kept + aside, metadata={"rows_in": rows_in, "rows_kept": kept, "rows_set_aside": aside}
    )


def _reasons(lake: DataLake, name: str) -> dict[str, int]:
    return dict(Counter(lake.read("prepare", name, ["reason"]).column("reason").to_pylist()))


def _histogram(facts: dict[str, Any]) -> str:
    ours, naive = facts["cluster_split"], facts["random_split"]
    bins = facts["bins"]
    lines = ["| cosine | this split | | random split | |", "|---|---:|---|---:|---|"]
    for i in range(len(bins) - 1):
        a, b = ours["shares"][i], naive["shares"][i]
        lines.append(f"| {bins[i]}–{bins[i + 1]} | {a:.1%} | {'█' * round(40 * a)} | {b:.1%} | {'█' * round(40 * b)} |")
    return "\n".join([*lines, f"| median | {ours['median']:.2f} | | {naive['median']:.2f} | |"])


ASSETS = [clean_bitext, bitext_splits, intent_classifier, clean_interactions, conversations, split_sides]
CHECKS = [
    clean_counts_reconcile,
    placeholders_balanced,
    split_counts_reconcile,
    split_disjoint_and_stratified,
    classifier_accuracy,
    messages_reconcile,
    conversations_reconcile,
    no_cluster_on_two_sides,
    no_leakage,
]
