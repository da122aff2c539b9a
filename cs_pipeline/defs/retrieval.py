"""Assets and checks of retrieval: the help articles and the index of known answers and passages."""

import os
from collections import Counter

import dagster as dg

from cs_pipeline.defs.metadata import column_lineage, column_schema, count_table, markdown_table, table_result
from cs_pipeline.defs.resources import LakeResource


@dg.asset(group_name="prepare", kinds={"parquet"})
def knowledge_base(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The help articles that are in landing/knowledge/ now, cut into passages; empty if there are none."""
    from cs_pipeline.company import load_company
    from cs_pipeline.retrieval.passages import read_knowledge

    made = read_knowledge(lake.lake, load_company(lake.lake))
    context.log.info(
        f"{made.passages.num_rows:,} passages of {made.files:,} files, {made.read:,} of them new or changed; "
        f"{made.set_aside.num_rows:,} passages set aside, {len(made.refused):,} files refused"
    )
    return table_result(
        lake.lake.table("prepare", "knowledge_base"),
        made.passages,
        {
            "files": made.files,
            "files_read_again": made.read,
            "files_refused": len(made.refused),
            "refused": markdown_table(["file", "reason"], sorted(made.refused.items())[:50]),
            "passages_set_aside": made.set_aside.num_rows,
            "set_aside": count_table(Counter(made.set_aside.column("reason").to_pylist())),
            "placeholders": count_table(made.personal),
        },
    )


class IndexConfig(dg.Config):
    """How texts are compared."""

    embedder: str = ""
    """A sentence-embedding model, ORG/MODEL@REVISION of the hub or a folder; empty: CS_EMBEDDER, else character TF-IDF."""


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=["train_split", knowledge_base])
def retrieval_index(context: dg.AssetExecutionContext, config: IndexConfig, lake: LakeResource) -> dg.MaterializeResult:
    """Training questions with their answers, and passages of help articles, searched by similarity to a question."""
    from cs_pipeline.core.schema import ANSWER
    from cs_pipeline.retrieval.index import build_index, retrieval_folder

    made = build_index(lake.lake, config.embedder or os.environ.get("CS_EMBEDDER") or "")
    context.log.info(
        f"{made.answers:,} answers and {made.passages:,} passages; {made.vectorised:,} of their texts are new or changed"
    )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": made.answers + made.passages,
            "dagster/column_schema": column_schema(ANSWER),
            "dagster/uri": retrieval_folder(lake.lake).as_uri(),
            "answers": made.answers,
            "passages": made.passages,
            "texts_vectorised": made.vectorised,
            "vectorizer": made.vectorizer,
            "dagster/column_lineage": column_lineage(
                {
                    column: [("train_split", name)]
                    for column, name in (("question", "instruction"), ("answer", "response"), ("intent", "intent"))
                }
            ),
        },
        data_version=dg.DataVersion(made.version),
    )


@dg.asset_check(asset=retrieval_index, blocking=True)
def training_rows_alone(lake: LakeResource) -> dg.AssetCheckResult:
    """The index holds exactly the training rows and all passages, and no row of a cluster in another split."""
    from cs_pipeline.retrieval.index import differences

    found = differences(lake.lake)
    return dg.AssetCheckResult(passed=not any(found.values()), metadata=found)


@dg.asset_check(asset=knowledge_base)
def articles_usable(lake: LakeResource) -> dg.AssetCheckResult:
    """Every file below landing/knowledge/ could be read as an article, and no passage was set aside."""
    from cs_pipeline.retrieval.passages import refused_files

    refused = refused_files(lake.lake)
    aside = lake.lake.read("prepare", "knowledge_base_set_aside", ["path", "reason"]).to_pylist()
    problems = [f"{path}: {why}" for path, why in sorted(refused.items())]
    problems += sorted({f"{row['path']}: {row['reason']}" for row in aside})
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files_refused": len(refused), "passages_set_aside": len(aside)},
        description="; ".join(problems[:20]) or None,
    )


ASSETS = [knowledge_base, retrieval_index]
CHECKS = [training_rows_alone, articles_usable]
