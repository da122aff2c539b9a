"""Assets of the prepare stage that answers are looked up in: the help articles and the retrieval index."""

import os
from collections import Counter

import dagster as dg

from cs_pipeline.defs.metadata import cell, column_schema, counts, table_result
from cs_pipeline.defs.resources import LakeResource


@dg.asset(group_name="prepare", kinds={"parquet"}, code_version="1")
def knowledge_base(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The company's help articles in passages, as they lie in landing/knowledge/ now; empty where there are none."""
    from cs_pipeline.company import load_company
    from cs_pipeline.retrieval.passages import read_knowledge

    made = read_knowledge(lake.lake, load_company(lake.lake))
    context.log.info(
        f"{made.passages.num_rows:,} passages of {made.files:,} files, {made.read:,} of them new or changed; "
        f"{made.set_aside.num_rows:,} passages set aside, {len(made.refused):,} files refused"
    )
    refused = [f"| {cell(path)} | {cell(why)} |" for path, why in sorted(made.refused.items())[:50]]
    table = "\n".join(["| file | why |", "|---|---|", *refused]) if refused else "none"
    return table_result(
        lake.lake.table("prepare", "knowledge_base"),
        made.passages,
        {
            "files": made.files,
            "files_read_anew": made.read,
            "files_refused": len(made.refused),
            "refused": dg.MetadataValue.md(table),
            "passages_set_aside": made.set_aside.num_rows,
            **counts("set_aside", Counter(made.set_aside.column("reason").to_pylist())),
            **counts("placeholders_put_in", made.personal),
        },
    )


class IndexConfig(dg.Config):
    """What questions are likened by."""

    embedder: str = ""
    """ORG/MODEL@REVISION of the hub, or a folder, of a sentence-embedding model; empty: what CS_EMBEDDER says, else the
    characters of the texts."""


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=["train_split", knowledge_base], code_version="1")
def retrieval_index(context: dg.AssetExecutionContext, config: IndexConfig, lake: LakeResource) -> dg.MaterializeResult:
    """Known questions with their answers and passages of articles, found by the likeness to a question."""
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
            "likeness": made.likeness,
            "dagster/column_lineage": dg.TableColumnLineage(
                {
                    column: [dg.TableColumnDep(asset_key=dg.AssetKey("train_split"), column_name=name)]
                    for column, name in (("question", "instruction"), ("answer", "response"), ("intent", "intent"))
                }
            ),
        },
        data_version=dg.DataVersion(made.version),
    )


@dg.asset_check(asset=retrieval_index, blocking=True)
def training_rows_alone(lake: LakeResource) -> dg.AssetCheckResult:
    """The index holds every row of the training side as it is there, none of a cluster of another side, and all passages."""
    from cs_pipeline.retrieval.index import differences

    found = differences(lake.lake)
    return dg.AssetCheckResult(passed=not any(found.values()), metadata=found)


@dg.asset_check(asset=knowledge_base)
def articles_usable(lake: LakeResource) -> dg.AssetCheckResult:
    """Every file below landing/knowledge/ is an article, and no passage of one was set aside."""
    from cs_pipeline.retrieval.passages import refused_files

    refused = refused_files(lake.lake)
    aside = lake.lake.read("prepare", "knowledge_base_set_aside", ["path", "reason"]).to_pylist()
    told = [f"{path}: {why}" for path, why in sorted(refused.items())]
    told += sorted({f"{row['path']}: {row['reason']}" for row in aside})
    return dg.AssetCheckResult(
        passed=not told,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files_refused": len(refused), "passages_set_aside": len(aside)},
        description="; ".join(told[:20]) or None,
    )


ASSETS = [knowledge_base, retrieval_index]
CHECKS = [training_rows_alone, articles_usable]
