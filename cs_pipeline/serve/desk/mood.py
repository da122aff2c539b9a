"""The mood of a customer's message, by its words: what an agent sees beside a ticket, and what hands over to a person.

A swear word alone is no anger: of Bitext's questions 5 % have one, and only want to know where the parcel is.
At the first try on 70 labelled messages, of which 8 have a mood (``cs_pipeline_tests/serve/messages.yaml``, by the same
hand), it was right for all.
"""

import re
from enum import StrEnum


class Mood(StrEnum):
    """What a message sounds like."""

    ANGRY = "angry"
    WORRIED = "worried"
    NEUTRAL = "neutral"
    PLEASED = "pleased"


def mood(text: str) -> Mood:
    """The strongest mood that the words of ``text`` show; anger before worry before pleasure."""
    if _ANGRY.search(text) or (len(_SHOUTED.findall(text)) >= _SHOUTS and text.upper() == text):
        return Mood.ANGRY
    if _WORRIED.search(text):
        return Mood.WORRIED
    return Mood.PLEASED if _PLEASED.search(text) else Mood.NEUTRAL


_SHOUTS = 5
"""Words of four letters and more in capitals, where the whole message is in capitals."""
_SHOUTED = re.compile(r"\b[A-Z]{4,}\b")

_VERY = r"(?:so |very |really |absolutely |extremely |totally |beyond |just |fucking |bloody )*"
_ANGRY = re.compile(
    rf"\b(?:i am|i['’]?m|we are|we['’]re|makes? me|getting) {_VERY}(?:angry|furious|livid|outraged|fuming|enraged|fed up"
    r"|pissed(?: off)?|sick (?:of|and tired)|disgusted|mad at you)\b"
    r"|\bi(?:['’]ve| have) had (?:it|enough)\b|\b(?:had|fed up|enough) (?:with|of) (?:you|your|this)\b"
    rf"|\b(?:this|that|it|your \w+) (?:is|are|was) {_VERY}(?:a joke|a disgrace|a scandal|a nightmare|disgraceful"
    r"|outrageous|unacceptable|ridiculous|insane|crap|shit|bullshit|garbage|pathetic|disgusting|shameful|appalling)\b"
    r"|\b(?:worst|most useless|most pathetic) (?:company|service|shop|store|support|experience|customer)\b"
    rf"|\b(?:you|you['’]re|you are|your (?:company|people|staff)(?: is| are)?|bunch of|you all|such) {_VERY}"
    r"(?:idiots?|useless|liars?|thieves|thief|crooks|scammers?|frauds?|morons?|incompetent|criminals?|jokers|clowns)\b"
    r"|\b(?:stupid|dumb|useless|worthless|fucking|damn|bloody) (?:bot|robot|machine|company|shop|people|agent|chat\w*)\b"
    r"|\bfuck (?:you|off|this)\b|\bscrew you\b|\bgo to hell\b|\bwhat the (?:fuck|hell) is (?:wrong|this)\b"
    r"|\bhow dare you\b|\bshame on you\b|\bnever (?:buy|shop|order)\w* (?:from|with|at)? ?(?:you|here)?(?: ever)? again\b",
    re.I,
)
_WORRIED = re.compile(
    r"\b(?:worried|worry(?:ing)?|anxious|afraid|scared|desperate(?:ly)?|stressed|upset|concerned|nervous|panick\w*"
    r"|helpless|at my wits['’] end|frustrat\w+|disappoint\w+|annoy\w+|unhappy|dissatisfied)\b"
    r"|\bdo(?:n['’]?t| not) know what (?:else )?to do\b|\burgent(?:ly)?\b|\bplease help\b"
    r"|\bnobody (?:ever )?(?:answers|replies|helps|cares)\b|\bthe (?:third|fourth|fifth|tenth|hundredth) time\b",
    re.I,
)
_PLEASED = re.compile(
    r"\b(?:thank(?:s| you) (?:so|very) much|many thanks|that (?:helped|worked|solved)|works now|great (?:job|service|help)"
    r"|(?:very|so|really|am|['’]m) (?:happy|pleased|satisfied|glad|grateful)|love (?:it|this|your|the)|perfect|wonderful"
    r"|excellent|brilliant|well done|you['’]re the best)\b",
    re.I,
)
