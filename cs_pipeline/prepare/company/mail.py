"""What mail programs and help desks add to a person's words: quoted history, signatures, disclaimers, automatic replies.

English, German, French, Spanish, Italian, Portuguese and Dutch. In doubt the words stay: what is cut is lost to training.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_QUOTED = re.compile(r"[ \t]*>(?!=)")
_AMOUNTS = re.compile(r"[ \t]*>[ \t]*[\d$€£]")
_SAID = r"(?:wrote|schrieb|a écrit|escribió|ha scritto|escreveu|schreef)"
_ATTRIBUTION_START = re.compile(r"[ \t]*(?:On|Am|Le|El|Il|Em|Op)\b", re.I)
_ATTRIBUTION = re.compile(
    r"\s*(?:On\b.{5,250}\bwrote|(?:Am|Op)\b.{5,250}\b(?:schrieb|schreef)\b.{0,150}|Le\b.{5,250}\ba écrit"
    r"|El\b.{5,250}\bescribió|Il\b.{5,250}\bha scritto|Em\b.{5,250}\bescreveu)\s?:\s*",
    re.I,
)
# What a mail program writes has the hour or the address; "On 5 May your agent wrote:" may be a customer's own report.
_CLOCK_OR_ADDRESS = re.compile(r"\d[:h]\d\d|@")
_SEPARATOR = re.compile(
    r"\W{0,3}-{2,}\s*(?:Original Message|Forwarded message|(?:Ursprüngliche|Weitergeleitete) Nachricht"
    r"|Original-?nachricht|Message (?:d['’]origine|original|transféré)|Mensaje (?:original|reenviado)"
    r"|Messaggio (?:originale|inoltrato)|Mensagem (?:original|encaminhada)"
    r"|(?:Oorspronkelijk|Doorgestuurd) bericht)\s*-{2,}\s*|Begin forwarded message:\s*",
    re.I,
)
_REPLY_ABOVE = re.compile(r"\s*##-.{1,200}-##\s*")
_FROM = re.compile(r"\W{0,3}(?:From|Von|De|Da|Van)\W{0,3}:", re.I)
_SENT = re.compile(r"\b(?:Sent|Gesendet|Envoyé|Enviado|Enviada|Inviato|Verzonden)(?: el| em| le)?\W{0,3}:", re.I)
_DATE = re.compile(r"^\W{0,3}(?:Date|Datum|Fecha|Data)\W{0,3}:", re.I | re.M)
_SUBJECT = re.compile(r"^\W{0,3}(?:Subject|Betreff|Objet|Asunto|Oggetto|Assunto|Onderwerp)\W{0,3}:", re.I | re.M)
_RULE = re.compile(r"[ \t]*[-_=*]{2,}[ \t]*")

_DEVICES = (
    r"(?:iPhone|iPad|Android|Galaxy|Samsung|Huawei|Xiaomi|Pixel|BlackBerry|Windows|Outlook|Yahoo|Mail|Handy|Smartphone)"
)
_DEVICE = re.compile(
    r"\W{0,3}(?:(?:Sent|Envoyé|Enviado|Enviada|Inviato|Verzonden|Von|Gesendet)"
    r"(?: from| mit| von| über| de| depuis| à partir de| desde| do| dal?| met| vanaf| via)?"
    r"(?: my| meinem| mon| mi| mio| meu| mijn)?"
    rf"\b.{{0,20}}\b{_DEVICES}\b.{{0,40}}|Get Outlook for \w+)",
    re.I,
)
_LEGAL = re.compile(
    r"\W{0,3}(?:confidentiality notice|legal disclaimer|vertraulichkeitshinweis|avis de confidentialité"
    r"|aviso de confidencialidad|aviso legal|avviso di riservatezza)\b"
    r"|\W{0,3}(?:this|the information in this|the contents of this) (?:e-?mail|message|communication)\b"
    r".{0,300}\b(?:privileged|intended (?:only|solely|for the)|addressee)"
    r"|\W{0,3}if you are not the intended recipient\b"
    r"|\W{0,3}please consider the environment before printing\b"
    r"|\W{0,3}diese (?:e-?mail|nachricht)\b.{0,200}\bvertraulich"
    r"|\W{0,3}ce (?:courriel|message|mail|e-?mail)\b.{0,200}\bconfidentiel"
    r"|\W{0,3}(?:este|esta) (?:mensaje|correo|mensagem)\b.{0,200}\bconfidenc"
    r"|\W{0,3}(?:questo messaggio|questa e-?mail)\b.{0,200}\briservat"
    r"|\W{0,3}dit (?:bericht|e-?mailbericht)\b.{0,200}\bvertrouwelijk",
    re.I,
)

_REGARDS = (
    r"(?:(?:thanks?|thank you|many thanks)(?: and|,| &) )?(?:with )?"
    r"(?:(?:best|kind|kindest|warm|warmest) (?:regards|wishes)|regards|yours (?:sincerely|faithfully|truly)"
    r"|sincerely(?: yours)?|respectfully|all the best"
    r"|(?:mit )?(?:(?:freundlich|best|herzlich|lieb|viel|schön)\w* )?gr(?:ü|ue)(?:ß|ss)en?(?: aus [^\W\d_]{2,30})?"
    r"|mfg|hochachtungsvoll"
    r"|(?:bien )?cordialement|bien à vous|(?:sincères |meilleures )?salutations(?: distinguées)?"
    r"|saludos(?: cordiales)?|un(?: cordial)? saludo|atentamente|(?:cordiali |distinti )?saluti"
    r"|atenciosamente|(?:com os )?(?:melhores )?cumprimentos"
    r"|(?:met )?(?:vriendelijke|hartelijke) groet(?:en)?)"
)
_THANKS = (
    r"(?:thanks|thank you|many thanks)(?: again| in advance| so much| very much| a lot| for your (?:help|time))?"
    r"|cheers|best|take care|(?:vielen )?dank[e]?|lg|vg|merci(?: beaucoup| d['’]avance)?|(?:muchas )?gracias"
    r"|(?:mille )?grazie|(?:muito )?obrigad[oa]|bedankt"
)
_CLOSING = re.compile(rf"[ \t]*(?:(?P<regards>{_REGARDS})|{_THANKS})[ \t]*[,.!;:]*[ \t]*", re.I)
_NAMES = r"(?-i:[^\W\d_a-z][\w.'’-]*)(?: (?-i:[^\W\d_a-z][\w.'’-]*)){0,3}"
_CLOSING_AND_NAME = re.compile(rf"(?P<words>(?:.*[.!?])?)[ \t]*\b{_REGARDS}[ \t]*[,.!]?[ \t]+{_NAMES}[ \t]*", re.I)
_CONTACT = re.compile(r"\S+@\S+|(?:https?://|www\.)\S+|\+?\d[\d ()/.-]{5,}\d|\|")
_OF = re.compile(r"(?:and|at|da|de|del|der|di|do|du|et|for|für|la|le|of|the|to|und|van|von|y)", re.I)
_POSTSCRIPT = re.compile(r"\W{0,2}p\.? ?s\b", re.I)
_SENTENCE_END = re.compile(r"(?<!\binc)(?<!\bltd)(?<!\bco)(?<!\bcorp)(?<!\b\w)[.!?:;…]\Z", re.I)
# Below a customer's name there often stands the one number that the whole mail is about.
_ABOUT_A_NUMBER = re.compile(
    r"\b(?:order|invoice|ticket|case|tracking|account|customer|ref|booking|bestell|rechnung|kunden|auftrag|commande"
    r"|facture|pedido|factura|ordine|fattura|encomenda|bestelling|factuur)\w*\b.*\d",
    re.I,
)
_LINES_OF_A_SIGNATURE, _CHARACTERS_OF_A_LINE, _WORDS_OF_A_LINE = 10, 80, 8
_ROUNDS = 20


@dataclass(frozen=True)
class _Sign:
    """A pattern, and ``words`` of which it needs one: to look for them costs a fiftieth of looking for the pattern."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, words: str, *patterns: str) -> "_Sign":
        return cls(tuple(words.split("|")), re.compile("|".join(patterns), re.I | re.S))

    def is_in(self, text: str, small: str) -> bool:
        """``small`` is ``text`` in small letters."""
        return any(map(small.__contains__, self.words)) and self.pattern.search(text) is not None


