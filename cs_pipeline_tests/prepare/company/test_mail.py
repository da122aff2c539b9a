import re
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.company.mail import is_automatic, own_words

WORDS = "My parcel has not come.\nWhere is it?"

HISTORY = [
    "On Mon, 5 Jan 2026 at 10:00, Jane Doe <jane@example.com> wrote:\n> Hello\n>\n> we have sent it",
    "On Mon, 5 Jan 2026 at 10:00 Jane Doe wrote:\n\nHello, we have sent it.",
    "On Mon, Jan 5, 2026 at 10:00 AM A Very Long Name <a.very.long.name\n@mail.example.com> wrote:\n\nwe have sent it",
    "On 5 January 2026 Jane wrote:\n> we have sent it",
    "On Monday Jane wrote:\n\n> we have sent it",
    "Am 05.01.2026 um 10:00 schrieb Jane Doe:\n> wir haben es geschickt",
    "Am Mo., 5. Jan. 2026 um 10:00 Uhr schrieb Jane Doe <jane@example.com>:\n\nwir haben es geschickt",
    "Le lun. 5 janv. 2026 à 10:00, Jane Doe <jane@example.com> a écrit\u00a0:\n> bonjour",
    "El lun, 5 ene 2026 a las 10:00, Jane Doe (<jane@example.com>) escribió:\n> hola",
    "Il giorno lun 5 gen 2026 alle 10:00 Jane Doe ha scritto:\n> ciao",
    "Em seg., 5 de jan. de 2026 às 10:00, Jane <jane@example.com> escreveu:\n> olá",
    "Op ma 5 jan 2026 om 10:00 schreef Jane Doe <jane@example.com>:\n> hallo",
    "-----Original Message-----\nFrom: Jane\n\nwe have sent it",
    "--- Ursprüngliche Nachricht ---\nwir haben es geschickt",
    "-------- Message d'origine --------\nbonjour",
    "---------- Forwarded message ---------\nhello",
    "Begin forwarded message:\n\nhello",
    "From: Jane Doe <jane@example.com>\nSent: Monday, 5 January 2026 10:00\nTo: Tom\nSubject: Re: parcel\n\nHello",
    "________________________________\nFrom: Jane\nSent: Monday\n\nHello",
    "Von: Jane Doe\nGesendet: Montag, 5. Januar 2026 10:00\nAn: Tom\nBetreff: Paket\n\nHallo",
    "Von: Jane Doe Gesendet: Montag, 5. Januar 2026 10:00 An: Tom Betreff: Paket Hallo",
    "*De :* Jane Doe\n*Envoyé :* lundi 5 janvier 2026\n*À :* Tom\n\nbonjour",
    "De: Jane\nEnviado el: lunes, 5 de enero\nPara: Tom\n\nhola",
    "Da: Jane\nInviato: lunedì\nA: Tom\n\nciao",
    "Van: Jane\nVerzonden: maandag\nAan: Tom\n\nhallo",
    "From: Jane\nDate: 5 Jan 2026\nSubject: Parcel\nTo: Tom\n\nHello",
    "##- Please type your reply above this line -##\n\nTicket 5\nHello",
    "> Hello,\n> we have sent it.\n>> Where is it?",
]

