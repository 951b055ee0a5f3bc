"""What well-behaved clients do: short and long, whole and streamed, over every API. Each task reads its answer to the end."""

import json

import grpc
from schemas import PERSON, WEATHER, check
from soak_wire import Refused

WORDS = "the harbour was quiet that morning and a gull cried over boats which nobody had moved since spring".split()
# Instructions that many requests begin with.
SHARED = [" ".join(WORDS[(index + shift) % len(WORDS)] for index in range(300)) for shift in range(4)]
GRPC = "/edgelm.v1.EdgeLM/{*method}"
OUT_OF_PLACES = grpc.StatusCode.RESOURCE_EXHAUSTED


def text(chance, low=1, high=30):
    return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))


def messages(chance):
    """A conversation of one to three turns."""
    turns = [{"role": "user", "content": text(chance)}]
    for _ in range(chance.randint(0, 2)):
        turns += [{"role": "assistant", "content": text(chance)}, {"role": "user", "content": text(chance)}]
    if chance.random() < 0.3:
        turns.insert(0, {"role": "system", "content": text(chance)})
    return turns


def length(chance):
    return chance.choice([1, 4, 8, 16, 16, 32, 64, 200])


def sampling(chance):
    """Some of what OpenAI's clients send."""
    fields = {"max_tokens": length(chance), "temperature": chance.choice([0, 0.7, 1.0])}
    if chance.random() < 0.3:
        fields |= {"seed": chance.randrange(1000), "top_p": 0.9, "top_k": 40}
    if chance.random() < 0.2:
        fields |= {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"5": -100}}
    if chance.random() < 0.15:
        fields["n"] = chance.randint(2, 4)
    return fields


def openai_usage(usage):
    return usage["prompt_tokens"], usage["completion_tokens"]


def reason(word):
    """As the server's metrics say it."""
    return "length" if word in ("length", "max_tokens", "incomplete", 2) else "stop"


def chat(wire, chance):
    body = {"model": wire.model, "messages": messages(chance)} | sampling(chance)
    if chance.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": 3}
    whole(wire, "/v1/chat/completions", body)


def whole(wire, path, body):
    """One of OpenAI's answers."""
    answer = wire.ask(path, body)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(body.get("n", 1))), choices
    wire.counts.finished(openai_usage(answer["usage"]), [reason(choice["finish_reason"]) for choice in choices])
    return choices


def chat_stream(wire, chance):
    body = {"model": wire.model, "messages": messages(chance)} | sampling(chance)
    streamed(wire, "/v1/chat/completions", body)


def streamed(wire, path, body):
    """One of OpenAI's streams: a reason for every choice, then the usage, then the mark of the end."""
    events = list(wire.events(path, body | {"stream_options": {"include_usage": True}}))
    assert events and events[-1] == b"[DONE]", f"{path}: a stream without an end: {events[-1:]}"
    ends = [(choice["index"], choice["finish_reason"]) for event in events[:-2] for choice in event["choices"]
            if choice["finish_reason"]]
    assert [index for index, _ in ends] == list(range(body.get("n", 1))), ends
    wire.counts.finished(openai_usage(events[-2]["usage"]), [reason(why) for _, why in ends])


def completion(wire, chance):
    prompt = text(chance) if chance.random() < 0.7 else [chance.randrange(5, 500) for _ in range(20)]
    whole(wire, "/v1/completions", {"model": wire.model, "prompt": prompt} | sampling(chance))


def completion_stream(wire, chance):
    streamed(wire, "/v1/completions", {"model": wire.model, "prompt": text(chance)} | sampling(chance))


def long_prompt(wire, chance):
    body = {"model": wire.model, "prompt": text(chance, 300, 700), "max_tokens": length(chance)}
    streamed(wire, "/v1/completions", body)


def shared_prefix(wire, chance):
    system = {"role": "system", "content": chance.choice(SHARED)}
    body = {"model": wire.model, "messages": [system, {"role": "user", "content": text(chance)}]} | sampling(chance)
    streamed(wire, "/v1/chat/completions", body)


