"""OpenAI's official client, unchanged, against the server."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from cs_pipeline_tests.support.serving import SURE, Serving, wait_for

USER: Any = [{"role": "user", "content": SURE}]


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none is needed here", max_retries=0) as client:
        yield client


def test_models_are_listed_and_unknown_ones_refused(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()][:3] == ["cs-support", "cs-support:base", "champion"]
    assert client.models.retrieve("2:base").id == "2:base"
    with pytest.raises(openai.NotFoundError, match="There is no such model"):
        client.models.retrieve("gpt-4")


def test_a_completion_has_text_and_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="cs-support", messages=USER)
    assert whole.model == "1"
    (choice,) = whole.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert whole.usage.prompt_tokens > 5
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24
    again = client.chat.completions.create(model="1", messages=USER, temperature=0, max_completion_tokens=5)
    assert again.usage is not None
    assert again.usage.completion_tokens == 5


def test_a_stream_gives_the_same_text_and_usage(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "2", "messages": USER, "temperature": 1.0, "seed": 5}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert {(c.id, c.model) for c in chunks} == {(chunks[0].id, "2")}
    assert not list(client.chat.completions.create(**options, stream=True))[-1].usage


def test_messages_in_parts_and_additional_fields_are_accepted(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "The customer has order A-1."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "How can I help?"},
        *USER,
    ]
    ours = {"tone": "friendly", "values": {"Order Number": "A-1"}, "private": True}
    harmless: Any = {"n": 1, "user": "somebody", "response_format": {"type": "text"}, "logprobs": False, "stop": None}
    whole = client.chat.completions.create(model="champion", messages=messages, extra_body=ours, **harmless)
    assert whole.choices[0].message.content


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"n": 2}, "n is not supported by these models"),
        ({"stop": ["\n"]}, "stop is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message must have the role 'user'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be 'system'"),
    ],
)
def test_unsupported_values_are_refused(client: openai.OpenAI, options: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "champion", "messages": USER, **options})
    assert why in refused.value.message


def test_closing_a_stream_cancels_the_answer(serving: Serving, client: openai.OpenAI) -> None:
    before = serving.metric('cs_answers_total{finish="cancelled"')
    with serving.slowed("2", 0.05):
        stream = client.chat.completions.create(model="2", messages=USER, stream=True)
        next(iter(stream))
        stream.close()
        wait_for(lambda: serving.metric("cs_questions_inside") == 0)
    assert serving.metric('cs_answers_total{finish="cancelled"') == before + 1


def test_a_failure_in_the_middle_of_a_stream_is_sent_as_an_event(serving: Serving) -> None:
    """The status was already sent, so the error is an event, as with OpenAI, and there is no [DONE]."""
    body = {"model": "2", "messages": USER, "stream": True}
    with serving.failing("2"), requests.post(f"{serving.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert json.loads(events[-1])["error"]["code"] == "failed"
    with serving.failing("2"):
        assert serving.chat(model_name="2").status_code == 500
    assert serving.chat(model_name="2").ok