SIGNATURES = [
    "-- \nJane Doe\nsells hats in every size you can think of, and then some more",
    "--\nJane Doe\nAcme Inc.",
    "Best regards,\nJane\nSupport Team",
    "Best regards",
    "kind regards,\njane doe",
    "Thanks and best regards,\n\nJane Doe\nCustomer Happiness Engineer\nAcme Inc. | www.acme.example | +1 555-0142",
    "Sincerely,\nJane Doe\nTel. +49 30 1234567\njane@acme.example",
    "Thanks,\nJane",
    "Thank you!\nJane Doe",
    "Cheers\nJ. Doe",
    "Mit freundlichen Grüßen\nJana Müller\nTeam Kundenservice",
    "Viele Grüße aus Hamburg,\nJana",
    "Cordialement,\nJeanne de la Tour",
    "Saludos cordiales,\nJuana",
    "Cordiali saluti\nGiovanna",
    "Atenciosamente,\nJoana",
    "Met vriendelijke groet,\nJanneke van der Berg",
    "Best regards, Jane Doe",
    "Sent from my iPhone",
    "Sent from Yahoo Mail on Android",
    "Get Outlook for iOS",
    "Von meinem iPhone gesendet",
    "Envoyé de mon iPhone",
    "Enviado desde mi Samsung Galaxy",
    "Inviato da iPhone",
    "Verzonden vanaf mijn iPad",
    "CONFIDENTIALITY NOTICE: what you read here is not for you.\nDelete it.",
    "This e-mail and any attachments are confidential and intended solely for the addressee.",
    "This message may be privileged. If you got it by mistake, tell us.",
    "________________________\nThis message may be privileged.",
    "Please consider the environment before printing this e-mail.",
    "Diese E-Mail enthält vertrauliche Informationen.",
    "Ce message et ses pièces jointes sont confidentiels.",
    "Best regards,\nJane\n\nSent from my iPhone\n\nOn 5 Jan 2026 at 10:00 Tom wrote:\n> Best regards,\n> Tom",
]


@pytest.mark.parametrize("added", HISTORY + SIGNATURES)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_history_and_signatures_are_removed_and_nothing_else(added: str, line_break: str) -> None:
    text = f"{WORDS}\n\n{added}\n"
    assert own_words(text.replace("\n", line_break)) == WORDS
    if not added.startswith("##-"):
        assert own_words(added) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # answers below and between quotations
        ("On 5 Jan 2026 at 10:00 Tom wrote:\n> Where is it?\n\nIt is on its way.", "It is on its way."),
        ("> Where is it?\nOn its way.\n> And my refund?\nTomorrow.", "On its way.\nTomorrow."),
        ("You wrote:\n> It will come.\nIt did not.", "You wrote:\nIt did not."),
        # the help desk's line above its own text
        ("##- Please type your reply above this line -##\nIt is on its way.", "It is on its way."),
        # text after a signature
        ("It is late.\nBest regards,\nJane\n\nP.S. Cancel the other.", "It is late.\n\nP.S. Cancel the other."),
        ("It is late.\nRegards\nJane\nPS Refund Tom", "It is late.\nPS Refund Tom"),
        ("It is late. Kind regards, Jane Doe", "It is late."),
        ("It is late. Mit freundlichen Grüßen, Jana Müller", "It is late."),
        ("It is late.\n\nRegards,\nJane Doe\nOrder 12345678", "It is late.\n\nOrder 12345678"),
        ("Where is it?\n\nThis e-mail may be privileged.\n\nAnd when?", "Where is it?\n\n\nAnd when?"),
    ],
)
def test_the_words_after_history_and_signatures_stay(text: str, words: str) -> None:
    assert own_words(text) == words


@pytest.mark.parametrize(
    "text",
    [
        WORDS,
        "Follow these steps:\n> Open the settings\n> Choose Privacy\nand save.",
        "Go to Settings > Privacy > Delete.",
        "> 100 EUR ships for free, is that right?",
        "Is it\n>= 5 kg?",
        "Give Tom my best regards, he was kind.",
        "I send you my best regards, Jane",
        "Best regards to the whole team, you were great!",
        "With regards to my order: where is it?",
        "Thanks",
        "Thank you!",
        "Thanks,\nmy order has still not come.",
        "Thanks!\nWhere is my order?",
        "Thanks!\nHurry!",
        "Thanks,\n" + "\n".join(f"Blue Lamp {size}" for size in "ABCDEFGHIJK"),
        "Best,\nfastest and cheapest, that is what I want.",
        "I want two things -- a refund and an apology.",
        "First part:\n--\nhere is the second part, and it is a long one.",
        "On Monday I wrote: please cancel it.",
        "On 5 May your agent Anna wrote:\nwe refund you within a week. That never happened.",
        "Your colleague wrote: it will come at 10:00.",
        "My trip:\nFrom: Berlin\nTo: Paris\nDate: 5 May",
        "From: the shop in Berlin I got nothing.",
        "Sent from my house on Monday, the parcel is still not there.",
        "Is this e-mail confidential? I would like to tell you my address.",
        "This e-mail is confidential, please do not pass on my address.",
        "I have an original message to send, how do I do that?",
        "1. Open the page\n2. Log in\n\n- Choose Orders\n- Choose Cancel",
        "*** urgent *** where is it?",
    ],
)
def test_a_persons_own_words_are_not_removed(text: str) -> None:
    assert own_words(text) == text
    assert not is_automatic(text)


