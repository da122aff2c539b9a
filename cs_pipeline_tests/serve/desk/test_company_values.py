"""The serving part of company.yaml: values of placeholders, and where handovers go."""

import pytest

from cs_pipeline.company import Company, company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk.filling import fill_placeholders

GOOD = """\
values:
  company: Brightmart
  Customer Service Hours: 9 am to 6 pm
  support_phone_number: 555-0142
handover: {webhook: "https://hooks.example/in?key=a", false_share: 0.3}
"""


def test_values_can_be_given_under_any_spelling_of_their_name(lake: DataLake) -> None:
    lake.root.mkdir()
    company_file(lake).write_text(GOOD)
    company = load_company(lake)
    assert dict(company.values) == {
        "Company Name": "Brightmart",
        "Customer Support Hours": "9 am to 6 pm",
        "Customer Support Phone Number": "555-0142",
    }
    assert (company.handover.webhook, company.handover.false_share) == ("https://hooks.example/in?key=a", 0.3)
    assert hash(company) == hash(load_company(lake)) != hash(Company())
    assert fill_placeholders("{{Company}}: {{Support Hours}}", company.values) == "Brightmart: 9 am to 6 pm"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("values: {Compny Name: x}", "'Compny Name' is not in the catalogue"),
        ('values: {Company Name: ""}', "'Company Name' needs a value on one line"),
        ('values: {Company Name: "a {{Website URL}}"}', "without braces"),
        ('values: {Company Name: "a\\nb"}', "on one line"),
        ("values: {Company Name: a, company: b}", "spellings of the same placeholder"),
        ("handover: {webhook: ftp://x}", "handover.webhook"),
        ("handover: {false_share: 2}", "handover.false_share"),
        ("handover: {mail: x}", "handover.mail"),
        ("handover: {confidence: 0.2}", "the key 'confidence', which is replaced by 'false_share'"),
        ("topics: []", "topics"),
        ('topics: ["{x}"]', "topics.0"),
    ],
)
def test_an_error_names_the_wrong_key(lake: DataLake, text: str, expected: str) -> None:
    lake.root.mkdir()
    company_file(lake).write_text(text)
    with pytest.raises(PipelineError) as raised:
        load_company(lake)
    assert expected in raised.value.what
