"""What this desk answers, and what it says to everything else instead of asking a model.

Each rule reads words. At the first try on messages that they were not written with (the same hand wrote both, so take it
for an upper bound: ``cs_pipeline_tests/serve/messages.yaml``) they kept back 9 of 12 questions for another desk, 5 of 7 for
what is somebody else's, 7 of 8 instructions to a model and all of 5 without content, and 1 of 22 that are to be answered
("is the game in stock"), which a classifier that knows the shop would have kept. Of 4,000 Bitext questions they kept back
none.
"""

import re
from enum import StrEnum

from cs_pipeline.text.poison import CONTROL_TOKEN, SPEAKS_TO_A_MODEL, text_reasons

_MATTERS = "orders, deliveries, payments, refunds, invoices and accounts"


class Beyond(StrEnum):
    """Why a message is not for this desk; the value is what the customer is told."""

    EMPTY = f"How can I help you? I look after {_MATTERS}."
    """There is nothing in it to answer: a greeting, a sign, a key pressed by chance."""
    INSTRUCTION = f"I can only help with questions about {_MATTERS}. What can I do for you there?"
    """It speaks to a model instead of the desk, or writes what only the program may write."""
    OTHERS = (
        "I can only share the details of a customer with that customer, so I cannot help with that. If it is about your "
        "own order or account, please tell me what you need."
    )
    """It asks for what belongs to somebody else."""
    ELSEWHERE = (
        f"I am afraid that is outside what I can help with here: I look after {_MATTERS}. Is there one of these that I can "
        "help you with?"
    )
    """It is a question for another desk."""


def beyond(text: str, raw: str, *, opening: bool) -> Beyond | None:
    """Why ``text`` is not for this desk by its words alone, None where it may be.

    ``raw`` is the text as it came in, before cleaning took out what hides in it. ``opening`` is true where nothing was said
    before: later a bare "ok" or "the second one" may be an answer.
    """
    if {CONTROL_TOKEN, SPEAKS_TO_A_MODEL} & set(text_reasons(raw)) or _INSTRUCTION.search(text):
        return Beyond.INSTRUCTION
    if _OTHERS.search(text):
        return Beyond.OTHERS
    return Beyond.EMPTY if opening and _NOTHING.fullmatch(text) else None


def is_elsewhere(text: str, confidence: float | None) -> bool:
    """Whether ``text`` is a question for another desk: by its words, unless the classifier is confident of its intent."""
    if confidence is not None and confidence >= CERTAIN:
        return False
    return bool(_ELSEWHERE.search(text)) and not _MATTER.search(text)


CERTAIN = 0.8
"""Confidence of the intent from which on a question is for this desk, whatever its words are: a shop may sell games.

A classifier of 6,000 Bitext questions was less certain of 3 % of 4,000 others, and of all 46 questions for another desk.
"""

# Beside what poison.py knows: role names at the beginning of a line, words put into the mouth of the model, and itself.
_INSTRUCTION = re.compile(
    r"^\W*(?:system|assistant|developer|tool)\W*:"
    r"|\b(?:assistant|system|bot|ai) ?: (?:the|begin|say|reply|answer|write|output|you|from|ignore)\b"
    r"|\b(?:repl(?:y|ies)|answer|respond|output|say|print)(?: only| back| just)? (?:with )?(?:only )?(?:the )?"
    r"(?:single |exact |following )?(?:words?|phrase|text|string)\b"
    r"|\b(?:only|just) (?:say|reply|answer|output|write|print)\b|\band nothing else\b|\boutput only\b"
    r"|\b(?:repeat|print|show|spell|read|output|tell)(?: me)? (?:the text above|everything above|your (?:\w+ )?"
    r"(?:instructions?|prompts?|configuration|rules|guidelines))\b"
    r"|\bsystem prompts?\b"
    r"|\byour (?:system|hidden|initial|first|secret) (?:prompts?|instructions?|message)\b|\bmy instructions are to\b"
    r"|\b(?:i am|i['’]m) your (?:developer|creator|admin\w*|boss)\b|\bstop being an? (?:support|assistant|agent|bot)\b"
    r"|\byou are (?:now )?(?:an? )?(?:pirate|bot without|ai without|hacker|dan\b)|\bdecode (?:this|that|it)\b"
    r"|\bpretend (?:that )?you (?:have no|are not|are no)\b",
    re.I | re.M,
)