AUTOMATIC = [
    "This is an automated response. We will look at your mail soon.",
    "Hello,\n\nthis is an automatic reply to tell you that we got your mail.",
    "This message was automatically generated, please do not reply.",
    "Automatic reply: your message",
    "Out of office: back on Monday",
    "I am currently out of the office and return on Monday.",
    "Hello,\nI'm on annual leave until 5 May. In urgent cases write to my colleague.",
    "Ticket #4711 has been received.",
    "Your request (#4711) has been received and is being reviewed by our support staff.",
    "Your ticket has been created and is being looked at.",
    "We have received your message and will get back to you within 24 hours.",
    "Thank you for contacting us.\nWe aim to respond within two business days.",
    "This ticket has been closed due to inactivity.",
    "Dies ist eine automatische Antwort.",
    "Diese Nachricht wurde automatisch generiert.",
    "Ich bin derzeit nicht im Büro.",
    "Ceci est un message automatique.",
    "Esta es una respuesta automática.",
    "Questa è una risposta automatica.",
    "Esta é uma mensagem automática.",
    "Dit is een automatisch antwoord.",
]


@pytest.mark.parametrize("text", AUTOMATIC)
def test_automatic_replies_are_recognised(text: str) -> None:
    assert is_automatic(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am out of the office until Friday, can you deliver on Saturday?",
        "Your request has been received by our finance team; they pay tomorrow.",
        "I have received your ticket and refunded the amount.",
        "The automatic renewal has been switched off.",
        "I got an automated response yesterday, I want to speak to a person!",
        "Thank you for contacting us. Your parcel left on Monday and comes tomorrow.",
    ],
)
def test_people_who_sound_automatic_are_not_taken_for_it(text: str) -> None:
    assert not is_automatic(text)


def test_the_companys_own_automatic_replies_are_recognised() -> None:
    text = "Brightbot here! A colleague takes over soon."
    assert not is_automatic(text)
    assert is_automatic(text, [re.compile("nothing"), re.compile(r"^brightbot here", re.I)])


pieces = st.sampled_from(
    [
        *HISTORY,
        *SIGNATURES,
        *AUTOMATIC,
        WORDS,
        "",
        "  ",
        "> ",
        ">",
        "--",
        "-- ",
        "Thanks,",
        "jane",
        "Jane",
        "Regards",
        "From:",
    ]
)


@settings(deadline=None)
@given(st.lists(pieces, max_size=8).map("\n".join) | st.text(max_size=40))
def test_removing_only_removes_and_a_second_time_removes_nothing(text: str) -> None:
    words = own_words(text)
    assert own_words(words) == words
    rest = iter(re.split(r"\r\n|\r|\n", text))
    assert all(any(line.strip() in line_of_text for line_of_text in rest) for line in words.split("\n")), (
        "the lines that stay keep their order, and none is new"
    )


@pytest.mark.parametrize(
    "line",
    ["> x", "Best regards,", "Jane", "On 5 Jan", "From: Jane", "-", "a. ", "Sent from ", "This message ", "--", "\n"],
)
def test_the_time_for_long_texts_is_proportional_to_their_length(line: str) -> None:
    started = time.monotonic()
    for text in (line * 20_000, f"{line}\n" * 20_000):
        is_automatic(own_words(text))
    assert time.monotonic() - started < 5


def test_almost_no_bitext_row_is_changed_or_taken_for_automatic(raw_bitext: pa.Table) -> None:
    for column in ("instruction", "response"):
        texts = [*sample_rows(810)[column], *raw_bitext.column(column).to_pylist()]
        changed = [text for text in texts if own_words(text) != text.strip()]
        automatic = [text for text in texts if is_automatic(text)]
        assert len(changed) + len(automatic) <= 0.001 * len(texts), (changed[:3], automatic[:3])
