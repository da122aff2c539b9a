"""The sources of the Bitext rows, with the addresses and the hash of the official file."""

import os
import re
from dataclasses import replace
from urllib.parse import quote, urlsplit

from cs_pipeline.core.download import RemoteFile
from cs_pipeline.core.errors import PipelineError

SOURCES = """\
'sample' (rows that the project generates), 'download' (the whole file from Bitext's repository), \
'hub@REVISION' (that file from the Hugging Face Hub), or the path of a csv, csv.gz or parquet file"""
"""The valid values of the source setting, as shown to users."""

LICENCE = "CDLA-Sharing-1.0"
HUB_REPO = "bitext/Bitext-customer-support-llm-chatbot-training-dataset"
_COMMIT = "72ea2203180d14a416b579c657033ecd21e59a11"
_NAME = "Bitext_Sample_Customer_Support_Training_Dataset_27K_responses-v11.csv"


BITEXT = RemoteFile(
    origin="github",
    revision=_COMMIT,
    url=f"https://raw.githubusercontent.com/bitext/customer-support-llm-chatbot-training-dataset/{_COMMIT}/data/{_NAME}",
    size=19_202_474,
    git_blob="404649b80bb5ec57463d7ce7e17bc48e63b01fbc",
    sha256="6f81102b0100b97b8468eb04368033a23206bf1fde9d53500d5806ec1001a434",
)
"""The whole Bitext file, 26,872 rows, in Bitext's own repository at a pinned commit."""


def hub_file(revision: str) -> RemoteFile:
    """The same file in the dataset's repository on the Hugging Face Hub, at ``revision`` (a commit, tag or branch).

    The hub is at ``HF_ENDPOINT``, else huggingface.co. Raises PipelineError for an invalid revision.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", revision):
        raise PipelineError(
            f"'{revision}' is not a revision of {HUB_REPO}.", "Give a commit from the dataset's page: hub@<commit>."
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if urlsplit(endpoint).username is not None:
        raise PipelineError(
            "HF_ENDPOINT contains a user name, which would be shown with the address.",
            "Remove it; a token goes into HF_TOKEN.",
        )
    url = f"{endpoint}/datasets/{HUB_REPO}/resolve/{quote(revision, safe='')}/{_NAME}"
    return replace(BITEXT, origin="hub", revision=revision, url=url)
