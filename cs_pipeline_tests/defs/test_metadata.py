"""What the Dagster UI shows of tables: texts from data cannot become markup."""

from collections import Counter
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from cs_pipeline.core.errors import CheckOutcome
from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.metadata import count_table, data_check, markdown_table, table_result
from cs_pipeline.defs.resources import LakeResource


def test_texts_are_escaped_and_shortened_and_whole_numbers_are_aligned() -> None:
    shown = markdown_table(["text", "rows"], [("<b>|a|\nb `c` [d](e)", 12_345), ("x" * 500, 1)])
    header, rule, first, second = str(shown.value).splitlines()
    assert (header, rule) == ("| text | rows |", "| --- | ---: |")
    assert first == "| &lt;b&gt;\\|a\\| b \\`c\\` \\[d\\](e) | 12,345 |"
    assert second == f"| {'x' * 120}… | 1 |"


def test_counts_are_sorted_and_no_counts_are_none() -> None:
    assert str(count_table(Counter(b=1, a=1, c=20)).value).splitlines()[2:] == ["| c | 20 |", "| a | 1 |", "| b | 1 |"]
    assert count_table({}).value == "none"


def test_a_table_shows_its_rows_schema_lineage_and_hash(lake: DataLake) -> None:
    table = pa.table({"question": ["*where* is it"], "empty": pa.nulls(1, pa.string())})
    lake.write("prepare", "questions", table, table.schema)
    path = lake.table("prepare", "questions")
    result = table_result(path, table, {"more": 1}, lineage={"question": [("source", "text")]})
    shown: dict[str, Any] = dict(result.metadata or {})
    assert shown["dagster/row_count"] == 1
    assert shown["more"] == 1
    assert shown["dagster/uri"] == path.as_uri()
    assert [column.name for column in shown["dagster/column_schema"].columns] == ["question", "empty"]
    assert shown["dagster/column_lineage"].deps_by_column["question"][0].column_name == "text"
    assert shown["preview"].value == "| question |\n| --- |\n| \\*where\\* is it |"
    assert result.data_version == dg.DataVersion(shown["sha256"][:16])


@pytest.mark.parametrize("blocking", [True, False])
def test_a_plain_function_becomes_a_check_of_the_assets_partition(blocking: bool) -> None:
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["monday"]))
    def day() -> None: ...

    def is_friday(lake: DataLake, partition: str) -> CheckOutcome:
        """It is Friday."""
        return CheckOutcome(partition == "friday", {"day": partition}, "wait")

    check = data_check(day, is_friday, blocking=blocking)
    # Definitions are loaded with the state of the instance entered last, which must still be there.
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [day, check],
            partition_key="monday",
            resources={"lake": LakeResource()},
            instance=instance,
            raise_on_error=False,
        )
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed, evaluation.blocking) == ("is_friday", False, blocking)
    assert (evaluation.description, evaluation.metadata["day"].value) == ("wait", "monday")
    assert evaluation.severity == (dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN)
    assert check.get_spec_for_check_key(dg.AssetCheckKey(day.key, "is_friday")).description == "It is Friday."
