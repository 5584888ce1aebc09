"""What schemathesis cannot read in the contract: how keys are used, how integers are written, and what a page is."""

import itertools
import json

import schemathesis

SUBMIT = "POST /jobs"
KEY = "Idempotency-Key"
# One in so many requests keeps a key that another request has used: 422 wants to be seen, too.
KEPT = 8

_bodies = {}
_numbers = itertools.count(1)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Gives a new key to a request whose key already stands for another one.

    Schemathesis likes the keys of the examples and short ones, and tries body after body with them. All but the first
    would be answered 422: nothing would come to the database, and a body that should have been refused would seem to be.
    """
    if case.operation.label != SUBMIT or KEY not in case.headers:
        return
    if _bodies.get(_key(case), _text(case)) == _text(case):
        return
    number = next(_numbers)
    if case.meta.generation.mode.is_negative or number % KEPT:
        case.headers[KEY] = f"contract-check.{number}"


@schemathesis.hook
def after_call(context, case, response):
    """Remembers what a key stands for."""
    if case.operation.label == SUBMIT and response.status_code in (200, 201):
        _bodies[_key(case)] = _text(case)


def _key(case):
    """The same for both forms of a key, if it has no escapes."""
    return case.headers[KEY].partition('";')[0].strip('"')


def _text(case):
    return json.dumps(case.body, default=repr)


@schemathesis.hook
def map_body(context, body):
    """Writes whole numbers without a fraction.

    To JSON Schema 3.0 is an integer. The contract wants integers to be written without fraction and exponent, which it
    can say in words only.
    """
    if isinstance(body, dict):
        for name in ("priority", "max_attempts"):
            value = body.get(name)
            if isinstance(value, float) and value.is_integer():
                body[name] = int(value)
    return body


@schemathesis.deserializer("text/html")
def page(context, response):
    """A page is a string to its schema."""
    return response.text


@schemathesis.check
def replay_is_the_first_answer(context, response, case):
    """The same request again: 200, the same bytes, the same place."""
    if case.operation.label != SUBMIT or response.status_code != 201:
        return
    again = case.call()
    case.operation.validate_response(again)
    assert again.status_code == 200, f"The repetition of a 201 was answered {again.status_code}"
    assert again.content == response.content, f"The repetition's body is another one: {again.text}"
    assert again.headers["location"] == response.headers["location"], "The repetition's Location is another one"
