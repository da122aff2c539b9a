"""Loads tokenizers exactly as they were published, and proves it on texts.

transformers rebuilds some tokenizers from their vocabulary instead of reading ``tokenizer.json``. What only that file says
is then lost: SmolLM2 no longer splits digits, and after ``</s>`` TinyLlama writes a line break as another token. A model
that gets other ids than in its training answers worse, and nothing reports it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cs_pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``folder``, padding on the left: from its tokenizer.json if it has one, else as its class says."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if (folder / TOKENIZER_FILE).exists() else AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True, padding_side="left")


def check_token_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path, texts: Iterable[str]) -> int:
    """Compares the ids of ``tokenizer`` with those of the tokenizer.json in ``folder``, read by the library tokenizers.

    Returns the number of texts; 0 if there is no such file. Raises PipelineError if a text gets other ids; the message
    leaves out the text, which a person may have written.
    """
    if not (folder / TOKENIZER_FILE).exists():
        return 0
    from tokenizers import Tokenizer

    published = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    texts = list(texts)
    expected = published.encode_batch(texts, add_special_tokens=False)
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    differing = sum(ids != encoding.ids for ids, encoding in zip(found, expected, strict=True))
    if differing:
        raise PipelineError(
            f"The tokenizer of this base gives other token ids than {folder / TOKENIZER_FILE} for {differing:,} of "
            f"{len(texts):,} training texts: the model would be trained on text that it never saw.",
            "Write the tokenizer into the base's folder with save_pretrained, so that all its tokens are in that file; or "
            "report this base.",
        )
    return len(texts)