_MAIL = r"(?:ticket|request|case|enquiry|inquiry|message|e-?mail)"
_AUTOMATIC = (
    _Sign.of(
        "autom|auto-|auto ",
        r"\bthis is an automat(?:ed|ic)\b",
        r"\bthis (?:e-?mail|message|reply) (?:was|is|has been) (?:sent automatically|automat\w+ (?:generated|sent))",
        r"\A\W*(?:automatic reply|auto(?:matic)?[- ]?response|auto[- ]?reply)\b",
        r"\bdies ist eine automat\w+",
        r"\bautomatisch (?:generiert|erstellt|versandt|versendet)",
        r"\bceci est (?:une? )?(?:réponse|message|e-?mail|courriel) automatique\b",
        r"\besta? es una? (?:respuesta automática|mensaje automático|correo automático)\b",
        r"\bquest[oa] è una? (?:risposta automatica|messaggio automatico)\b",
        r"\best[ae] é uma? (?:resposta automática|mensagem automática)\b",
        r"\bdit is een automatisch\b",
        r"\A\W*(?:réponse automatique|respuesta automática|risposta automatica|resposta automática|automatisch antwoord)\b",
    ),
    _Sign.of(
        "received|created|opened|logged|registered",
        rf"\b{_MAIL}\b[ (\[#:]{{1,3}}(?=[\w-]*\d)[\w-]{{1,20}}[)\]]? (?:has been|was) "
        r"(?:received|created|opened|logged|registered)\b",
        rf"\byour {_MAIL} (?:has been|was) (?:received|created|logged) and is being\b",
    ),
    _Sign.of(
        "get back|respond|reply|be in touch|answer",
        r"\b(?:we have received your|thank you for (?:contacting|reaching out to|writing to))\b.{0,300}"
        r"\b(?:will|shall|aim to|usually|try to) (?:get back|respond|reply|be in touch|answer)\b",
    ),
    _Sign.of(
        "closed|solved|ended",
        r"\bthis (?:ticket|case|conversation|chat) (?:has been|was) (?:automatically )?(?:closed|solved|ended)\b.{0,60}"
        r"\b(?:inactivity|automatically|no (?:reply|response))\b",
    ),
)
_AWAY = _Sign.of(
    "office|leave|vacation|desk|büro|im haus|abwesen|absent|congé",
    r"\A\W*(?:out of (?:the )?office|abwesenheitsnotiz)\b",
    r"\A.{0,200}?\b(?:i am|i['’]m|i will be) (?:currently )?"
    r"(?:out of (?:the )?office|on (?:annual |parental |sick )?leave|on vacation|away from my desk)\b",
    r"\A.{0,200}?\bich bin (?:derzeit |zurzeit |momentan |aktuell )?(?:nicht im (?:büro|haus)|abwesend)\b",
    r"\A.{0,200}?\bje suis (?:actuellement )?(?:absente?|en congés?)\b",
)


