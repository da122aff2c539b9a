"""What an answer does instead of answering: it redirects, asks back, refuses or hands over to a person.

Each rule reads sentences and knows nothing of the question. At the first try on answers that were labelled by hand and
that the rules were not written with (``cs_pipeline_tests/evaluate/conduct.yaml``; the same hand wrote both, so take it
for an upper bound) they found 12 of 12 that redirect, 11 of 12 that ask back, 12 of 12 that refuse and 10 of 12 that
hand over, and took one of 20 others for a refusal. Of Bitext's 2,414 real validation and test answers 0.2 % seem to
redirect, 2.5 % to ask back, 0.1 % to refuse and 2.6 % hand over, two thirds of the answers to those who ask for a
person among them.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Conduct:
    """What one answer does; an answer may do several of these, and an ordinary one does none."""

    redirects: bool
    """Says what this desk is for, or that the request is not for it."""
    asks_back: bool
    """Says that the request is not understood, or asks what is wanted."""
    refuses: bool
    """Says no."""
    hands_over: bool
    """Says that a person takes over; to name a hotline is no handing over."""


def conduct(answer: str) -> Conduct:
    """What ``answer`` does, by its words."""
    return Conduct(
        redirects=any(map(_says_what_it_is_for, _sentences(answer))),
        asks_back=bool(_ASKS_BACK.search(answer)),
        refuses=bool(_REFUSES.search(answer)),
        hands_over=bool(_HANDS_OVER.search(answer)),
    )


def refused_part(answer: str) -> str:
    """The sentences of ``answer`` that refuse: what is quoted there was not obeyed."""
    return " ".join(part for part in _sentences(answer) if _REFUSES.search(part))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|\n+", text)


def _says_what_it_is_for(sentence: str) -> bool:
    if _CONDITION.match(sentence):
        return False
    matters = {match.lower().rstrip("s") for match in _A_MATTER.findall(sentence)}
    # As no answer to one question does.
    lists = len(matters) >= _A_LIST and re.search(r"\b(?:and|or)\b", sentence) and _OFFERS.search(sentence)
    return bool(lists or _REDIRECTS.search(sentence))


_CONDITION = re.compile(
    r"\W*(?:if|should|for any|in case|feel free|please (?:feel|do|don['’]t)|don['’]t|do not)\b", re.I
)
_OFFERS = re.compile(r"\b(?:help|assist|here for|answer|support|ask me|look after|know about)\b", re.I)
_MATTER = (
    r"(?:orders?|purchases?|accounts?|products?|services?|invoices?|bills?|deliver(?:y|ies)|shipping|shipments?"
    r"|refunds?|payments?"
    r"|subscriptions?|newsletters?|returns?|passwords?|shop|store|company|customer service|customer support)"
)
_REDIRECTS = re.compile(
    r"\b(?:i|we)(?: can|['’]m| am|['’]re| are)? ?(?:only|just) (?:able to |here to )?(?:help|assist|answer|talk|deal"
    r"|support|here for)\b"
    r"|\b(?:help|assist|answer\w*|questions?) (?:you )?only (?:with|about|on)\b"
    r"|\b(?:outside|beyond)(?: of)? (?:my|our|what (?:i|we)|the (?:scope|range)|this (?:desk|chat|service))"
    r"|\bout of (?:scope|my area|my field)\b|\boff[- ]topic\b"
    r"|\bnot (?:something|a (?:topic|question|subject|matter)|what) (?:that )?(?:i|we|this|our)(?:['’]m| am| can| are"
    r"|['’]re)?\b"
    r"|\bnot (?:the right (?:place|address|one|desk|person)|made for|set up for|designed (?:for|to))\b"
    r"|\b(?:i['’]m|i am|as|this is|we are|we['’]re) (?:a|an|the|your|our) (?:\w+ )?(?:customer[- ])?(?:support|service"
    r"|help) "
    r"(?:assistant|agent|bot|chat|desk|team)\b"
    rf"|\b(?:questions?|requests?|matters?|topics?|things?|anything|something|everything|whatever)(?: else)?(?: that)?"
    rf" (?:about|regarding|concerning|concerns?|related to|relating to|to do with|around|on) (?:(?:your|our|an?|the"
    rf"|one of your|one"
    rf" of our|my) )?(?:\w+ )?{_MATTER}\b(?=[^.!?]*[.!?]?\s*(?:\Z|\n|(?:how|what|just|is|do|so|please|let)\b))"
    rf"|\b(?:back|return) to (?:your|our) (?:\w+ )?{_MATTER}\b",
    re.I,
)


_A_LIST = 3
_A_MATTER = re.compile(
    r"\b(?:orders|purchases|accounts?|invoices|bills|deliver(?:y|ies)|shipping|refunds|payments|subscriptions"
    r"|returns)\b",
    re.I,
)
_ASKS_BACK = re.compile(
    r"\b(?:did|do|could|can)(?:n['’]t| ?not) (?:quite |fully |really )?(?:understand|catch|follow|get|make out"
    r"|see what|tell what)\b"
    r"|\bnot (?:quite |entirely )?(?:sure|clear|certain)(?: to me)? (?:what|which|whether you|how you)\b"
    r"|\b(?:what|which)(?: \w+){0,3} (?:would you like|do you (?:want|need|mean|wish|have in mind)|did you mean"
    r"|should i|shall i|can i"
    r"|may i|is it (?:that|about))\b"
    r"|\bhow (?:can|may|could) (?:i|we) (?:help|assist|be of (?:help|service))(?: you)?(?: today| with that)?\?"
    r"|\b(?:tell|let) (?:me|us) (?:know )?(?:what|which|a little more|more|in a few words|how (?:i|we))\b"
    r"|\b(?:could|can|would) you (?:please )?(?:explain|clarify|rephrase|describe|tell me (?:what|which|more)"
    r"|say (?:that|it) again"
    r"|specify|be more (?:specific|precise))\b|\bplease (?:clarify|rephrase|explain|describe|specify|choose)\b"
    r"|\bdo you (?:mean|want me to|wish to)\b[^.?!]*\?|\bwhat (?:is it|exactly|about|do you)\b[^.?!]*\?",
    re.I,
)
_DO = (
    r"(?:help|assist|share|give|disclose|do|provide|tell|show|access|ignore|reveal|follow|comply|discuss|send|look"
    r"|write|say|print|read"
    r"|pass|hand|change|reset|cancel|log|confirm|act|pretend|repeat|output|play|answer|release|fulfil|open|make|grant"
    r"|offer|accept"
    r"|be|export|list|name|talk|speak|go|edit|process|allow|complete|approve|deliver|disregard|accommodate|speculate"
    r"|offer|search|find)"
)
_REFUSES = re.compile(
    r"\b(?:i|we)(?:['’]m| am|['’]re| are)? (?:afraid |sorry,? (?:but )?)?(?:that )?(?:i |we )?(?:(?:really |simply "
    r"|unfortunately )?(?:cannot|can ?not|can['’]t"
    r"|won['’]t|will not|may not|must not|am not going to|do not|don['’]t|(?:am|are|['’]m|['’]re)? ?(?:not (?:able"
    r"|allowed|permitted|in a"
    r" position|authori[sz]ed|going)|unable) to)) (?:\w+ ){0,2}?"
    rf"{_DO}\b(?! (?:wait|thank|stress|it enough|to hear))"
    r"|\b(?:i|we) (?:must|have to|need to|will have to) (?:\w+ )?(?:decline|refuse|say no|keep (?:that|it|them|this))\b"
    r"|\b(?:i|we)(?:['’]d| would)? (?:rather not|refuse|decline)\b|\bno, (?:i|we|that|sorry)\b|\b(?:sorry"
    r"|afraid)[,:]? (?:but )?no\b"
    r"|\b(?:that|this|it|which|such \w+|\w+ data|(?:the|their|his|her) \w+)(?: (?:is|are|remains?|stays?)"
    r"|['’]s) (?:strictly |always )?(?:confidential|private|not"
    r" possible|not allowed|not permitted|off limits|secret|between)\b"
    r"|\bfor (?:reasons of )?(?:privacy|security|data protection|confidentiality)(?: reasons)?,? [^.!?]*\b(?:not"
    r"|n['’]t|only|never|unable)\b"
    r"|\bonly (?:to |with |for )?(?:the|its|their|his or her) (?:account )?(?:owner|holder"
    r"|customer)s?\b[^.!?]*\b(?:can|may|has|have|know)\b"
    r"|\b(?:i|we) (?:never|do not|don['’]t) (?:share|give|pass on|disclose|reveal|tell|hand out)\b"
    r"|\bout of the question\b",
    re.I,
)
_ONE_PERSON = (
    r"(?:colleagues?|(?:human |live )agents?|person|representatives?|specialists?|managers?|supervisors?"
    r"|advis[eo]rs?|operator)"
)
_PERSON = (
    r"(?:colleagues?|(?:human |live |support |service )?agents?|human|person|people|representatives?|specialists?"
    r"|managers?|supervisors?"
    r"|someone|somebody|member of (?:our|the|my) (?:\w+ )?(?:team|staff)|advis[eo]rs?|experts?|(?:\w+ )?team"
    r"|(?:\w+ )?department|operator)"
)
_HANDS_OVER = re.compile(
    rf"\b(?:transfer|connect|pass|hand|put|forward|escalate|refer|bring|route|direct)(?:r?ed|ed|ing|ring|s)? (?:you"
    rf"|this|that|it|your \w+|the \w+)"
    rf"(?: \w+){{0,3}}? (?:to|through|on|over|in touch|with|up|in)\b[^.!?]{{0,40}}\b{_PERSON}\b"
    rf"|\b(?:i|we)(?:['’]ll| will|['’]m| am|['’]ve| have| are| shall| would like to| want to)? ?(?:\w+ )?(?:bring|get"
    rf"|ask|call|bringing|asking|asked|involve|involving|inform"
    rf"|alert|alerting|alerted|fetch|notify|told|tell|telling)(?: in)? (?:a|an|one of|our|my"
    rf"|the)\b[^.!?]{{0,25}}\b{_PERSON}\b"
    rf"|\b(?:a|an|one of (?:our|my)|our|my|the) (?:\w+ )?{_ONE_PERSON} (?:will|is going to|is about to|takes? over"
    rf"|can take over|shall)\b"
    rf"|\b{_PERSON} (?:will|is going to) (?:take over|call|contact|get back|be in touch|write|phone|ring|join"
    rf"|look after|see to|deal with)\b"
    rf"|\b(?:was|is|has been|have been) (?:escalated|passed on|handed over|transferred) to (?:\w+ )?{_PERSON}\b"
    r"|\bstay (?:on the line|in (?:this|the) chat)\b",
    re.I,
)