def responses(wire, chance):
    body = {"model": wire.model, "input": text(chance), "max_output_tokens": length(chance)}
    if chance.random() < 0.5:
        events = list(wire.events("/v1/responses", body))
        response = events[-1]["response"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
    else:
        response = wire.ask("/v1/responses", body)
    assert response["status"] in ("completed", "incomplete"), response
    usage = response["usage"]
    wire.counts.finished((usage["input_tokens"], usage["output_tokens"]), [reason(response["status"])])


def anthropic(wire, chance):
    anthropic_answer(wire, {"model": wire.model, "messages": messages(chance), "max_tokens": length(chance)}, chance)


def anthropic_stops(wire, chance):
    body = {"model": wire.model, "messages": messages(chance), "max_tokens": 40, "stop_sequences": ["e", "\n\n"]}
    anthropic_answer(wire, body, chance)


def anthropic_answer(wire, body, chance):
    system = [turn["content"] for turn in body["messages"] if turn["role"] == "system"]
    body["messages"] = [turn for turn in body["messages"] if turn["role"] != "system"]
    body |= {"system": system[0]} if system else {}
    if chance.random() < 0.5:
        events = list(wire.events("/v1/messages", body))
        assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop", events[-1]
        prompt = events[0]["message"]["usage"]["input_tokens"]
        why, tokens = events[-2]["delta"]["stop_reason"], events[-2]["usage"]["output_tokens"]
    else:
        answer = wire.ask("/v1/messages", body)
        prompt, tokens, why = answer["usage"]["input_tokens"], answer["usage"]["output_tokens"], answer["stop_reason"]
    wire.counts.finished((prompt, tokens), [reason(why)], is_short=why == "stop_sequence")


def ollama(wire, chance):
    options = {"num_predict": length(chance), "temperature": chance.choice([0, 0.8])}
    if chance.random() < 0.3:
        options["stop"] = ["e", "\n\n"]
    path, body = chance.choice([("/api/chat", {"messages": messages(chance)}), ("/api/generate", {"prompt": text(chance)})])
    body |= {"model": wire.model, "options": options}
    if chance.random() < 0.5:
        *_, last = wire.stream(path, body)
        last = json.loads(last)
    else:
        last = wire.ask(path, body | {"stream": False})
    assert last["done"], last
    wire.counts.finished((last["prompt_eval_count"], last["eval_count"]), [reason(last["done_reason"])])


def generate(wire, chance):
    body = {"prompt": text(chance), "max_tokens": length(chance)}
    if chance.random() < 0.5:
        *_, last, end = wire.events("/generate", body)
        assert end == b"[DONE]"
    else:
        last = wire.ask("/generate", body)
    wire.counts.finished(openai_usage(last), [reason(last["finish_reason"])])


def schema(wire, chance):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    body = {"model": wire.model, "messages": messages(chance), "response_format": form, "max_tokens": 200, "temperature": 1}
    (choice,) = whole(wire, "/v1/chat/completions", body)
    if choice["finish_reason"] == "stop":
        check(choice["message"]["content"], PERSON)


def tool(wire, chance):
    function = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    body = {"model": wire.model, "messages": messages(chance), "tools": [function], "tool_choice": "required",
            "parallel_tool_calls": False, "max_tokens": 200}
    (choice,) = whole(wire, "/v1/chat/completions", body)
    if choice["finish_reason"] == "tool_calls":
        (call,) = choice["message"]["tool_calls"]
        check(call["function"]["arguments"], WEATHER)


def regex(wire, chance):
    body = {"model": wire.model, "prompt": text(chance), "max_tokens": 20, "guided_regex": "[0-9]{4}-[01][0-9]"}
    (choice,) = whole(wire, "/v1/completions", body)
    assert len(choice["text"]) == 7, choice


def tokens(wire, chance):
    words = text(chance)
    ids = wire.ask("/tokenize", {"content": words})["tokens"]
    assert wire.ask("/detokenize", {"tokens": ids})["prompt"] == words


def embeddings(wire, chance):
    body = {"model": wire.model, "input": [text(chance) for _ in range(chance.randint(1, 3))]}
    assert len(wire.ask("/v1/embeddings", body)["data"]) == len(body["input"])


def listings(wire, _):
    assert wire.ask("/v1/models", method="GET")["data"]
    wire.ask(f"/v1/models/{wire.model}", method="GET", route="/v1/models/{*id}")
    wire.ask("/api/tags", method="GET")
    wire.ask("/openapi.json", method="GET")


def grpc_message(wire, chance):
    parameters = {"max_tokens": length(chance), "temperature": 0.7, "seed": chance.randrange(1000)}
    if chance.random() < 0.2:
        parameters["n"] = 2
    if chance.random() < 0.5:
        return "Generate", {"model": wire.model, "prompt": text(chance), "parameters": parameters}
    return "Chat", {"model": wire.model, "messages": messages(chance), "parameters": parameters}


def grpc_whole(wire, chance):
    name, message = grpc_message(wire, chance)
    answer = call(wire, name, message)
    wire.counts.finished((answer.usage.prompt_tokens, answer.usage.completion_tokens),
                         [reason(choice.finish_reason) for choice in answer.choices])


def grpc_stream(wire, chance):
    name, message = grpc_message(wire, chance)
    chunks = list(call(wire, f"{name}Stream", message))
    usage = chunks[-1].usage
    ends = [reason(chunk.finish_reason) for chunk in chunks if chunk.WhichOneof("event") == "finish_reason"]
    wire.counts.finished((usage.prompt_tokens, usage.completion_tokens), ends)


def call(wire, name, message):
    """A call that may find the queue full."""
    try:
        answer = wire.grpc(name, message, timeout=300)
        answer = list(answer) if name.endswith("Stream") else answer
    except grpc.RpcError as error:
        wire.counts.answered("POST", GRPC, 200)
        if error.code() == OUT_OF_PLACES:
            raise Refused from None
        raise
    wire.counts.answered("POST", GRPC, 200)
    return answer


# Read to the end, and every token of it is known.
EXACT = [chat, chat_stream, completion, completion_stream, responses, anthropic, ollama, generate, grpc_whole, grpc_stream]
TASKS = EXACT + [anthropic_stops, long_prompt, shared_prefix, shared_prefix, schema, tool, regex, tokens, embeddings, listings]
