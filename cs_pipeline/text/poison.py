"""Rows that somebody may have written for the model and not for the support desk: flagged, and looked at by a person.

Who writes to the desk writes to the training data too. Looked for are control tokens of chat templates, text that hides from
the eye, phrases that speak to a model, copies that one customer sends, too many rows of one customer, and answers to
another question. None of it proves anything, so nothing is deleted: a flagged row waits until it is released by hand.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

COPIES = 5
"""So many near-equal questions of one customer and day are flagged, all of them."""
ALIKE = 0.8
"""Jaccard similarity of the 4-character shingles of two questions from which on they are near-equal."""
CERTAIN = 0.8
"""Confidence from which on two classifiers that contradict one another are believed.

With 16,000 Bitext rows to learn from and 8,000 others to judge, an answer of another row of another intent was flagged in
93 % of the cases, the right answer in 0.09 %.
"""

CONTROL_TOKEN = "a control token of a chat template"
HIDDEN = "characters that cannot be seen inside words"
DIRECTION = "characters that turn the direction of the text"
LOOK_ALIKE = "letters of another alphabet inside a word"
SPEAKS_TO_A_MODEL = "a phrase that speaks to a language model"
REPEATED = f"one of {COPIES} or more near-equal questions of one customer in a day"
ANSWER_ELSEWHERE = "the answer is of another intent than the question"


@dataclass(frozen=True)
class Suspect:
    """A row to be judged.

    ``delivered`` is all its text as it came in (question, answer, earlier turns): cleaning removes part of what is looked
    for. ``question`` is cleaned. ``subject`` is the customer's hashed id, None where the file names none. The intents are
    what the classifiers of questions and of answers say, with their confidence.
    """

    delivered: str
    question: str
    subject: str | None
    intent: str
    intent_confidence: float
    answer_intent: str
    answer_confidence: float


def reasons(rows: Sequence[Suspect], rows_per_subject: int) -> list[str | None]:
    """Why each of a day's ``rows`` has to be looked at before it may train, None where nothing speaks against it.

    Of one customer the first ``rows_per_subject`` rows are free of the cap's reason. A reason never quotes the row.
    """
    too_many = f"beyond the {rows_per_subject} rows of one customer and day that may train"
    place: Counter[str] = Counter()
    first: dict[str, list[int]] = defaultdict(list)
    found: list[list[str]] = []
    for number, row in enumerate(rows):
        row_reasons = text_reasons(row.delivered)
        if row.intent != row.answer_intent and row.intent_confidence >= CERTAIN and row.answer_confidence >= CERTAIN:
            row_reasons.append(ANSWER_ELSEWHERE)
        if row.subject is not None:
            place[row.subject] += 1
            if place[row.subject] > rows_per_subject:
                row_reasons.append(too_many)
            else:
                first[row.subject].append(number)
        found.append(row_reasons)
    for numbers in first.values():
        for number in _copies(rows, numbers):
            found[number].append(REPEATED)
    return ["; ".join(row_reasons) or None for row_reasons in found]


def text_reasons(text: str) -> list[str]:
    """What in ``text`` alone, as it was delivered, speaks against training on it."""
    found = []
    normal = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if _MAY_CONTROL.search(normal) and _CONTROL.search(normal):
        found.append(CONTROL_TOKEN)
    if not text.isascii():
        if _HIDDEN.search(text):
            found.append(HIDDEN)
        if _OVERRIDE.search(text) or (_EMBEDDING.search(text) and not _RIGHT_TO_LEFT.search(text)):
            found.append(DIRECTION)
        if _has_look_alikes(text):
            found.append(LOOK_ALIKE)
    if _INJECTION.search(_letters(text)):
        found.append(SPEAKS_TO_A_MODEL)
    return found


def _copies(rows: Sequence[Suspect], numbers: list[int]) -> list[int]:
    """Those of ``numbers`` whose questions are near-equal to those of at least ``COPIES`` - 1 others."""
    if len(numbers) < COPIES:
        return []
    groups: list[tuple[frozenset[str], list[int]]] = []
    for number in numbers:
        shingles = _shingles(rows[number].question)
        for representative, members in groups:
            shared = len(shingles & representative)
            if shared >= ALIKE * (len(shingles) + len(representative) - shared):
                members.append(number)
                break
        else:
            groups.append((shingles, [number]))
    return [number for _, members in groups if len(members) >= COPIES for number in members]


def _shingles(text: str) -> frozenset[str]:
    padded = " ".join(text.lower().split()).ljust(4)
    return frozenset(padded[start : start + 4] for start in range(len(padded) - 3))


# Of the templates of the usual model families; compared after NFKC, which makes DeepSeek's wide bars plain ones.
_MAY_CONTROL = re.compile(r"<[|/]?[A-Za-z|<]|\[/?[A-Z]|##")
_CONTROL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|</?(?:think|tool_call|tool_response|function_call|system|assistant)>"
    r"|(?-i:\[/?(?:INST|SYS|SYSTEM|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|^[ \t]*#{2,}[ ]?(?:assistant|human|user|system|instructions?|response)[ ]*:",
    re.I | re.M,
)

# Between letters of alphabets that have no use for them; Persian and emoji do. Runs of tags and variation selectors spell
# ASCII unseen: flags of emoji have up to seven tags.
_JOINED = r"[A-Za-zÀ-ɏͰ-ӿ\d]"
_HIDDEN = re.compile(
    rf"(?<={_JOINED})[\u200b-\u200d\u2060-\u2064\ufeff\u180e]+(?={_JOINED})"
    r"|[\U000e0000-\U000e007f]{8,}|[\ufe00-\ufe0f]{2,}|[\U000e0100-\U000e01ef]{2,}"
)
_OVERRIDE = re.compile("[\u202d\u202e]")
# An embedding before a phone number comes with every copy from an address book.
_EMBEDDING = re.compile("[\u202a\u202b\u2066-\u2068](?![+(\\d])")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")

_LOOK_ALIKES = str.maketrans(
    "аАеЕоОрРсСуУхХіІјЈѕЅһԁԛԝѵӏВНКМТкмнтαΑεΕηΗιΙκΚΜνΝοΟρΡτΤυΥχΧΒΖ",
    "aAeEoOpPcCyYxXiIjJsShdqwvlBHKMTkmhtaAeEnHiIkKMvNoOpPtTuYxXBZ",
)
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-zÀ-ɏ]")
_OTHER = re.compile("[Ͱ-ӿ\u0500-\u052f]")

# Digits and signs that stand for letters: "1gn0re".
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "|": "l"})


def _has_look_alikes(text: str) -> bool:
    """Whether a Latin word has letters of another alphabet that look like Latin ones, in a text without that alphabet."""
    mixed = False
    for word in _WORD.findall(text):
        if not _OTHER.search(word):
            continue
        if _OTHER.search(word.translate(_LOOK_ALIKES)):
            return False
        mixed = mixed or bool(_LATIN.search(word))
    return mixed


def _letters(text: str) -> str:
    """``text`` as a phrase is compared: letters a to z alone, look-alikes, digits for letters and accents undone."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(_LOOK_ALIKES))
    return re.sub("[^a-z]+", "", text.lower().translate(_LEET))


