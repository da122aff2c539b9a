"""Escapes text that a tokenizer cannot represent, so that nothing in a row is lost on its way through a model.

T5 has no brace, no line break and no repeated space: ``{{Order Number}}`` would become ``<unk>Order Number<unk>``, and a
list would become one line. Double braces and line breaks are frequent, so each becomes a sign of one token. Any other
character that the tokenizer loses becomes its code point.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPE = "\N{PRIME}"
"""``′1f642;`` stands for U+1F642. The prime is in the tokenizers of all supported families, and is rare in support texts."""

SIGNS = {"{{": "«", "}}": "»", "\n": "| "}
"""The signs for frequent characters. The space after a line break's sign gives the next word its usual tokens."""

_PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]


class Escaping:
    """The escapes that one tokenizer needs. A tokenizer that can represent everything needs none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, bool] = {}
        signs = {text: sign for text, sign in SIGNS.items() if not self._keeps(text) and self._keeps(sign.strip())}
        self._signs = signs
        self._meanings = {sign.strip(): text for text, sign in signs.items()}
        lost = [*self._meanings, *(c for c in _PRINTABLE if not self._keeps(c))]
        by_code = [rf"{ESCAPE}(?=[0-9a-f]+;)", *map(re.escape, lost)]
        if not self._keeps("  "):
            by_code.append(r"(?<=[ \n]) ")
        self._to_escape = re.compile(
            rf"(?P<sign>{'|'.join(map(re.escape, signs)) or '(?!)'})|(?P<code>{'|'.join(by_code)})|[^\x20-\x7e]"
        )
        # A sign at the end of a text may have lost its space.
        by_sign = [re.escape(sign).replace(r"\ ", " ?") for sign in signs.values()]
        self._to_unescape = re.compile("|".join([rf"{ESCAPE}(?P<code>[0-9a-f]{{1,6}});", *by_sign]))

    def escape(self, text: str) -> str:
        """``text`` in characters that the tokenizer can represent. ``unescape`` reverses it."""
        return self._to_escape.sub(self._escape_one, text)

    def unescape(self, text: str) -> str:
        """Reverses ``escape``. Invalid escapes, which a model may write, stay as they are."""
        return self._to_unescape.sub(self._unescape_one, text)

    def escaped_characters(self, text: str) -> list[str]:
        """The characters of ``text`` that are escaped by their code points, with repeats."""
        matches = self._to_escape.finditer(text)
        return [match[0] for match in matches if not match["sign"] and self._escape_one(match) != match[0]]

    def _escape_one(self, match: re.Match[str]) -> str:
        if match["sign"]:
            return self._signs[match[0]]
        if match["code"] or not self._keeps(match[0]):
            return f"{ESCAPE}{ord(match[0]):x};"
        return match[0]

    def _unescape_one(self, match: re.Match[str]) -> str:
        if not match["code"]:
            return self._meanings[match[0].strip()]
        code = int(match["code"], 16)
        return chr(code) if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else match[0]

    def _keeps(self, text: str) -> bool:
        """Whether the tokenizer returns ``text`` unchanged between two letters."""
        if text not in self._kept:
            probe = f"a{text}a"
            try:
                ids = self._tokenizer(probe, add_special_tokens=False)["input_ids"]
            except UnicodeEncodeError:  # half of a surrogate pair
                self._kept[text] = False
                return False
            decoded = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self._kept[text] = decoded == probe
        return self._kept[text]
