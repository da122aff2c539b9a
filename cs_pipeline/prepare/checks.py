"""The checks of the prepare stage. Their imports are inside the functions, because Dagster loads this module."""

from typing import TYPE_CHECKING

from cs_pipeline.core.errors import CheckOutcome
from cs_pipeline.core.lake import DataLake, read_json

if TYPE_CHECKING:
    import pyarrow as pa

MIN_ACCURACY = 0.9
"""Minimum accuracy of the intent classifier, which helps to find poisoned rows. It reaches 0.998 on Bitext."""

MAX_CALIBRATION_ERROR = 0.05
"""Maximum expected calibration error of the router on the validation rows. It is below 0.01 on Bitext."""

MAX_HANDED_OVER = 0.15
"""Maximum share of the company's validation rows with a subject that the router hands over. On Bitext it is 0.05."""

_MIN_VALIDATION_ROWS, _MIN_COMPANY_ROWS = 200, 20  # with fewer rows, the figures are too uncertain

_SHARE_TOLERANCE = 0.05  # of all rows


def clean_bitext_reconciles(lake: DataLake) -> CheckOutcome:
    """Every raw Bitext row is kept or set aside."""
    return _rows_reconcile(lake, ("ingest", "bitext_conversations"), "clean_bitext")


def bitext_splits_reconcile(lake: DataLake) -> CheckOutcome:
    """Every clean Bitext row is kept or set aside."""
    return _rows_reconcile(lake, ("prepare", "clean_bitext"), "bitext_splits")


def placeholders_balanced(lake: DataLake) -> CheckOutcome:
    """Every opening brace of a placeholder is closed."""
    from cs_pipeline.text.placeholders import is_balanced

    rows = lake.read("prepare", "clean_bitext", ["row_id", "instruction", "response"]).to_pylist()
    broken = [row["row_id"] for row in rows if not (is_balanced(row["instruction"]) and is_balanced(row["response"]))]
    return CheckOutcome(not broken, {"broken": len(broken), "examples": broken[:10]})


def split_disjoint_and_stratified(lake: DataLake) -> CheckOutcome:
    """No cluster is in two splits, no row is repeated, every split has every intent, and shares are near SPLIT_SHARES."""
    import pyarrow.compute as pc

    from cs_pipeline.prepare.splits.split import SPLIT_SHARES, split_counts

    table = lake.read("prepare", "bitext_splits", ["row_id", "cluster_id", "intent", "split"])
    counts = split_counts(table)
    shares = {split: float(counts[split].sum() / table.num_rows) for split in SPLIT_SHARES}
    faults = {
        "clusters_in_two_splits": _clusters_in_two_splits(table),
        "repeated_rows": table.num_rows - pc.count_distinct(table.column("row_id")).as_py(),
        "intents_missing_from_a_split": counts.index[(counts == 0).any(axis=1)].tolist(),
    }
    shares_match = all(abs(shares[split] - share) < _SHARE_TOLERANCE for split, share in SPLIT_SHARES.items())
    return CheckOutcome(shares_match and not any(faults.values()), faults | shares)


def classifier_accuracy(lake: DataLake) -> CheckOutcome:
    """The intent classifier predicts the right intent for at least 90 % of the test questions."""
    from cs_pipeline.prepare.intent_classifier import classifier_quality

    accuracy = classifier_quality(lake)["test_accuracy"]
    return CheckOutcome(accuracy >= MIN_ACCURACY, {"test_accuracy": accuracy})


def router_calibrated(lake: DataLake) -> CheckOutcome:
    """The router's probabilities are right on average, and it recognises the company's own validation questions."""
    from dataclasses import asdict

    from cs_pipeline.prepare.router import router_quality

    quality = router_quality(lake)
    error, handed_over = quality.calibration_error, quality.company_handed_over
    problems = []
    if quality.validation_rows >= _MIN_VALIDATION_ROWS and error is not None and error > MAX_CALIBRATION_ERROR:
        problems.append(f"The router's probabilities are wrong by {error:.0%} on average.")
    if quality.company_rows >= _MIN_COMPANY_ROWS and handed_over is not None and handed_over > MAX_HANDED_OVER:
        problems.append(
            f"The router does not recognise {handed_over:.0%} of the company's validation questions: look for subjects "
            "that should be split or merged, and do so in data_lake/subjects.yaml."
        )
    facts = {name: value for name, value in asdict(quality).items() if value is not None}
    return CheckOutcome(not problems, facts, " ".join(problems) or None)


def messages_reconcile(lake: DataLake, day: str) -> CheckOutcome:
    """Every customer message of the day is kept, set aside, flagged or forgotten."""
    names = ("clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged")
    rows = {name: lake.read("prepare", f"{name}/{day}", ["row_id"]).num_rows for name in names}
    counts = read_json(lake.path("prepare", "clean_interactions", f"{day}.json"))
    messages, forgotten = counts["customer_messages"], counts["forgotten"]
    return CheckOutcome(
        messages == sum(rows.values()) + forgotten, {"customer_messages": messages, "forgotten": forgotten, **rows}
    )