def _squeezed(*patterns: str) -> re.Pattern[str]:
    """One pattern of all, for texts without spaces."""
    return re.compile("|".join(pattern.replace(" ", "") for pattern in patterns))


_INJECTION = _squeezed(
    # What was said before does not count. Messages, requests and orders are ignored every day: only instructions matter.
    r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget|override|overrule|bypass|do not (?:follow|obey)|dont (?:follow|obey)"
    r"|stop following)"
    r"(?: all | any | every | of | the | your | my | our | these | those | its ){0,4}"
    r"(?: previous(?:ly)? | prior | earlier | above | preceding | former | original | initial | existing | current | system"
    r"| safety | given | other | hidden | internal | and | or | your | all ){1,4}"
    r"(?: instructions? | prompts? | directions | directives? | rules | guidelines | training | programming | restrictions"
    r"| constraints )",
    r"(?:forget|ignore|disregard) (?: everything | all | anything )(?: that )?"
    r"(?: above | before this | you know"
    r"| you (?:were|was|ve been|have been) (?:told|taught|trained|instructed|given) )",
    r"(?:ignor(?:e|ieren?|iert)|vergi(?:ss|sst)) (?:sie)?"
    r"(?: alle | die | deine | ihre | bisherigen | vorherigen | vorigen | obigen ){1,4}"
    r"(?: anweisungen | instruktionen | regeln | befehle )",
    r"(?:ignore[zr]?|oublie[zr]?) (?: toutes | les | tes | vos | ces ){1,3}(?: instructions | consignes | regles )"
    r"(?: precedentes | anterieures | ci dessus )",
    r"(?:ignorar?|olvidar?|ignore|ignorare|dimentica) (?: todas? | todos? | as | las | tus | sus | le | tutte | suas ){1,3}"
    r"(?: instruc(?:cion|co)es | istruzioni )",
    # What the model was told is to come out.
    r"(?:reveal|show|print|repeat|output|display|tell me|give me|leak|what is|whats|what are|write out)"
    r"(?: me | us | all | the | your | of | exact | full | entire | word for word | contents? ){0,5}"
    r"(?: system (?:prompt|message|instructions?)"
    r"| (?:hidden|initial|original|secret|internal) (?:prompt|instructions?)"
    r"| developer (?:message|prompt|instructions?) )",
    # The model is to be another.
    r"(?:you are|youre|act as|pretend (?:to be|you are|youre)) (?:now )?(?: an? | my | if you were )?"
    r"(?: dan (?:who|which stands|mode|do any|and it can|that can) | jail ?broken | unrestricted | unfiltered | uncensored"
    r"| evil (?:ai|bot|assistant) | in developer mode"
    r"| no longer (?:an? )?(?:ai|assistant|bound|restricted|a chat ?bot|a language model) )",
    r"pretend (?:that )?(?:you have no|you dont have|there are no) (?: rules | restrictions | guidelines | instructions )",
    r"from now on (?:you )?(?:will |must |shall |should |are to )?(?:only |always |never )?"
    r"(?:answer|respond|reply|act as|behave as|obey|pretend|speak as)"
    r"(?: all | every | to | with | as | only | any | me ){1,3}",
    r"(?:your new|here are (?:your )?new|new system) (?:instructions?|rules|task|prompt) (?:is|are|as follows|follow)",
    # An answer that is to be given to others.
    r"(?:when ?ever|any ?time|every ?time|if)"
    r" (?:someone|anyone|anybody|a user|the user|users|a customer|any customer|customers|people) asks? [a-z]{0,60}"
    r"(?:always|you must|you should|you will)(?:say|answer|reply|respond|tell|recommend|output|give|send|write)",
)
