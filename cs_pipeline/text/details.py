"""Details that an answer asks a customer for: order numbers, addresses, names. Which matter, and how they are asked for."""

import re
from collections.abc import Collection, Sequence

from cs_pipeline.text.placeholders import catalogue

MATTERS: dict[str, tuple[str, ...]] = {
    "cancel_order": ("Order Number",),
    "change_order": ("Order Number",),
    "change_shipping_address": ("Order Number", "Postal Address"),
    "check_invoice": ("Invoice Number",),
    "create_account": ("Customer Email",),
    "delete_account": ("Customer Email",),
    "delivery_period": ("Order Number", "Tracking Number"),
    "get_invoice": ("Invoice Number",),
    "get_refund": ("Order Number",),
    "newsletter_subscription": ("Customer Email",),
    "payment_issue": ("Order Number",),
    "recover_password": ("Customer Email",),
    "registration_problems": ("Customer Email",),
    "set_up_shipping_address": ("Postal Address",),
    "switch_account": ("Customer Email",),
    "track_order": ("Order Number", "Tracking Number"),
    "track_refund": ("Order Number", "Tracking Number"),
}
"""What nobody can look after a request without, by its intent; the others can be answered without knowing who asks."""

_ASKABLE = ("Order Number", "Invoice Number", "Tracking Number", "Ticket Number", "Refund ID", "Postal Address")


def worth_asking(lacking: Sequence[str], intent: str | None, *, private: bool) -> list[str]:
    """Of the ``lacking`` placeholders of an answer those whose values the customer is asked for, at most two.

    ``private``: only what matters to the ``intent``.
    """
    matter = MATTERS.get(intent or "", ()) if private else _ASKABLE
    return [name for name in lacking if name in matter][:2]


def request(names: Sequence[str]) -> str:
    """A polite sentence that asks for the values of ``names``."""
    return f"Could you please tell me your {' and your '.join(catalogue()[name].phrase for name in names)}?"


def asked_for(sentence: str) -> set[str]:
    """The placeholders whose values ``sentence`` asks the customer to tell; empty where it asks for none.

    To type something into a form of the shop's own is no telling.
    """
    asks = _TELL.search(sentence)
    if asks is None:
        return set()
    told = _NOT_TOLD.split(sentence[asks.end() :], maxsplit=1)[0]
    return {name for name, words in _DETAILS.items() if words.search(told)}


def narrowed(sentence: str, intent: str | None, known: Collection[str]) -> str:
    """``sentence``, asking for no more than matters to the ``intent`` and is not ``known``; empty where nothing is left."""
    wanted = asked_for(sentence)
    needed = [name for name in MATTERS.get(intent or "", ()) if name in wanted and name not in known]
    if wanted <= set(needed):
        return sentence
    return f"{request(needed)}{sentence[len(sentence.rstrip()) :]}" if needed else ""


_TELL = re.compile(
    r"\b(?:please|kindly|could you|can you|would you|helpful if you)\b(?:(?!\bnever\b|\bnot\b|n['’]t\b)[^.?!]){0,40}"
    r"\b(?:provide|share|tell|send|give|confirm|specify|supply|furnish|reply with)\b"
    r"|\b(?:i|we)(?:['’]ll| will| would|['’]d)? (?:also )?(?:need|require)\b(?= (?:is )?(?:\w+ )?(?:your|the)\b)"
    r"|\bmay i (?:please )?(?:have|ask for)\b|\bwhat(?: is|['’]s) your\b",
    re.I,
)
_NOT_TOLD = re.compile(r"\b(?:so that|which|what|when|where|whether|why|how|if)\b|[;:.?]", re.I)
"""Where what is to be told ends: "tell me what you ordered as number 5" does not ask for the number."""
_DETAILS = {
    name: re.compile(rf"(?:\{{\{{{re.escape(name)}\}}\}}|\b(?:{words})s?\b)", re.I)
    for name, words in {
        "Order Number": r"order (?:number|id)|purchase (?:number|id)",
        "Invoice Number": r"invoice (?:number|id)|bill number",
        "Tracking Number": r"tracking (?:number|id)",
        "Account Number": r"account (?:number|id|details|information)|user ?name|customer (?:number|id)",
        "Customer Email": r"e-?mail(?: address)?|registered address",
        "Customer Phone Number": r"(?:tele)?phone(?: number)?|mobile(?: number)?|contact (?:details|information)",
        "Postal Address": r"(?<!email )(?<!e-mail )(?<!registered )(?<!ip )address|postcode|zip code",
        "Client Name": r"(?:full |first |last |your )name|date of birth|personal (?:details|information|data)",
        "Card Number": r"card (?:number|details)|payment details|bank (?:details|account)|billing information",
    }.items()
}
