"""Before the first step: does the loss see whole answers and nothing else, and can the tokenizer write them at all?"""

from collections import Counter

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORED, ChatFormat, Example

MOST_SPELT = 0.01
"""Of all characters, the share that may be spelt by code points: with more, a model learns to spell and not to answer."""

_SHOWN = 8


class SupervisionCheck:
    """Counts, row by row, what the tokenizer lacks for a text and what does not come back from its tokens."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._rows = self._characters = self._rows_spelt = self._answers = self._rows_lost = 0
        self._spelt: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self.rewritten = 0
        """Rows with a text that the tokenizer cannot write as it is."""

    @property
    def spelt_share(self) -> float:
        """Of all characters, those that are spelt by their code points."""
        return self._spelt.total() / max(1, self._characters)

    def read(self, *texts: str) -> None:
        """Takes the texts of one row."""
        written = self._chat.written
        spelt = [character for text in texts for character in written.spelt(text)]
        self._rows += 1
        self._characters += sum(map(len, texts))
        self._rows_spelt += bool(spelt)
        self._spelt.update(spelt)
        self.rewritten += any(written.write(text) != text for text in texts)

    def decode(self, row_id: str, example: Example, answer: str) -> None:
        """Reads back what the loss will see of the row, by decoding it.

        Raises PipelineError when that is something else than an answer with the stop token at its end and nowhere else.
        """
        supervised = [label for label in example.labels if label != IGNORED]
        first, stop = len(example.labels) - len(supervised), self._chat.stop
        causal = self._chat.kind == "causal"
        if (
            not supervised
            or example.labels[first:] != supervised
            or (causal and (first == 0 or example.input_ids[first:] != supervised))
            or supervised[-1] != stop
            or stop in supervised[:-1]
        ):
            # Without the text: a person may have written it.
            raise PipelineError(
                f"Row {row_id}: the loss would cover other tokens than the answer and its stop token.",
                "This is a fault of the prompt's code or of this base's tokenizer: use another base.",
            )
        self._answers += 1
        back, meant = self._chat.read(supervised[:-1]), self._chat.plain(answer)
        if back != meant:
            self._rows_lost += 1
            self._lost.update((Counter(meant) - Counter(back)).keys() or {"�"})

    def assert_nothing_lost(self) -> None:
        """Raises PipelineError, with counts and single characters alone, when a model would learn broken answers."""
        use = "Use a base whose tokenizer has them; those of Qwen3, SmolLM2, Llama and Mistral write any text."
        if self._rows_lost:
            raise PipelineError(
                f"The tokenizer of this base does not give back {self._rows_lost:,} of {self._answers:,} answers: "
                f"characters such as {_shown(self._lost)} would be lost.",
                use,
            )
        if self.spelt_share > MOST_SPELT:
            raise PipelineError(
                f"The tokenizer of this base lacks {self.spelt_share:.1%} of the characters of the training text, such as "
                f"{_shown(self._spelt)}, in {self._rows_spelt:,} of {self._rows:,} rows.",
                use,
            )


def _shown(characters: Counter[str]) -> str:
    """The most frequent ones by their code points; no more than single characters, for a customer may have written them."""
    return ", ".join(f"U+{ord(character):04X}" for character, _ in characters.most_common(_SHOWN))
