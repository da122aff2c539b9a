"""Loads tokenizers exactly as they were published, and compares their ids with the published ones.

transformers rebuilds some tokenizers from their vocabulary and ignores the other settings in ``tokenizer.json``. Then
SmolLM2 no longer splits digits, and TinyLlama encodes a line break after ``</s>`` as a different token. A model whose token
ids differ from those of its training gives worse answers, and no error is raised.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cs_pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``folder``, with padding on the left. It is read from tokenizer.json if there is one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if (folder / TOKENIZER_FILE).exists() else AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True, padding_side="left")


def check_token_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path, texts: Iterable[str]) -> int:
    """Compares the ids that ``tokenizer`` gives ``texts`` with those of the tokenizer.json in ``folder``.

    The library ``tokenizers`` reads that file. Returns the number of texts; 0 if there is no such file. Raises PipelineError
    if a text gets different ids. The message does not quote the text, because it may contain personal data.
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
            f"{len(texts):,} training texts. The model would be trained on tokens that differ from those of the base.",
            "Save the tokenizer in the base's folder with save_pretrained, so that all its tokens are in that file. If "
            "that does not help, report this base.",
        )
    return len(texts)