def own_words(text: str) -> str:
    """``text`` without quoted mail, signature, disclaimer and "Sent from my …"; empty where it holds nothing else."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    # Under what is cut there may be more; a text that needs more rounds than this was built to cost time.
    for _ in range(_ROUNDS):
        before, text = text, _without_signature(_without_history(text))
        if text == before:
            break
    return text


def is_automatic(words: str, also: Iterable[re.Pattern[str]] = ()) -> bool:
    """Whether no person wrote ``words``: receipts, absences, notices of help desks, and what matches one of ``also``."""
    small = words.lower()
    return (
        any(sign.is_in(words, small) for sign in _AUTOMATIC)
        # Whoever asks something while away from the office wants an answer.
        or ("?" not in words and _AWAY.is_in(words, small))
        or any(expression.search(words) for expression in also)
    )


def _without_history(text: str) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if length := _attribution(lines, place):
            below = _next_written(lines, place + length)
            if below < len(lines) and _QUOTED.match(lines[below]):
                place = _quote_end(lines, below)
            elif _CLOCK_OR_ADDRESS.search(" ".join(lines[place : place + length])):
                break
            else:
                kept.append(line)
                place += 1
        elif _SEPARATOR.fullmatch(line) or _is_header(lines, place):
            break
        elif _REPLY_ABOVE.fullmatch(line):
            # Help desks write it above their own text, and quote it in the customer's reply.
            if any(map(str.strip, kept)):
                break
            place += 1
        elif _QUOTED.match(line):
            end = _quote_end(lines, place)
            if _is_list(lines[place:end], kept):
                kept += lines[place:end]
            place = end
        else:
            kept.append(line)
            place += 1
    while kept and (not kept[-1].strip() or _RULE.fullmatch(kept[-1])):
        kept.pop()
    return "\n".join(kept).strip()


def _attribution(lines: list[str], place: int) -> int:
    """How many lines from ``place`` on say who wrote what is quoted below them, 0 if they do not."""
    if not _ATTRIBUTION_START.match(lines[place]):
        return 0
    for length in (1, 2, 3):
        if _ATTRIBUTION.fullmatch(" ".join(lines[place : place + length])):
            return length
    return 0


def _is_header(lines: list[str], place: int) -> bool:
    """Whether the head of a mail begins here. A journey has From, To and Date too, but no Sent and no Subject."""
    if not _FROM.match(lines[place]):
        return False
    head = "\n".join(line[:300] for line in lines[place : place + 6])
    return bool(_SENT.search(head) or (_DATE.search(head) and _SUBJECT.search(head)))


def _is_list(block: list[str], before: list[str]) -> bool:
    """Whether lines that begin with > are the writer's own: amounts, or a list that a colon announces."""
    if all(map(_AMOUNTS.match, block)):
        return True
    above = next((line.rstrip() for line in reversed(before) if line.strip()), "")
    return above.endswith(":") and not re.search(rf"{_SAID}\s?:\Z", above, re.I)


