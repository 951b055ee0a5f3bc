"""ollama-python against the server."""

import json

import ollama
from schemas import PERSON, WEATHER, check, expect

USER = [{"role": "user", "content": "Tell me about the weather."}]


def connect(url):
    return ollama.Client(host=url, timeout=60)


def check_listings(url, model):
    client = connect(url)
    assert [one.model for one in client.list().models] == [model]
    assert [one.model for one in client.ps().models] == [model]
    show = client.show(model)
    assert show.details.family and show.modelinfo["general.architecture"] == show.details.family


def check_chat(url, model):
    answer = connect(url).chat(model, messages=USER, options={"num_predict": 8, "temperature": 0, "seed": 1})
    assert answer.done and answer.done_reason in ("stop", "length") and answer.message.role == "assistant"
    assert answer.eval_count <= 8 and answer.prompt_eval_count > 0 and answer.total_duration > 0


def check_chat_stream(url, model):
    options = {"num_predict": 8, "temperature": 0}
    parts = list(connect(url).chat(model, messages=USER, options=options, stream=True))
    assert parts[-1].done and not any(part.done for part in parts[:-1])
    text = "".join(part.message.content for part in parts)
    assert connect(url).chat(model, messages=USER, options=options).message.content == text


def check_generate(url, model):
    client = connect(url)
    answer = client.generate(model, prompt="Hello", system="Be brief.", options={"num_predict": 6, "stop": ["\n\n"]})
    assert isinstance(answer.response, str) and answer.done
    client.generate(model, prompt="Once upon", raw=True, options={"num_predict": 4}, keep_alive="5m")
    assert client.generate(model).done_reason == "load"
    parts = list(client.generate(model, prompt="Hello", stream=True, options={"num_predict": 4}))
    assert parts[-1].done


def check_format(url, model):
    answer = connect(url).chat(model, messages=USER, format=PERSON, options={"num_predict": 300})
    if answer.done_reason == "stop":
        check(answer.message.content, PERSON)
    answer = connect(url).generate(model, prompt="JSON", format="json", options={"num_predict": 300})
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.response), dict)


def check_tools(url, model):
    def forecast(city: str, days: int) -> str:
        """A forecast.

        Args:
            city: Where.
            days: How far.
        """
        return f"{city} {days}"

    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}}
    client = connect(url)
    client.chat(model, messages=USER, tools=[forecast], options={"num_predict": 8})
    messages = USER + [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "content": "Sunny.", "tool_name": "weather"},
    ]
    client.chat(model, messages=messages, tools=[tool], options={"num_predict": 8})


def check_embeddings(url, model):
    client = connect(url)
    both = client.embed(model, input=["a cat", "a dog"])
    one = client.embed(model, input="a cat")
    assert both.embeddings[0] == one.embeddings[0] and both.prompt_eval_count > 0
    assert abs(sum(x * x for x in one.embeddings[0]) - 1) < 1e-4
    assert client.embeddings(model, prompt="a cat").embedding == one.embeddings[0]
    assert len(client.embed(model, input="a cat", dimensions=16).embeddings[0]) == 16


def check_errors(url, model):
    client = connect(url)
    error = expect(ollama.ResponseError, lambda: client.chat("no-such-model", messages=USER))
    assert error.status_code == 404 and "no-such-model" in error.error
    for extra, named in [
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"num_ctx": 10**9}}, "options.num_ctx"),
        ({"format": {"not": {}}}, "format"),
        ({"think": True}, "think"),
    ]:
        error = expect(ollama.ResponseError, lambda: client.chat(model, messages=USER, **extra))
        assert error.status_code == 400 and named in error.error, (extra, error)
    error = expect(ollama.ResponseError, lambda: client.generate(model, prompt="a", suffix="b"))
    assert error.status_code == 400 and "suffix" in error.error


def check_cancelling(url, model):
    client = connect(url)
    stream = client.generate(model, prompt="Hello", stream=True, raw=True, options={"num_predict": 1500})
    next(stream)
    stream.close()
    assert client.chat(model, messages=USER, options={"num_predict": 2}).done
