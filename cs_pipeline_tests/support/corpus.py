"""A synthetic corpus: questions and answers with made-up personal data, seeded, with every value known.

All numbers are random, but cards and IBANs have correct check digits and phone numbers existing area codes.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from cs_pipeline.text.placeholders import Speaker

_FIRST = [
    "Marisol", "Oluwaseun", "Thandiwe", "Zdenka", "Bartholomew", "Ingeborg", "Krzysztof", "Anneliese", "Siobhán",
    "Evangelina", "Rajesh", "Yukiko", "Fatoumata", "José", "Gwendolyn", "Mohammed", "Désirée", "Wolfgang",
]  # fmt: skip
_LAST = [
    "Okonkwo", "Vandersteen", "Krishnamurthy", "O'Shaughnessy", "Müller-Lüdenscheidt", "Fernández", "Kowalczyk",
    "Abernathy", "Takahashi", "Lindqvist", "Papadopoulos", "Achterberg", "Whitlock", "Delacroix", "Szczepański",
]  # fmt: skip

# A # becomes a random digit; {us}, {x} and {y} are replaced by valid area codes and digits.
_PHONES = [
    "({us}) {x}##-####", "{us}-{x}##-####", "{us}.{x}##.####", "+1 {us} {x}## ####", "1-{us}-{x}##-####", "{us}{x}######",
    "020 7{x}## ####", "07911 ######", "+44 7911 ######", "+44 20 7{x}## ####", "(0161) 4## ####",
    "030 {x}#######", "0171 {x}######", "+49 171 {x}######", "+49 (0)30 {x}#######", "0049 171 {x}######",
    "06 {x}# ## ## ##", "+33 6 {x}# ## ## ##", "01.4{x}.##.##.##", "01 4{x} ## ## ##",
    "61# ### ###", "+34 61# ### ###", "347 {x}######", "+39 347 {x}######",
    "98### #####", "+91 98### #####", "04{y} ### ###", "+61 4{y} ### ###", "(02) 9{x}## ####",
    "+31 6 2#######", "+46 70 ### ## ##", "+81 90 {x}### ####", "+55 11 9{x}###-####", "+48 51# ### ###",
    "+353 86 {x}## ####",
]  # fmt: skip
_AREAS = ["212", "415", "305", "617", "312", "206", "503", "702"]
_ORDERS = [
    "{x}#########", "{us}{x}######", "{us}-{x}##-####", "{x}## ### ####", "0{x}########", "11#-#######-#######",
    "ORD-######", "A#-######", "########", "#####",
]  # fmt: skip
_IBANS = {
    "DE": "#" * 18, "GB": "BARC" + "#" * 14, "FR": "#" * 23, "ES": "#" * 20, "NL": "ABNA" + "#" * 10, "AT": "#" * 16,
    "BE": "#" * 12, "PL": "#" * 24, "CH": "#" * 17, "IE": "AIBK" + "#" * 14, "PT": "#" * 21, "DK": "#" * 14,
    "NO": "#" * 11, "IT": "X" + "#" * 22,
}  # fmt: skip
_CARDS = [("4", 16), ("51", 16), ("54", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14), ("35", 16)]


def _sentences(lines: str) -> dict[str, list[str]]:
    """Reads lines "kind: sentence" into the sentences of each kind of personal data."""
    sentences: dict[str, list[str]] = {}
    for line in lines.strip().splitlines():
        kind, sentence = line.split(": ", 1)
        sentences.setdefault(kind, []).append(sentence)
    return sentences


# <kind> is a random value of the kind; <kind:Placeholder> is one that another placeholder than usual replaces.
_CUSTOMER = _sentences("""
order: Where is my order <order>?
order: I placed order <order> two weeks ago and heard nothing since.
order: Order no. <order> came with the wrong colour.
order: Please cancel <order>, I bought it by mistake.
order: The order number is <order>.
order: <order> is the order I am writing about.
order: my order id: <order>
order: Has <order> been shipped yet?
order: Regarding purchase <order>: one box was empty.
order: I ordered a lamp and a rug last week (<order>) and only the lamp came.
order: It says order #<order> is on hold.
phone: My phone number is <phone>.
phone: Call me back on <phone> please.
phone: You can reach me at <phone> after six.
phone: mobile: <phone>
phone: Text me on <phone> when it is ready.
phone: tel. <phone>
phone: If the driver is lost he can ring <phone>.
phone: I changed my number, it is now <phone>.
phone: Whatsapp <phone> works best for me.
email: My e-mail is <email>.
email: Please send the confirmation to <email>
email: I signed up with <email> years ago.
email: The newsletter still goes to <email>, stop it.
email: contact: <email>
email: It was sent to my old address (<email>).
desk: I wrote to <email:Customer Support Email> and nobody answered.
card: I paid with my card <card>.
card: The charge is on <card>, which I lost.
card: card number <card>
card: You billed my visa <card> twice.
iban: Please refund to IBAN <iban>.
iban: My bank details: <iban>
iban: The money should go to <iban> instead.
iban: iban <iban> belongs to my husband
ip: Your site blocks my IP <ip>.
ip: The login came from <ip>, that was not me.
ip: it says: access from <ip> denied
link: The link <link> does not open.
link: I followed <link> and got an error.
address: My new address is <address>.
address: Please deliver it to <address>.
address: I moved to <address> in May.
address: The parcel went to my old place, <address>.
name: My name is <name>.
name: Please change the account holder to <name>.
name: <name> here, I need some help.
name: The parcel is for <name> and not for me.
""")
_AGENT = _sentences("""
order: I have found order <order> in our system.
order: Order <order> left our warehouse this morning.
order: I can confirm that <order> has been cancelled.
order: The status of your order <order> is unchanged.
phone: We will call you at <phone>.
phone: I see the number on file is <phone>.
phone: Is your phone number still <phone>?
hotline: You can call us on <phone:Customer Support Phone Number> at any time.
hotline: Our hotline is <phone:Customer Support Phone Number>.
email: I have sent the invoice to <email>.
email: Your e-mail address on file is <email>.
card: The refund goes back to card <card>.
iban: We have paid it to <iban>.
address: It will be delivered to <address>.
address: The address that we have is <address>.
name: Hello <name>, thanks for getting in touch.
name: Dear <name>,
name: The account is held by <name>.
""")
_FILLERS = """
Thank you for your help.
I have waited since Monday.
It cost 49.90 EUR and I want my money back.
This is urgent.
I looked at the help page twice.
It happened on 12/05/2024 around 10:30.
We reply within 3 to 5 business days.
There were 2 of 3 parts in the box.
The app is version 10.4.2.
""".strip().splitlines()
_PLACEHOLDERS = {
    "order": "Order Number", "phone": "Customer Phone Number", "email": "Customer Email", "card": "Card Number",
    "iban": "IBAN", "ip": "IP Address", "link": "Personal Link", "address": "Postal Address", "name": "Client Name",
}  # fmt: skip
KINDS = tuple(_PLACEHOLDERS)


@dataclass(frozen=True)
class Planted:
    """A question and its answer, their personal data as pairs of kind and value, and both texts as expected without it."""

    question: str
    answer: str
    subject: str
    name: str
    values: list[tuple[str, str]]
    wanted: tuple[str, str]


def corpus(rows: int, seed: int) -> list[Planted]:
    """``rows`` rows, the same for the same ``seed``. The person of a row has one value of each kind."""
    rng = random.Random(seed)
    planted = []
    for _ in range(rows):
        person = _Person(rng)
        question, wanted_question = _text(rng, person, "customer")
        answer, wanted_answer = _text(rng, person, "agent")
        values = [(kind, value) for kind, value in person.values.items() if value in question + answer]
        subject = f"cust-{rng.randrange(10**6):06}"
        planted.append(
            Planted(question, answer, subject, person.value("name"), values, (wanted_question, wanted_answer))
        )
    return planted


def _text(rng: random.Random, person: "_Person", speaker: Speaker) -> tuple[str, str]:
    """A text of one to three sentences with personal data and one or two without, and the same text with placeholders."""
    sentences = _CUSTOMER if speaker == "customer" else _AGENT
    chosen = [rng.choice(sentences[kind]) for kind in rng.sample(list(sentences), rng.randint(1, 3))]
    chosen += rng.sample(_FILLERS, rng.randint(1, 2))
    greetings = [sentence for sentence in chosen if sentence.startswith(("Hello", "Dear"))]
    rest = [sentence for sentence in chosen if sentence not in greetings]
    rng.shuffle(rest)
    text = rng.choice([" ", "\n"]).join([*greetings, *rest])

    def placeholder(slot: re.Match[str]) -> str:
        return f"{{{{{slot[2] or _PLACEHOLDERS[slot[1]]}}}}}"

    def value(slot: re.Match[str]) -> str:
        return person.value(slot[1] if slot[2] is None else f"desk {slot[1]}")

    return _SLOT.sub(value, text), _SLOT.sub(placeholder, text)


_SLOT = re.compile(r"<(\w+)(?::([\w ]+))?>")


class _Person:
    """The data of one person, drawn on first use."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.values: dict[str, str] = {}
        self._first, self._last = rng.choice(_FIRST), rng.choice(_LAST)

    def value(self, kind: str) -> str:
        make: dict[str, Callable[[], str]] = {
            "name": lambda: f"{self._first} {self._last}",
            "email": self._email,
            "desk email": lambda: self._rng.choice(["support", "help", "service"]) + "@brightmart.example",
            "phone": lambda: self._filled(self._rng.choice(_PHONES)),
            "desk phone": lambda: self._filled("0800 {x}## ####"),
            "order": lambda: self._filled(self._rng.choice(_ORDERS)),
            "card": self._card,
            "iban": self._iban,
            "ip": self._ip,
            "link": self._link,
            "address": self._address,
        }
        return self.values.setdefault(kind, make[kind]())

    def _filled(self, form: str) -> str:
        form = form.format(us=self._rng.choice(_AREAS), x=self._rng.randint(2, 8), y=self._rng.choice([12, 23, 45]))
        return re.sub("#", lambda _: str(self._rng.randrange(10)), form)

    def _email(self) -> str:
        plain = re.sub(r"[^a-z]", "", self._last.lower().replace("ü", "ue"))
        local = self._rng.choice(
            [f"{plain}.{{x}}#", f"{plain}{{x}}###", f"{plain}+shop{{x}}", f"j_{plain}{{x}}", f"{plain.upper()}{{x}}"]
        )
        domain = self._rng.choice(
            ["example.org", "mail.example.com", "post-box.example.de", "example.co.uk", "xn--exmple-cua.example"]
        )
        return self._filled(f"{local}@{domain}")

    def _card(self) -> str:
        prefix, length = self._rng.choice(_CARDS)
        digits = prefix + self._filled("#" * (length - len(prefix) - 1))
        doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
        digits += str(-sum(value - 9 * (value > 9) for value in doubled) % 10)
        sizes = [4, 4, 4, 4] if length == 16 else [4, 6, length - 10]
        groups = [digits[sum(sizes[:place]) : sum(sizes[: place + 1])] for place in range(len(sizes))]
        return self._rng.choice([" ", "-", ""]).join(groups)

    def _iban(self) -> str:
        country = self._rng.choice(list(_IBANS))
        account = self._filled(_IBANS[country])
        number = int("".join(str(int(character, 36)) for character in f"{account}{country}00"))
        iban = f"{country}{98 - number % 97:02}{account}"
        grouped = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))
        return self._rng.choice([iban, grouped, iban.lower()])

    def _ip(self) -> str:
        if self._rng.random() < 0.6:
            return ".".join(str(self._rng.randint(1, 254)) for _ in range(4))
        group = [f"{self._rng.randint(16, 65535):x}" for _ in range(6)]
        return self._rng.choice(
            [f"2001:db8:{':'.join(group)}", f"2001:db8::{group[0]}:{group[1]}", f"fe80::{group[0]}:1"]
        )

    def _link(self) -> str:
        token = "".join(self._rng.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJK23456789", k=24)) + "7"
        return self._rng.choice([
            f"https://shop.example/reset?token={token}", f"http://www.shop.example/o/{token}",
            f"www.shop.example/track?id={token}",
            f"https://shop.example/invoice/{self._rng.randrange(10**7, 10**8)}.pdf", f"shop.example/verify/{token}#top",
        ])  # fmt: skip

    def _address(self) -> str:
        number, code = self._rng.randint(1, 899), self._rng.randint(10000, 98999)
        return self._rng.choice([
            f"{number} Garden Street, Springfield, IL {code}",
            f"{number} Old Mill Road, Apt {number % 30 + 1}, Austin, TX {code}",
            f"Lindenstraße {number}, {code} Potsdam", f"Berliner Str. {number}, {code} Köln",
            f"{number} rue des Lilas, {code} Lyon", f"Calle de Alcalá {number}, {code} Madrid",
            f"Via Garibaldi {number}, {code} Torino",
            f"{number} Kingfisher Close, Leeds LS{number % 9 + 1} {number % 9}AB", f"{number} W 42nd Street",
        ])  # fmt: skip
