"""The shared file of real rows through the first steps, once for all tests of this folder."""

from pathlib import Path

import pyarrow as pa
import pytest

from cs_pipeline.ingest.bitext import load_bitext
from cs_pipeline.prepare.splits.split import Split, split
from cs_pipeline.text.clean import Cleaned, clean


@pytest.fixture(scope="session")
def raw_bitext(bitext_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return load_bitext(str(bitext_csv), tmp_path_factory.mktemp("cache"))[0]


@pytest.fixture(scope="session")
def cleaned_bitext(raw_bitext: pa.Table) -> Cleaned:
    return clean(raw_bitext)


@pytest.fixture(scope="session")
def split_bitext(cleaned_bitext: Cleaned) -> Split:
    return split(cleaned_bitext.rows, before=None)
