"""Schemas and functions that the checks of all clients use."""

import json

import jsonschema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def check(text_or_value, schema):
    """Fails unless the value, or the JSON in the text, is valid."""
    value = json.loads(text_or_value) if isinstance(text_or_value, str) else text_or_value
    jsonschema.validate(value, schema)
    return value


def expect(error, call):
    """Fails unless the call raises the error, which is returned."""
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")
