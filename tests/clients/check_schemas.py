"""JSON schemas of all kinds: what is answered validates, what cannot be enforced is refused by name."""

import concurrent.futures
import http.client
import json
from decimal import Decimal
from urllib.parse import urlparse

import jsonschema
from json_schemas import ENFORCED, REFUSED

# Greedy, and two ways to be surprised.
WAYS = [{"temperature": 0}, {"temperature": 1, "seed": 1}, {"temperature": 2, "seed": 2}]


def ask(url, model, schema, **more):
    connection = http.client.HTTPConnection(urlparse(url).netloc, timeout=300)
    body = {"model": model, "messages": [{"role": "user", "content": "Give me an example."}], "max_tokens": 120}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}}
    connection.request("POST", "/v1/chat/completions", json.dumps(body | more))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def validate(text, schema):
    # Decimal, because 0.07 is a multiple of 0.01.
    value = json.loads(text, parse_float=number)
    schema = json.loads(json.dumps(schema), parse_float=number)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(json.loads(json.dumps(schema, default=float)))
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(value)


def number(text):
    value = Decimal(text)
    # 1.0 is an integer, which the validator knows of floats only.
    return int(value) if value.adjusted() < 400 and value == value.to_integral_value() else value


def enforced(url, model, name, schema):
    """Faults, and how many answers ended."""
    faults, ended = [], 0
    for way in WAYS:
        status, answer = ask(url, model, schema, **way)
        if status != 200:
            return [f"{name}: {status} {answer['error']['message']}"], ended
        choice = answer["choices"][0]
        if choice["finish_reason"] == "length":
            continue
        ended += 1
        try:
            assert choice["finish_reason"] == "stop", choice["finish_reason"]
            validate(choice["message"]["content"], schema)
        except (AssertionError, ValueError, jsonschema.ValidationError) as error:
            faults.append(f"{name}: {choice['message']['content']!r}: {str(error).splitlines()[0]}")
    return faults, ended


def refused(url, model, name, schema, word):
    status, answer = ask(url, model, schema)
    message = answer.get("error", {}).get("message", "")
    if status == 400 and word in message and answer["error"]["param"].startswith("response_format"):
        return []
    return [f"{name}: {status}, not a 400 with `{word}`: {message or answer['choices'][0]}"]


def cut(url, model, name, schema):
    """One token is not enough for most; then it says so."""
    status, answer = ask(url, model, schema, max_tokens=1)
    if status != 200:
        return []
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        validate(choice["message"]["content"], schema)
    elif choice["finish_reason"] != "length":
        return [f"{name}: cut, and {choice['finish_reason']}"]
    return []


def check_schemas(url, model):
    assert len(ENFORCED) + len(REFUSED) >= 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: enforced(url, model, *case), ENFORCED.items()))
        faults = [fault for found, _ in answers for fault in found]
        for found in pool.map(lambda case: refused(url, model, case[0], *case[1]), REFUSED.items()):
            faults += found
        for found in pool.map(lambda case: cut(url, model, *case), ENFORCED.items()):
            faults += found
    ended = sum(ended for _, ended in answers)
    print(f"{len(ENFORCED)} schemas: {ended} of {len(WAYS) * len(ENFORCED)} answers ended; {len(REFUSED)} to refuse")
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
    assert ended > 0.9 * len(WAYS) * len(ENFORCED), ended