def _quote_end(lines: list[str], place: int) -> int:
    while place < len(lines) and _QUOTED.match(lines[place]):
        place += 1
    return place


def _next_written(lines: list[str], place: int) -> int:
    while place < len(lines) and not lines[place].strip():
        place += 1
    return place


def _without_signature(text: str) -> str:
    lines = [line for line in text.split("\n") if not (len(line) <= 120 and _DEVICE.fullmatch(line))]
    while lines and not lines[-1].strip():
        lines.pop()
    kept: list[str] = []
    place = 0
    while place < len(lines):
        line, end = lines[place], place
        if _LEGAL.match(line):
            while end < len(lines) and lines[end].strip():
                end += 1
        elif line in ("-- ", "--", "\u2014"):
            end = _signature_end(lines, place + 1)
            whole = end == len(lines) or (line == "-- " and len(lines) - place <= 2 * _LINES_OF_A_SIGNATURE)
            end = len(lines) if whole else place
        elif closing := _CLOSING.fullmatch(line):
            end = _signature_end(lines, place + 1)
            named = any(map(str.strip, lines[place + 1 : end]))
            if not closing["regards"] and not named:
                end = place
            elif not named and _is_lone_name(lines, end):
                end = len(lines)
        elif len(line) <= 1_000 and (signed := _CLOSING_AND_NAME.fullmatch(line)):
            end = _signature_end(lines, place + 1)
            kept.append(signed["words"])
        if end == place:
            kept.append(line)
        place = max(end, place + 1)
    return "\n".join(kept).strip()


def _signature_end(lines: list[str], place: int) -> int:
    """Where the lines that look like name, office and address end; ``place`` if there are none or too many."""
    end, found = place, 0
    for at in range(place, len(lines)):
        if not lines[at].strip():
            continue
        if not _is_of_signature(lines[at]):
            break
        end, found = at + 1, found + 1
        if found > _LINES_OF_A_SIGNATURE:
            return place
    return end


def _is_of_signature(line: str) -> bool:
    line = line.strip()
    if len(line) > _CHARACTERS_OF_A_LINE or _POSTSCRIPT.match(line) or _ABOUT_A_NUMBER.search(line):
        return False
    if _CLOSING.fullmatch(line) or _RULE.fullmatch(line):
        return True
    rest, contacts = _CONTACT.subn(" ", line)
    words = re.findall(r"[^\W\d_][\w'’]*", rest)
    named = [word for word in words if not _OF.fullmatch(word)]
    if contacts and len(words) <= 2:
        return True
    proper = bool(named) and all(word[0] == word[0].upper() for word in named)
    return proper and len(words) <= _WORDS_OF_A_LINE and not _SENTENCE_END.search(line)


def _is_lone_name(lines: list[str], place: int) -> bool:
    """Whether all that is left from ``place`` on is a name in small letters, "jane" or "jane doe"."""
    words = " ".join(lines[place : place + 3]).split() if len(lines) - place <= 3 else []
    return 1 <= len(words) <= 2 and all(re.fullmatch(r"[^\W\d_]+", word) for word in words)
