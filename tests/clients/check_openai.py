"""openai-python against the server."""

import base64
import json
import struct

import openai
from schemas import PERSON, WEATHER, check, expect

USER = [{"role": "user", "content": "Tell me about the weather."}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "A forecast", "parameters": WEATHER}}


def connect(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def check_models(url, model):
    client = connect(url)
    assert [one.id for one in client.models.list()] == [model]
    assert client.models.retrieve(model).object == "model"
    expect(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


def check_chat(url, model):
    answer = connect(url).chat.completions.create(model=model, messages=USER, max_tokens=8, user="me")
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl")
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def check_roles_and_parts(url, model):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]
    connect(url).chat.completions.create(model=model, messages=messages, max_completion_tokens=4)
    image = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
    error = expect(
        openai.BadRequestError,
        lambda: connect(url).chat.completions.create(model=model, messages=[{"role": "user", "content": [image]}]),
    )
    assert error.param == "messages[0].content[0].type", error.param


def check_an_answer_can_be_sent_back(url, model):
    client = connect(url)
    answer = client.chat.completions.create(model=model, messages=USER, max_tokens=6)
    messages = USER + [answer.choices[0].message, {"role": "user", "content": "And tomorrow?"}]
    client.chat.completions.create(model=model, messages=messages, max_tokens=4)


def check_stream(url, model):
    options = {"include_usage": True}
    stream = connect(url).chat.completions.create(
        model=model, messages=USER, max_tokens=8, stream=True, stream_options=options, seed=1
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    whole = connect(url).chat.completions.create(model=model, messages=USER, max_tokens=8, seed=1)
    assert whole.choices[0].message.content == text


def check_stream_helper(url, model):
    # The helper takes an answer that was cut for an error, so it gets one that ends.
    ends = {"guided_choice": ["yes", "no"]}
    with connect(url).chat.completions.stream(model=model, messages=USER, extra_body=ends) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "chunk" in kinds
    assert final.choices[0].message.content in ("yes", "no")


def check_several_choices(url, model):
    answer = connect(url).chat.completions.create(
        model=model, messages=USER, max_tokens=6, n=3, temperature=1, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = connect(url).chat.completions.create(model=model, messages=USER, max_tokens=6, n=3, temperature=1, seed=7)
    assert [c.message.content for c in answer.choices] == [c.message.content for c in again.choices]


def check_logprobs(url, model):
    answer = connect(url).chat.completions.create(
        model=model, messages=USER, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.token == token.top_logprobs[0].token, "greedy takes the best"
    answer = connect(url).completions.create(model=model, prompt="One two", max_tokens=3, logprobs=2)
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs)


def check_stop_and_penalties(url, model):
    client = connect(url)
    plain = client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
    stop = plain.choices[0].text[3:6]
    cut = client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0, stop=[stop])
    assert cut.choices[0].text == plain.choices[0].text[: plain.choices[0].text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    client.completions.create(
        model=model, prompt="a a a", max_tokens=4, presence_penalty=1, frequency_penalty=1, logit_bias={"5": -100}
    )


def check_completions(url, model):
    client = connect(url)
    answer = client.completions.create(model=model, prompt="Once upon", max_tokens=4, echo=True)
    assert answer.object == "text_completion" and answer.choices[0].text.startswith("Once upon")
    stream = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=4, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
    error = expect(
        openai.BadRequestError, lambda: client.completions.create(model=model, prompt="a", suffix="b", max_tokens=1)
    )
    assert error.param == "suffix"


def check_json_schema(url, model):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    for temperature in (0, 1):
        answer = connect(url).chat.completions.create(
            model=model, messages=USER, response_format=form, temperature=temperature, max_tokens=300, seed=3
        )
        if answer.choices[0].finish_reason == "stop":
            check(answer.choices[0].message.content, PERSON)
    answer = connect(url).chat.completions.create(
        model=model, messages=USER, response_format={"type": "json_object"}, max_tokens=300
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def check_parse_of_pydantic_models(url, model):
    from typing import Literal

    from pydantic import BaseModel

    class Forecast(BaseModel):
        city: Literal["Oslo", "Rome"]
        sunny: bool

    answer = connect(url).chat.completions.parse(model=model, messages=USER, response_format=Forecast, max_tokens=200)
    assert answer.choices[0].message.parsed.city in ("Oslo", "Rome")
    response = connect(url).responses.parse(model=model, input="Weather?", text_format=Forecast, max_output_tokens=200)
    assert response.output_parsed.city in ("Oslo", "Rome")


def check_schema_that_cannot_be_enforced(url, model):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    error = expect(
        openai.BadRequestError,
        lambda: connect(url).chat.completions.create(model=model, messages=USER, response_format=form),
    )
    assert "uniqueItems" in str(error) and error.param == "response_format.json_schema.schema"


def check_guided_extensions(url, model):
    client = connect(url)

    def text(**extra):
        return client.completions.create(model=model, prompt="x", max_tokens=60, extra_body=extra).choices[0].text

    assert text(guided_choice=["yes", "no"]) in ("yes", "no")
    assert len(text(guided_regex="[0-9]{3}")) == 3
    assert text(structured_outputs={"grammar": 'start: "ab"'}) == "ab"


def check_tools(url, model):
    client = connect(url)
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model=model, messages=USER, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=300
        )
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
        check(call.function.arguments, WEATHER)
    messages = USER + [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    client.chat.completions.create(model=model, messages=messages, tools=[TOOL], max_tokens=8)
    client.chat.completions.create(model=model, messages=USER, tools=[TOOL], tool_choice="none", max_tokens=4)


def check_tools_stream(url, model):
    stream = connect(url).chat.completions.create(
        model=model, messages=USER, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True
    )
    names, arguments, reasons = "", "", []
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            names += call.function.name or ""
            arguments += call.function.arguments or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert names == "weather" and reasons[-1] == "tool_calls"
    check(arguments, WEATHER)


def check_embeddings(url, model):
    client = connect(url)
    # The client asks for base64 unless told otherwise.
    default = client.embeddings.create(model=model, input=["a cat", "a dog"])
    floats = client.embeddings.create(model=model, input=["a cat", "a dog"], encoding_format="float")
    for one, other in zip(default.data, floats.data):
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding))
        assert abs(sum(x * x for x in one.embedding) - 1) < 1e-4
    raw = client.embeddings.create(model=model, input="a cat", encoding_format="base64").data[0].embedding
    raw = raw if isinstance(raw, str) else base64.b64encode(struct.pack(f"<{len(raw)}f", *raw)).decode()
    assert len(base64.b64decode(raw)) == 4 * len(floats.data[0].embedding)
    assert len(client.embeddings.create(model=model, input="a cat", dimensions=16).data[0].embedding) == 16


def check_responses(url, model):
    client = connect(url)
    response = client.responses.create(model=model, input="Hello", instructions="Be brief.", max_output_tokens=8)
    assert response.status in ("completed", "incomplete") and isinstance(response.output_text, str)
    follow = [{"role": "user", "content": "Hello"}, *response.output, {"role": "user", "content": "More"}]
    client.responses.create(model=model, input=follow, max_output_tokens=4)
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    response = client.responses.create(model=model, input="A person", text=form, max_output_tokens=300)
    if response.status == "completed":
        check(response.output_text, PERSON)
    error = expect(
        openai.BadRequestError,
        lambda: client.responses.create(model=model, input="x", previous_response_id="resp_1"),
    )
    assert error.param == "previous_response_id"


def check_responses_stream(url, model):
    stream = connect(url).responses.create(model=model, input="Hello", max_output_tokens=6, stream=True)
    events = list(stream)
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].response.output_text == text
    with connect(url).responses.stream(model=model, input="Hello", max_output_tokens=6) as stream:
        for _ in stream:
            pass


def check_responses_tools(url, model):
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    client = connect(url)
    response = client.responses.create(
        model=model, input="Weather?", tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    check(call.arguments, WEATHER)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    client.responses.create(
        model=model, input=[{"role": "user", "content": "Weather?"}, call, result], tools=[tool], max_output_tokens=6
    )


def check_errors(url, model):
    client = connect(url)
    expect(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4", messages=USER))
    for name, value in [("temperature", 3), ("n", 0), ("top_logprobs", 2), ("max_tokens", 0)]:
        error = expect(
            openai.BadRequestError,
            lambda: client.chat.completions.create(model=model, messages=USER, **{name: value}),
        )
        assert error.param == name and error.code == "invalid_value", (name, error)
    error = expect(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=model, messages=USER, extra_body={"tempratur": 1}),
    )
    assert error.code == "unknown_parameter" and error.param == "tempratur"
    error = expect(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=model, messages=USER, max_tokens=10_000_000),
    )
    assert error.code == "context_length_exceeded"
    for name, value in [("store", True), ("reasoning_effort", "high"), ("web_search_options", {})]:
        error = expect(
            openai.BadRequestError,
            lambda: client.chat.completions.create(model=model, messages=USER, **{name: value}),
        )
        assert error.param == name and error.code == "unsupported_parameter"


def check_cancelling(url, model):
    client = connect(url)
    stream = client.chat.completions.create(
        model=model, messages=USER, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    # The engine is free again long before those tokens would have been written.
    answer = client.chat.completions.create(model=model, messages=USER, max_tokens=2, timeout=30)
    assert answer.choices
