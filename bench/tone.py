"""The effect of tones: the same raw answers in the neutral, friendly and strictly professional tone.

    python -m bench.tone [FILE] [--answers 500] [--write]

FILE is a CSV in the Bitext schema; without it the answers are generated. Each answer is processed like a model's answer to
the first message of a conversation (``serve/desk/composing.py``). The measures do not use the rules that apply the tones:

- contractions: the share of possible contractions that are used. Counted are ``n't``, ``'m``, ``'re``, ``'ve``, ``'ll`` and
  ``'d``, and the pairs of words that they stand for (``'s`` is left out, because it is also the genitive).
- exclamation marks per answer.
- greets, addresses: the share of answers that begin with "Hi" or "Hello", or with "Dear".
- facts kept: the share of answers that state the facts of the neutral answer (``text/facts.py``) in the same order.
- courtesy: the mean of the rubric's part "tone" (``evaluate/scoring/rubric.py``); no tone should lower it.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.rows import read_rows
from bench.side_by_side import machine, report
from cs_pipeline.company import Company
from cs_pipeline.evaluate.scoring.rubric import RUBRIC_PARTS
from cs_pipeline.serve.desk.composing import AnswerContext, Composer
from cs_pipeline.serve.desk.screening import Screening
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.text.facts import facts

_SHORT = re.compile(r"n['’]t\b|\b\w+['’](?:m|re|ve|ll|d)\b", re.I)
_LONG = re.compile(
    r"\b(?:can ?not|(?:is|are|was|were|do|does|did|have|has|had|would|could|should|will) not|i am|(?:you|we|they) are"
    r"|(?:i|you|we|they|it|that) will|(?:i|we|they) have|(?:i|you|we|they) would)\b",
    re.I,
)


def measure(answers: Sequence[str]) -> dict[str, Any]:
    """The measures of the raw ``answers`` in each tone."""
    screening = Screening(Company())
    texts = {tone: [_composed(screening, answer, tone) for answer in answers] for tone in Tone}
    neutral_facts = [_facts_of(text) for text in texts[Tone.NEUTRAL]]
    figures = {tone.value: _figures(of_tone, neutral_facts) for tone, of_tone in texts.items()}
    return {"answers": len(answers), "tones": figures}


def _composed(screening: Screening, answer: str, tone: Tone) -> str:
    composer = Composer(screening, AnswerContext(tone, {}, "", (), needed=()))
    return "".join([*composer.feed(answer), *composer.end(complete=True)])


def _facts_of(text: str) -> list[str]:
    return [fact.text.lower() for fact in facts(text)]


def _figures(texts: Sequence[str], neutral_facts: Sequence[list[str]]) -> dict[str, float]:
    contractions = sum(len(_SHORT.findall(text)) for text in texts)
    possible = contractions + sum(len(_LONG.findall(text)) for text in texts)
    kept = [_facts_of(text) == neutral for text, neutral in zip(texts, neutral_facts, strict=True)]
    return {
        "contractions": contractions / possible if possible else float("nan"),
        "exclamation_marks": sum(text.count("!") for text in texts) / len(texts),
        "greets": sum(bool(re.match("(?:hi|hello)\\b", text, re.I)) for text in texts) / len(texts),
        "addresses": sum(text.startswith("Dear ") for text in texts) / len(texts),
        "facts_kept": sum(kept) / len(texts),
        "courtesy": sum(RUBRIC_PARTS["tone"].score("", text) for text in texts) / len(texts),
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="save the result in bench/results")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--answers", type=int, default=500)
    given = parser.parse_args()
    conditions = machine("presidio-analyzer") | {"file": given.file and given.file.name}
    result = conditions | measure(read_rows(given.file, given.answers)["response"].tolist())
    figures = ("contractions", "exclamation_marks", "greets", "addresses", "facts_kept", "courtesy")
    table = Table("tone", *(name.replace("_", " ") for name in figures), title=f"{result['answers']} answers")
    for tone, of_tone in result["tones"].items():
        table.add_row(tone, *(f"{of_tone[name]:.3f}" for name in figures))
    report("tone", result, table, given.write)


if __name__ == "__main__":
    main()
