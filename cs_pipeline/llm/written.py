"""Text in the characters that a tokenizer can write, and back: nothing that a row says is lost on the way to a model.

T5 has no brace, no line break and no second space: ``{{Order Number}}`` would become ``<unk>Order Number<unk>`` and a list
one line. What is frequent in answers gets a sign of one token there; everything else is spelt by its code point.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPE = "\N{PRIME}"
"""``′1f642;`` spells U+1F642: each tokenizer of the families at hand writes the prime, and support texts hardly do."""

SIGNS = {"{{": "«", "}}": "»", "\n": "| "}
"""Stand for what a tokenizer cannot write. The space keeps the next word in the form it has everywhere else."""

_PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]


class Written:
    """The written form that a tokenizer needs; for one that can write everything, text is written as it is."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, bool] = {}
        signs = {text: sign for text, sign in SIGNS.items() if not self._keeps(text) and self._keeps(sign.strip())}
        self._signs = signs
        self._meant = {sign.strip(): text for text, sign in signs.items()}
        lost = [*self._meant, *(c for c in _PRINTABLE if not self._keeps(c))]
        spell = [rf"{ESCAPE}(?=[0-9a-f]+;)", *map(re.escape, lost)]
        if not self._keeps("  "):
            spell.append(r"(?<=[ \n]) ")
        self._to_write = re.compile(
            rf"(?P<sign>{'|'.join(map(re.escape, signs)) or '(?!)'})|(?P<spell>{'|'.join(spell)})|[^\x20-\x7e]"
        )
        read = [re.escape(sign).replace(r"\ ", " ?") for sign in signs.values()]  # the last one may have lost its space
        self._to_read = re.compile("|".join([rf"{ESCAPE}(?P<code>[0-9a-f]{{1,6}});", *read]))

    def write(self, text: str) -> str:
        """``text`` in characters that the tokenizer gives back; ``read`` undoes it."""
        return self._to_write.sub(self._write_one, text)

    def read(self, written: str) -> str:
        """What ``written`` means. What is spelt wrongly, as a model may, stays as it is."""
        return self._to_read.sub(self._read_one, written)

    def spelt(self, text: str) -> list[str]:
        """The characters of ``text`` that have to be spelt by their code points, repeats included."""
        found = self._to_write.finditer(text)
        return [match[0] for match in found if not match["sign"] and self._write_one(match) != match[0]]

    def _write_one(self, match: re.Match[str]) -> str:
        if match["sign"]:
            return self._signs[match[0]]
        if match["spell"] or not self._keeps(match[0]):
            return f"{ESCAPE}{ord(match[0]):x};"
        return match[0]

    def _read_one(self, match: re.Match[str]) -> str:
        if not match["code"]:
            return self._meant[match[0].strip()]
        code = int(match["code"], 16)
        return chr(code) if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else match[0]

    def _keeps(self, text: str) -> bool:
        """Whether the tokenizer gives ``text`` back when it stands between letters."""
        if text not in self._kept:
            between = f"a{text}a"
            try:
                ids = self._tokenizer(between, add_special_tokens=False)["input_ids"]
            except UnicodeEncodeError:  # half a surrogate pair
                self._kept[text] = False
                return False
            back = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self._kept[text] = back == between
        return self._kept[text]
