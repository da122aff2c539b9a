"""What a model makes of found texts that mislead it: none, those of another intent, contradictory ones, and orders in them.

A case is a test row with other texts than its own. It is judged as the odd questions are (``robustness.py``), beside the
model's answer to the same row with the texts that were found for it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.robustness import ROWS, Case, dealt
from cs_pipeline.found import Found
from cs_pipeline.lake import digest
from cs_pipeline.yaml_file import read_yaml

Misled = tuple[Case, list[Found]]


def misled(rows: pd.DataFrame, found: Mapping[str, Sequence[Found]], seed: int = 0) -> list[Misled]:
    """ROWS cases of each group, of these test ``rows`` as in ``robustness.cases``; ``found`` are each row's texts by row_id.

    Rows without any found text are left out. Equal rows and seed give equal cases.
    """
    those = [row for row in dealt(rows, f"{seed} misled") if found[row["row_id"]]][:ROWS]
    rng = random.Random(digest(seed, "misled"))
    denials, orders = cycle(_texts()["denials"]), cycle(_texts()["instructions"])
    cases: list[Misled] = []
    for row in those:
        own = list(found[row["row_id"]])
        strangers = [other for other in those if other["intent"] != row["intent"]]

        def case(group: str, canary: str | None = None, row: dict[str, Any] = row) -> Case:
            text, intents = row["instruction"], (row["intent"],)
            return Case(group, text, "same intent", intents, row["row_id"], row["response"], canary)

        cases.append((case("nothing found"), []))
        if strangers:
            cases.append((case("texts of another intent"), list(found[rng.choice(strangers)["row_id"]])))
        cases.append((case("a contradiction"), [*own, replace(own[0], id="denial", text=next(denials))]))
        order = next(orders)
        bent = replace(own[0], text=f"{own[0].text} {order['text']}")
        cases.append((case("an order in an answer", order["canary"]), [bent, *own[1:]]))
        article = Found("passage", "order", order["text"], row["instruction"], "order.md", "", own[0].similarity)
        cases.append((case("an order in an article", order["canary"]), [*own, article]))
    return cases


@lru_cache(maxsize=1)
def _texts() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("misleading.yaml"))