def subjects_reconcile(lake: DataLake) -> CheckOutcome:
    """Every usable company row is in the table, with or without a subject, or is a row that was delivered again."""
    from cs_pipeline.prepare.subjects.subjects import subject_facts, subject_of_rows

    counts = subject_facts(lake)["counts"]
    rows, with_subject = lake.read("prepare", "subjects", ["row_id"]).num_rows, len(subject_of_rows(lake))
    passed = (
        counts["usable"] == rows + counts["delivered_again"]
        and counts["with_subject"] == with_subject
        and counts["without"] == rows - with_subject
    )
    return CheckOutcome(passed, counts)


def subjects_reviewed(lake: DataLake) -> CheckOutcome:
    """No subject is new, and every id in subjects.yaml is a subject."""
    from cs_pipeline.prepare.subjects.subjects import subject_facts

    facts = subject_facts(lake)
    problems = []
    if facts["new"]:
        problems.append(
            f"{len(facts['new'])} subjects are new: look at their examples. A subject is no longer new when "
            "data_lake/subjects.yaml mentions it, for example with a name."
        )
    if facts["unknown"]:
        problems.append(f"data_lake/subjects.yaml has ids that no row has: {', '.join(facts['unknown'])}.")
    return CheckOutcome(not problems, {name: facts[name] for name in ("new", "unknown")}, " ".join(problems) or None)


def conversations_reconcile(lake: DataLake) -> CheckOutcome:
    """Every row of both sources is kept, set aside, superseded or forgotten."""
    from cs_pipeline.prepare.splits.conversations import join_counts

    counts = join_counts(lake)
    rows_kept, rows_set_aside = (
        lake.read("prepare", name, ["row_id"]).num_rows for name in ("conversations", "conversations_set_aside")
    )
    total = rows_kept + rows_set_aside + counts["superseded"] + counts["forgotten"]
    return CheckOutcome(counts["bitext"] + counts["company"] == total, counts)


def no_cluster_in_two_splits(lake: DataLake) -> CheckOutcome:
    """Every cluster is in one split, and every row has a cluster and a split."""
    import pyarrow.compute as pc

    rows = lake.read("prepare", "conversations", ["cluster_id", "split"])
    facts = {
        "clusters": pc.count_distinct(rows.column("cluster_id")).as_py(),
        "clusters_in_two_splits": _clusters_in_two_splits(rows),
        "rows_without": rows.column("split").null_count + rows.column("cluster_id").null_count,
    }
    return CheckOutcome(not facts["clusters_in_two_splits"] and not facts["rows_without"], facts)


def no_leakage(lake: DataLake) -> CheckOutcome:
    """No validation or test question is a near-duplicate of a training question. The search does not use the clusters.

    The facts also say how much of the test answers is in training answers. That does not fail the check.
    """
    from cs_pipeline.prepare.splits.leakage import find_leaks

    rows = lake.read("prepare", "conversations")
    pairs = find_leaks(rows)
    facts = {"pairs": len(pairs), "examples": [list(pair) for pair in pairs[:5]], **_answers_seen(rows)}
    return CheckOutcome(not pairs, facts)


def _answers_seen(conversations: "pa.Table") -> dict[str, float]:
    """How much of the test answers is in training answers too, word for word: median and 90th percentile of the shares.

    A support desk repeats its answers, so high shares are not a fault. The higher they are, the better a look-up does.
    """
    import numpy as np
    import pyarrow.compute as pc

    from cs_pipeline.text.copied import seen_shares

    test, train = (
        conversations.filter(pc.equal(conversations.column("split"), split)).column("response").to_pylist()
        for split in ("test", "train")
    )
    if not (shares := seen_shares(test, train)):
        return {}
    median, high = np.quantile(shares, [0.5, 0.9])
    return {
        "test_answers_seen_median": round(float(median), 3),
        "test_answers_seen_90th_percentile": round(float(high), 3),
    }


def _clusters_in_two_splits(table: "pa.Table") -> int:
    splits = table.group_by("cluster_id").aggregate([("split", "count_distinct")]).column("split_count_distinct")
    return sum(count > 1 for count in splits.to_pylist())


def _rows_reconcile(lake: DataLake, source: tuple[str, str], table: str) -> CheckOutcome:
    """Every row of ``source`` (stage and table) is in ``table`` of prepare or in its ``…_set_aside``."""
    facts = {
        "rows_in": lake.read(*source, ["row_id"]).num_rows,
        "rows_kept": lake.read("prepare", table, ["row_id"]).num_rows,
        "rows_set_aside": lake.read("prepare", f"{table}_set_aside", ["row_id"]).num_rows,
    }
    return CheckOutcome(facts["rows_in"] == facts["rows_kept"] + facts["rows_set_aside"], facts)
