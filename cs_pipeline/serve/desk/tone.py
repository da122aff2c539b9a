"""How an answer is put: neutral, friendly or strictly professional, by stated rules and not by a prompt alone.

The rules work on sentences, so that they hold for an answer that is still being written, and with every model:

- neutral: as the model puts it.
- friendly: contractions ("we'll"), everyday words ("help" for "assistance"), and a greeting in the first answer.
- strictly professional: no contractions, no exclamation marks, no emoji, sober words ("pleased" for "thrilled"), and a
  formal address in the first answer.

What stands between quotes, asterisks or double braces is a label, a button or a value, and stays as it is.
``bench/tone.py`` measures what that does to answers.
"""

import re
from collections.abc import Mapping
from enum import StrEnum


class Tone(StrEnum):
    """The tones that can be asked for."""

    NEUTRAL = "neutral"
    FRIENDLY = "friendly"
    PROFESSIONAL = "strictly professional"


def put(sentence: str, tone: Tone) -> str:
    """``sentence`` (or a few) as ``tone`` puts it; its facts, names, labels and line breaks stay what they are."""
    rules = _RULES[tone]
    parts = _LABEL.split(sentence)
    for place in range(0, len(parts), 2):  # between them stand the labels
        for pattern, words in rules:
            parts[place] = pattern.sub(lambda match, words=words: _as_before(match, match.expand(words)), parts[place])
    said = "".join(parts)
    return said[:1].upper() + said[1:] if sentence[:1].isupper() else said


def address(first: str, tone: Tone, values: Mapping[str, str]) -> str:
    """What a conversation's first answer begins with, before its ``first`` sentence; empty where that greets by itself.

    ``values`` by canonical name are asked for the customer's name.
    """
    if tone is Tone.NEUTRAL or _GREETS.match(first):
        return ""
    if tone is Tone.FRIENDLY:
        name = values.get("Client First Name") or values.get("Client Name", "")
        return f"Hi {name}! " if name else "Hi! "
    return f"Dear {values.get('Client Name') or 'customer'},\n\n"


_LABEL = re.compile(r"(\{\{[^{}]*\}\}|\*\*[^*\n]+\*\*|\"[^\"\n]+\"|“[^”\n]+”|‘[^’\n]+’(?!\w)|(?<!\w)'[^'\n]+'(?!\w))")
_GREETS = re.compile(r"\W*(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day)|greetings|welcome)\b", re.I)

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern.replace("'", "['’]"), re.I), words) for pattern, words in pairs)


def _as_before(match: re.Match[str], words: str) -> str:
    """``words`` with the capital that began what they replace."""
    return words[:1].upper() + words[1:] if match[0][:1].isupper() else words


_BE_OR_DO = "is|are|was|were|do|does|did|have|has|had|would|could|should|need|must|might"
_WE = "i|you|we|they|he|she|it"
_GOES_ON = r"(?= [\w{*])"  # "as I am." has no short form
_SHORT = _rules(
    (r"\bwill not\b", "won't"),
    (r"\bcan ?not\b(?! only)", "can't"),
    (rf"\b({_BE_OR_DO}) not\b(?! only)", r"\1n't"),
    (rf"\b(i) am{_GOES_ON}", r"\1'm"),
    (rf"\b(you|we|they) are{_GOES_ON}", r"\1're"),
    (rf"\b({_WE}|that|there) will{_GOES_ON}", r"\1'll"),
    (rf"\b(it|that|there|here|what) is{_GOES_ON}", r"\1's"),
    (r"\b(i|we|they) have(?= (?:been|received|sent|made|taken|understood|noticed|got|just|already|also)\b)", r"\1've"),
    (r"\b(i|we|you) would(?= (?:like|love|be|recommend|suggest|need|have|appreciate|prefer)\b)", r"\1'd"),
)
_LONG = _rules(
    (rf"\bcan't ({_WE})\b", r"can \1 not"),
    (rf"\bwon't ({_WE})\b", r"will \1 not"),
    (rf"\b({_BE_OR_DO})n't ({_WE})\b", r"\1 \2 not"),
    (r"\bcan't\b", "cannot"),
    (r"\bwon't\b", "will not"),
    (r"\bshan't\b", "shall not"),
    (rf"\b({_BE_OR_DO})n't\b", r"\1 not"),
    (r"\b(i)'m\b", r"\1 am"),
    (r"\b(\w+)'re\b", r"\1 are"),
    (r"\b(\w+)'ve\b", r"\1 have"),
    (r"\b(\w+)'ll\b", r"\1 will"),
    (r"\b(let)'s\b", r"\1 us"),
    (r"\b(it|that|there|here|what|where|who|how|he|she)'s(?= (?:been|got|had|become|gone)\b)", r"\1 has"),
    (r"\b(it|that|there|here|what|where|who|how|he|she|everything|something|nothing)'s\b", r"\1 is"),
    (rf"\b({_WE}|that|who)'d(?= (?:better|been)\b)", r"\1 had"),
    (rf"\b({_WE}|that|who)'d\b", r"\1 would"),
)
_PLAIN = _rules(
    (r"\bassistance\b", "help"),
    (r"\bassist(?= you\b| with\b|ing you\b)", "help"),
    (r"\bkindly\b", "please"),
    (r"\bregarding\b", "about"),
    (r"\bin order to\b", "to"),
    (r"\bprior to\b", "before"),
    (r"\bdo(?: not|n't) hesitate to\b", "feel free to"),
    (r"\butili[sz]e\b", "use"),
    (r"\bthank you\b", "thanks"),
)
_SOBER = _rules(
    (r"\b(?:hi|hey|hello)(?: there)?(?=[,!])", "good day"),
    (r"\b(?:yay|woo-?hoo|wow|oh no|oh dear|uh-oh|oops|hooray)\b[,!]? *", ""),
    (r"\b(?:sure thing|no worries|no problem|absolutely|awesome|you bet|you got it)(?=!)", "certainly"),
    (r"\b(?:absolutely |so |really |super |incredibly )?(?:thrilled|excited|delighted|overjoyed|stoked)\b", "pleased"),
    (r"\b(?:awesome|fantastic|amazing|fabulous|super)\b", "very good"),
    (r"\bthanks\b(?! to)", "thank you"),
    (r"\bfeel free to\b", "do not hesitate to"),
    (r"\breach out to\b", "contact"),
    (r"\breaching out to\b", "contacting"),
    (r"\bget in touch with\b", "contact"),
    (r"!+", "."),
    (r" ?[\U0001f300-\U0001faff\u2600-\u27bf\ufe0f]+", ""),
)
_RULES: dict[Tone, _Rules] = {
    Tone.NEUTRAL: (),
    Tone.FRIENDLY: _PLAIN + _SHORT,
    Tone.PROFESSIONAL: _LONG + _SOBER,
}