_RELATIVE = (
    r"(?:neighbou?r|wife|husband|ex(?:-\w+)?|boss|friend|girlfriend|boyfriend|mother|mum|mom|father|dad|sister|brother"
    r"|son|daughter|flatmate|room ?mate|colleague|competitor|landlord|tenant)"
)
_THEIRS = r"(?:orders?|purchases?|accounts?|address|invoices?|bills?|passwords?|pin|e-?mail|phone|data|details|card)"
_OTHERS = re.compile(
    r"\b(?:an)?other (?:(?:customer|client|buyer)(?:['’]?s['’]?)?|(?:user|person)['’]s)\b"
    r"|\b(?:some(?:body|one)|any(?:body|one)) else(?:['’]s)?\b"
    r"|\b(?:the|a) (?:customer|user|client|person) (?:who|whose|that|before|after|with the)\b"
    rf"|\bmy (?:\w+ )?{_RELATIVE}['’]s (?:\w+ )?{_THEIRS}\b"
    rf"|\b(?:what|where|which) (?:\w+ )?(?:did|does|has|is) my {_RELATIVE}\b"
    rf"|\b(?:{_THEIRS}|number) of (?:the account of )?(?:my {_RELATIVE}\b|(?-i:(?:Mr|Mrs|Ms|Dr)\.? [A-Z]|[A-Z][a-z]+ [A-Z]))"
    rf"|\b(?:bank details|card number)\b[^.?!]{{0,40}}\b(?:for|of) (?:my {_RELATIVE}\b|the (?:previous|last|next) )"
    r"|\b(?:he|she|they) (?:is|are) a customer\b|\btell me what (?:he|she|they) (?:bought|ordered)\b"
    r"|\b(?:all|list|names|export|dump|which|how many)(?: of)?(?: (?:the|all|your))* (?:customers?|users?|clients?)\b"
    r"|\bcustomer (?:table|list|database|data ?base)\b|\b(?:real|valid) (?:order|card|account) numbers\b"
    rf"|\blog me in(?:to)? (?:to )?my {_RELATIVE}\b|\bis (?-i:[A-Z][a-z]+ [A-Z][a-z]+) a customer\b"
    r"|\bwho (?:else )?(?:lives|does it belong|ordered|has the account)\b|\bnot mine\b[^.]*\. who\b"
    r"|\bwhere (?-i:[A-Z][a-z]+ [A-Z][a-z]+) lives\b",
    re.I,
)

_MATTER = re.compile(
    r"\b(?:order\w*|purchas\w*|account\w*|profile|invoice\w*|bill\w*|refund\w*|reimburs\w*|money|compensat\w*"
    r"|restitution|rebate|pay\w*|checkout|deliver\w*|ship\w*|parcel|package|track\w*|address|cancel\w*|return\w*"
    r"|exchange|product|item\w*|article\w*|newsletter|subscri\w*|unsubscri\w*|password|pin(?: code)?|passcode|log ?in"
    r"|sign(?:ing)? ?(?:in|up)|regist\w*|review\w*|feedback|complain\w*|claim\w*|opinion|comment|hours|contact"
    r"|customer|support|service|agent|operator|representative|hotline|e-?mail|website|shop|store|fee\w*"
    r"|penalt\w*|charge\w*|buy|bought|subscription|membership|premium|warranty|receipt)\b"
    r"|\{\{",
    re.I,
)

_NOTHING = re.compile(
    r"(?:\W|\d|_)*"
    r"(?:(?:hi|hello|hey|hiya|good (?:morning|afternoon|evening|day)|greetings|there|test(?:ing)?|ok(?:ay)?|so|yes|no|well"
    r"|thanks|thank you|bye|anybody there|anyone there|please|(?:[a-z]{1,5} )?[b-df-hj-np-tv-xz]{3,})(?:\W|\d|_)*)*",
    re.I,
)

_ELSEWHERE = re.compile(
    r"\b(?:weather|forecast|rain(?:ing)?|temperature|sunny|jokes?|riddles?|poems?|songs?|sing|story|stories|lyrics"
    r"|football|soccer|match|game|score|olympi\w*|team won|champion(?:ship)?|election\w*|vote|party|parties"
    r"|politic\w*|president|government|minister|religion\w*|god|bible|war|history|capital of|country|planet\w*|stars?"
    r"|universe|black holes?|physics|chemistry|biology|maths?|mathematics|homework|equation|integral|essay|times \d"
    r"|recipes?|bake|cook\w*|cake|restaurants?|dinner|table for|hotels?|flights?|holidays?|trip|travel\w*|train tickets?"
    r"|python|javascript|java|code|coding|program(?:ming)?|function|algorithm|sql|script|translat\w*|in french"
    r"|in spanish|grammar|synonym|films?|movies?|series|books?|novel|music|guitar|piano|headaches?|fever|pain|pills?"
    r"|medicine|doctor|dentist|symptoms?|diagnos\w*|diet|pregnan\w*|vaccin\w*|shares|stocks?|invest\w*|bitcoin|crypto"
    r"|lottery|mortgage|tax(?:es)?|sue|lawyer|court|divorce|neighbou?r|marry|love|girlfriend|boyfriend|relationship"
    r"|feelings?|meaning of life|dog|cat|puppy|horoscope|zodiac|dream|kitchen|tap|plumb\w*|repair my|garden|plants?"
    r"|mountains?|tall is|how old is|population|news|celebrit\w*|who (?:is|was|won|invented|discovered|wrote)"
    r"|how many (?:people|countries|days are)|what (?:year|day) (?:is|was)|what time is it|summari[sz]e|explain to)\b",
    re.I,
)
