"""Assets and checks of retrieval: the help articles and the index of known answers and passages."""

from collections import Counter

import dagster as dg

from cs_pipeline.defs.metadata import column_lineage, column_schema, count_table, markdown_table, table_result
from cs_pipeline.defs.resources import LakeResource


@dg.asset(group_name="prepare", kinds={"parquet"})
def knowledge_base(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The help articles that are in landing/knowledge/ now, cut into passages; empty if there are none."""
    from cs_pipeline.company import load_company
    from cs_pipeline.retrieval.passages import read_knowledge

    knowledge = read_knowledge(lake.lake, load_company(lake.lake))
    context.log.info(
        f"{knowledge.passages.num_rows:,} passages of {knowledge.files:,} files, {knowledge.read:,} of them new or changed; "
        f"{knowledge.set_aside.num_rows:,} passages set aside, {len(knowledge.refused):,} files refused"
    )
    return table_result(
        lake.lake.table("prepare", "knowledge_base"),
        knowledge.passages,
        {
            "files": knowledge.files,
            "files_read_again": knowledge.read,
            "files_refused": len(knowledge.refused),
            "refused": markdown_table(["file", "reason"], sorted(knowledge.refused.items())[:50]),
            "passages_set_aside": knowledge.set_aside.num_rows,
            "set_aside": count_table(Counter(knowledge.set_aside.column("reason").to_pylist())),
            "placeholders": count_table(knowledge.personal),
        },
    )


class IndexConfig(dg.Config):
    """How texts are compared."""

    embedder: str = ""
    """A sentence-embedding model to mix with character TF-IDF: all-MiniLM-L6-v2, ORG/MODEL@REVISION of the hub, or a folder.

    Empty: the model that CS_EMBEDDER names, else all-MiniLM-L6-v2 if there are company rows or articles
    (``embedder_in_use``).
    """


@dg.asset(group_name="prepare", kinds={"parquet"}, deps=["train_split", knowledge_base])
def retrieval_index(context: dg.AssetExecutionContext, config: IndexConfig, lake: LakeResource) -> dg.MaterializeResult:
    """Training questions with their answers, and passages of help articles, searched by similarity to a question."""
    from cs_pipeline.core.schema import ANSWER
    from cs_pipeline.retrieval.embedder import embedder_in_use
    from cs_pipeline.retrieval.index import build_index, retrieval_folder

    index = build_index(lake.lake, config.embedder or embedder_in_use(lake.lake), context.log.info)
    context.log.info(
        f"{index.answers:,} answers and {index.passages:,} passages; {index.vectorised:,} of their texts are new or changed"
    )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": index.answers + index.passages,
            "dagster/column_schema": column_schema(ANSWER),
            "dagster/uri": retrieval_folder(lake.lake).as_uri(),
            "answers": index.answers,
            "passages": index.passages,
            "texts_vectorised": index.vectorised,
            "vectorizer": index.vectorizer,
            "dagster/column_lineage": column_lineage(
                {
                    column: [("train_split", name)]
                    for column, name in (("question", "instruction"), ("answer", "response"), ("intent", "intent"))
                }
            ),
        },
        data_version=dg.DataVersion(index.version),
    )


@dg.asset_check(asset=retrieval_index, blocking=True)
def training_rows_alone(lake: LakeResource) -> dg.AssetCheckResult:
    """The index holds exactly the training rows and all passages, and no row of a cluster in another split."""
    from cs_pipeline.retrieval.index import differences

    counts = differences(lake.lake)
    return dg.AssetCheckResult(passed=not any(counts.values()), metadata=counts)


@dg.asset_check(asset=knowledge_base)
def articles_usable(lake: LakeResource) -> dg.AssetCheckResult:
    """Every file below landing/knowledge/ could be read as an article, and no passage was set aside."""
    from cs_pipeline.retrieval.passages import refused_files

    refused = refused_files(lake.lake)
    set_aside = lake.lake.read("prepare", "knowledge_base_set_aside", ["path", "reason"]).to_pylist()
    problems = [f"{path}: {why}" for path, why in sorted(refused.items())]
    problems += sorted({f"{row['path']}: {row['reason']}" for row in set_aside})
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files_refused": len(refused), "passages_set_aside": len(set_aside)},
        description="; ".join(problems[:20]) or None,
    )


ASSETS = [knowledge_base, retrieval_index]
CHECKS = [training_rows_alone, articles_usable]
