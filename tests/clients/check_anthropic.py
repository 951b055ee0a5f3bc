"""anthropic-python against the server."""

import anthropic
from schemas import WEATHER, check, expect

USER = [{"role": "user", "content": "Tell me about the weather."}]
# Newer versions of the client have no arguments for sampling; older ones send the same fields.
GREEDY = {"temperature": 0}
TOOL = {"name": "weather", "description": "A forecast", "input_schema": WEATHER}


def connect(url):
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def check_message(url, model):
    answer = connect(url).messages.create(
        model=model, max_tokens=8, messages=USER, system="Be brief.", metadata={"user_id": "me"},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40},
    )
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg")
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens <= 8


def check_blocks(url, model):
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    client = connect(url)
    first = client.messages.create(model=model, max_tokens=6, system=system, messages=messages, extra_body=GREEDY)
    if first.content:
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": "More"}]
        client.messages.create(model=model, max_tokens=4, messages=messages)
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
    error = expect(
        anthropic.BadRequestError,
        lambda: client.messages.create(model=model, max_tokens=4, messages=[{"role": "user", "content": [image]}]),
    )
    assert "image" in str(error)


def check_stream(url, model):
    client = connect(url)
    events = list(client.messages.create(model=model, max_tokens=6, messages=USER, stream=True, extra_body=GREEDY))
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    with client.messages.stream(model=model, max_tokens=6, messages=USER, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens > 0


def check_stop_sequences(url, model):
    client = connect(url)
    plain = client.messages.create(model=model, max_tokens=24, messages=USER, extra_body=GREEDY)
    text = plain.content[0].text
    stop = text[4:7]
    answer = client.messages.create(
        model=model, max_tokens=24, messages=USER, extra_body=GREEDY, stop_sequences=["never", stop]
    )
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == stop
    assert "".join(block.text for block in answer.content) == text[: text.index(stop)]


def check_tools(url, model):
    client = connect(url)
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        answer = client.messages.create(
            model=model, max_tokens=300, messages=USER, tools=[TOOL], tool_choice=choice
        )
        assert answer.stop_reason == "tool_use"
        (use,) = [block for block in answer.content if block.type == "tool_use"]
        check(use.input, WEATHER)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "Sunny."}]}
    messages = USER + [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    client.messages.create(model=model, max_tokens=6, messages=messages, tools=[TOOL])


def check_tools_stream(url, model):
    with connect(url).messages.stream(
        model=model, max_tokens=300, messages=USER, tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        final = stream.get_final_message()
    (use,) = final.content
    check(use.input, WEATHER)


def check_count_tokens(url, model):
    client = connect(url)
    counted = client.messages.count_tokens(model=model, messages=USER, system="Be brief.")
    answer = client.messages.create(model=model, max_tokens=1, messages=USER, system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens


def check_errors(url, model):
    client = connect(url)
    expect(anthropic.NotFoundError, lambda: client.messages.create(model="no", max_tokens=1, messages=USER))
    error = expect(
        anthropic.BadRequestError,
        lambda: client.messages.create(
            model=model, max_tokens=2048, messages=USER, thinking={"type": "enabled", "budget_tokens": 1024}
        ),
    )
    assert "thinking" in str(error) and error.body["error"]["type"] == "invalid_request_error"
    error = expect(
        anthropic.BadRequestError,
        lambda: client.messages.create(
            model=model, max_tokens=4, messages=USER + [{"role": "assistant", "content": "I"}]
        ),
    )
    assert "messages[1].role" in str(error)


def check_cancelling(url, model):
    client = connect(url)
    with client.messages.stream(model=model, max_tokens=1500, messages=USER) as stream:
        for _ in stream:
            break
    assert client.messages.create(model=model, max_tokens=2, messages=USER).type == "message"
