"""Checks before the first training step: the loss covers exactly the answers, and the tokenizer can represent them."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat, Example
from cs_pipeline.llm.tokenizer import check_token_ids

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ESCAPED_SHARE = 0.01
"""Maximum share of characters that may become code points. With more, a model would learn to spell instead of to answer."""

ROWS_COMPARED = 1000
"""Rows whose token ids are compared with those of the published tokenizer."""

_SHOWN_CHARACTERS = 8


def check_tokenizer(chat: ChatFormat, base: Path, rows: "pa.Table") -> int:
    """Compares the token ids of up to ROWS_COMPARED ``rows``, evenly spread, with those of the base's tokenizer.json.

    ``rows`` has the columns instruction and response. They are compared in the chat template, with its control tokens.
    Returns the number of rows compared, 0 if the base has no such file. Raises PipelineError if ids differ.
    """
    pairs = rows.select(["instruction", "response"]).to_pylist()[:: max(1, -(-rows.num_rows // ROWS_COMPARED))]
    texts = (chat.render([{"role": "user", "content": pair["instruction"]}]) + pair["response"] for pair in pairs)
    return check_token_ids(chat.tokenizer, base, texts)


class SupervisionCheck:
    """Counts, row by row, the characters that the tokenizer lacks, and the answers that change when they are decoded."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._rows = self._characters = self._rows_with_code_points = self._answers = self._answers_lost = 0
        self._code_points: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self.escaped_rows = 0
        """Rows with text that the tokenizer cannot represent unescaped."""

    @property
    def escaped_share(self) -> float:
        """The share of all characters that became code points."""
        return self._code_points.total() / max(1, self._characters)

    def count_escapes(self, *texts: str) -> None:
        """Counts the texts of one row."""
        escaping = self._chat.escaping
        escaped = [character for text in texts for character in escaping.escaped_characters(text)]
        self._rows += 1
        self._characters += sum(map(len, texts))
        self._rows_with_code_points += bool(escaped)
        self._code_points.update(escaped)
        self.escaped_rows += any(escaping.escape(text) != text for text in texts)

    def check_labels(self, row_id: str, example: Example, answer: str) -> None:
        """Decodes the tokens that the loss covers and compares them with ``answer``.

        Raises PipelineError unless they are at the end of the example and contain the stop token only as their last one.
        """
        supervised = [label for label in example.labels if label != IGNORE_INDEX]
        first, stop = len(example.labels) - len(supervised), self._chat.stop_id
        causal = self._chat.architecture == "causal"
        if (
            not supervised
            or example.labels[first:] != supervised
            or (causal and (first == 0 or example.input_ids[first:] != supervised))
            or supervised[-1] != stop
            or stop in supervised[:-1]
        ):
            # The message does not quote the text, because a customer may have written it.
            raise PipelineError(
                f"Row {row_id}: the loss would cover other tokens than the answer and its stop token.",
                "This is a bug in the prompt code or in this base's tokenizer: use another base.",
            )
        self._answers += 1
        decoded, expected = self._chat.decode(supervised[:-1]), self._chat.as_decoded(answer)
        if decoded != expected:
            self._answers_lost += 1
            self._lost.update((Counter(expected) - Counter(decoded)).keys() or {"�"})

    def raise_on_lost_text(self) -> None:
        """Raises PipelineError if the tokenizer changes answers, or lacks too many characters."""
        fix = "Use a base whose tokenizer has them; those of Qwen3, SmolLM2, Llama and Mistral can represent any text."
        if self._answers_lost:
            raise PipelineError(
                f"The tokenizer of this base does not reproduce {self._answers_lost:,} of {self._answers:,} answers: "
                f"characters such as {_shown(self._lost)} would be lost.",
                fix,
            )
        if self.escaped_share > MAX_ESCAPED_SHARE:
            raise PipelineError(
                f"The tokenizer of this base lacks {self.escaped_share:.1%} of the characters of the training text, such as "
                f"{_shown(self._code_points)}, in {self._rows_with_code_points:,} of {self._rows:,} rows.",
                fix,
            )


def _shown(characters: Counter[str]) -> str:
    """The most frequent characters as code points. Texts are not shown, because a customer may have written them."""
    return ", ".join(f"U+{ord(character):04X}" for character, _ in characters.most_common(_SHOWN_CHARACTERS))
