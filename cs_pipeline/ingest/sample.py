"""The project's own sample rows in the Bitext schema. They are generated from the grammar in ``sample.yaml``."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import yaml

from cs_pipeline.ingest.bitext_file import BITEXT_COLUMNS

# Shares of the questions. _SAME_QUESTION: an earlier question gets another answer, as in 8 % of Bitext's rows.
# _SAME_REQUEST: an earlier request gets another style (a greeting, a typing error), which makes a near-duplicate.
_SAME_QUESTION, _SAME_REQUEST = 0.08, 0.12
_GREETING, _EXPANDED, _COLLOQUIAL, _RUDE, _TYPO = 0.12, 0.3, 0.33, 0.08, 0.19
_FORM_WEIGHTS = {"frames": 65, "questions": 25, "keywords": 10}
_OTHER_SPELLING = 0.02  # share of the answers

_SLOT = re.compile(r"<(\w+)>")
_SECOND_PERSON = {"I": "you", "am": "are", "me": "you", "my": "your", "your": "our"}


def sample_rows(rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """``rows`` support questions with their answers, ordered by intent as in Bitext. The same ``seed`` gives the same rows.

    All columns (``BITEXT_COLUMNS``) are strings. The 27 intents have equal shares, give or take one row. No pair of
    question and answer occurs twice.
    """
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    grammar = yaml.safe_load(text)
    writer = _Writer(grammar, set(re.findall("[a-z]+", text.lower())), random.Random(seed))
    intents = sorted(grammar["intents"].items())
    table = []
    for index, (intent, entry) in enumerate(intents):
        share = rows // len(intents) + (index < rows % len(intents))
        for question, response in writer.conversations(entry["cases"], share):
            table.append(("".join(sorted(question.flags)), question.text, entry["category"], intent, response))
    return pd.DataFrame(table, columns=list(BITEXT_COLUMNS), dtype="str")


@dataclass(frozen=True)
class _Question:
    """A question. ``doing`` is its request, such as "cancelling your order"; ``named`` has the phrases in its slots, and
    ``answers`` the answers that suit it."""

    text: str
    flags: frozenset[str]
    doing: str
    named: dict[str, str]
    answers: list[str]


@dataclass(frozen=True)
class _Writer:
    """Writes rows with the ``grammar``. ``words`` are all words of its file; a typing error must not produce one of them."""

    grammar: dict
    words: set[str]
    rng: random.Random

    def conversations(self, cases: list[dict], count: int) -> Iterator[tuple[_Question, str]]:
        """``count`` pairs of a question about one of ``cases`` and its answer, without repetition."""
        requests: list[_Question] = []
        asked: dict[str, _Question] = {}
        pairs: set[tuple[str, str]] = set()
        while len(pairs) < count:
            if asked and self.rng.random() < _SAME_QUESTION:
                question = self.rng.choice(list(asked.values()))
            else:
                if requests and self.rng.random() < _SAME_REQUEST:
                    request = self.rng.choice(requests)
                else:
                    request = self.request(self.rng.choice(cases))
                question = self.with_style(request)
                if question.text in asked:
                    continue
                requests.append(request)
                asked[question.text] = question
            response = self.answer(question)
            if (question.text, response) not in pairs:
                pairs.add((question.text, response))
                yield question, response

    def request(self, case: dict) -> _Question:
        """A question about ``case`` in plain, correct English."""
        act = self.rng.choice(case["acts"])
        form = self.rng.choices(list(_FORM_WEIGHTS), list(_FORM_WEIGHTS.values()))[0]
        if form == "frames":
            frames = [(flags, frame) for flags, group in self.grammar["frames"].items() for frame in group]
            flags, template = self.rng.choice(frames)
            basic = act == case["acts"][0]
        else:
            flags, template = "I" if form == "questions" else "K", self.rng.choice(case[form])
            basic = template == case[form][0]
        template = _fill(template, {**_forms(act), "situation": self.rng.choice(case["situations"])})
        named = {slot: self.rng.choice(phrases["named"]) for slot, phrases in self.grammar["slots"].items()}
        text = _fill(template, named)
        return _Question(
            text if form == "keywords" else text[0].upper() + text[1:],
            frozenset("B" + flags + ("" if basic else "L")),
            _to_second_person(_forms(case["acts"][0])["doing"]),
            {slot: _to_second_person(named[slot]) for slot in _SLOT.findall(template)},
            case["answers"],
        )

    def with_style(self, question: _Question) -> _Question:
        """``question`` in a randomly drawn writing style."""
        manners, chance = self.grammar["manners"], self.rng.random
        text, flags = question.text, set(question.flags)
        if "K" not in flags and chance() < _GREETING:
            text = self.rng.choice(manners["greetings"]) + re.sub(r"^(?!I\b).", lambda first: first[0].lower(), text)
        if chance() < _EXPANDED and (expanded := _replace(text, manners["expanded"])) != text:
            text = expanded
            flags.add("E")
        if chance() < _COLLOQUIAL:
            text = re.sub(r"\{\{.*?\}\}|(\w+)", lambda word: word[0].lower() if word[1] else word[0], text).rstrip(".?")
            colloquial = _replace(text, manners["colloquial"])
            text = text + self.rng.choice(manners["colloquial_endings"]) if colloquial == text else colloquial
            flags.add("Q")
        if chance() < _RUDE and (before := re.search(r"\b(my|the|your|ur) ", text)):
            text = f"{text[: before.end()]}{self.rng.choice(manners['rude'])} {text[before.end() :]}"
            flags.add("W")
        if chance() < _TYPO:
            text = self.mistyped(text)
            flags.add("Z")
        return replace(question, text=text, flags=frozenset(flags))

    def mistyped(self, text: str) -> str:
        """``text`` with two letters of one word swapped, a letter dropped or a letter doubled."""
        long_words = [match for match in re.finditer(r"\{\{.*?\}\}|([A-Za-z]{4,})", text) if match[1]]
        match = self.rng.choice(long_words)
        word = match[0]
        while word.lower() in self.words:
            index = self.rng.randrange(1, len(match[0]) - 1)
            a, b = match[0][index], match[0][index + 1]
            word = match[0][:index] + self.rng.choice([b + a, b, a + a + b]) + match[0][index + 2 :]
        return text[: match.start()] + word + text[match.end() :]

    def answer(self, question: _Question) -> str:
        """An opening in the tone that suits the question, one of the case's answers, and a closing."""
        tone = next((flag for flag in "WN" if flag in question.flags), "usual")
        opening = self.rng.choice(self.grammar["openings"][tone])
        body = self.rng.choice(question.answers)
        gap = "\n\n" if "\n" in body else " "
        template = f"{opening} {body}{gap}{self.rng.choice(self.grammar['closings'])}"
        otherwise = {slot: phrases["otherwise"] for slot, phrases in self.grammar["slots"].items()}
        text = _fill(_fill(template, {"doing": question.doing}), otherwise | question.named)
        if self.rng.random() < _OTHER_SPELLING:
            for name, spellings in self.grammar["spellings"].items():
                text = text.replace(name, self.rng.choice(spellings))
        return text


def _forms(act: str) -> dict[str, str]:
    """The phrases for the slots ``do`` and ``doing``, from an act such as ``cancel/cancelling <order>``."""
    verbs, rest = act.split(" ", 1)
    return dict(zip(["do", "doing"], [f"{verb} {rest}" for verb in verbs.split("/")], strict=True))


def _fill(template: str, phrases: dict[str, str]) -> str:
    """``template`` with the slots in ``phrases`` filled; other slots remain."""
    return _SLOT.sub(lambda slot: phrases.get(slot[1], slot[0]), template)


def _to_second_person(phrase: str) -> str:
    return re.sub(r"\w+", lambda word: _SECOND_PERSON.get(word[0], word[0]), phrase)


def _replace(text: str, phrases: dict[str, str]) -> str:
    """``text`` with each whole phrase in ``phrases`` replaced, ignoring case; an initial capital is kept."""

    def new(match: re.Match[str]) -> str:
        phrase = lower[match[0].lower()]
        return phrase[0].upper() + phrase[1:] if match[0][0].isupper() else phrase

    lower = {old.lower(): phrase for old, phrase in phrases.items()}
    return re.sub(rf"\b({'|'.join(map(re.escape, lower))})\b", new, text, flags=re.IGNORECASE)
