"""What schemathesis cannot read in the contract.

That a name stands for one request only, which jobs there are, how integers are written, what a page and a batch are.
And what the contract promises in words: that a repetition is harmless, and that HEAD is GET without the body.
"""

import collections
import email.utils
import hashlib
import itertools
import json
import uuid

import jsonschema_rs
import requests
import schemathesis

SUBMIT = "POST /jobs"
BATCH = "POST /jobs/batch"
PUT = "PUT /jobs/{id}"
CHANGE = "PATCH /jobs/{id}"
DELETE = "DELETE /jobs/{id}"
CANCEL = "POST /jobs/{id}/cancel"
SHOW_KEY = "GET /idempotency-keys/{key}"
KEY = "Idempotency-Key"
FIRST_SENT = "Repeatability-First-Sent"
# One in so many requests stays as it was generated: what the others are spared wants to be seen, too.
KEPT = 8
# What a repetition is answered, of what can be repeated.
AGAIN = {(SUBMIT, 201): 200, (PUT, 201): 200, (PUT, 200): 200, (CHANGE, 200): 200, (CANCEL, 200): 200, (DELETE, 204): 204}
# Header fields that differ from answer to answer.
MOVING = {"date", "ratelimit", "x-request-id"}

# What each name stands for: a key, in the scope of SUBMIT or CHANGE, or the id of a PUT.
_meanings = {SUBMIT: {}, CHANGE: {}, PUT: {}}
# The ETag of each job that waits, as far as it has been seen, and the jobs that have been cancelled or deleted.
_waiting = {}
_over = []
_prepared = set()
_schemas = {}
_turns = collections.defaultdict(itertools.count)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes of a request what a client would send. A repetition is sent as it was before."""
    if case.id in _prepared:
        return
    _prepared.add(case.id)
    label = case.operation.label
    if label in (CHANGE, CANCEL, DELETE):
        _find_job(case)
    if label == CHANGE:
        _find_version(case)
    if label == SHOW_KEY:
        _find_key(case)
    if label in (SUBMIT, BATCH):
        _separate_pointers(case)
    if label in (SUBMIT, BATCH, CHANGE):
        _date(case)
    if label in (SUBMIT, BATCH, CHANGE, PUT):
        _find_name(case)


def _date(case):
    """Dates a request now. What is a date, and which are too long ago or in the future, a schema cannot tell."""
    if FIRST_SENT in (case.headers or {}):
        case.headers[FIRST_SENT] = email.utils.formatdate(usegmt=True)


def _separate_pointers(case):
    """Leaves out the pointers of `unique` that lead into the place of another, and adds one where none leads to a value.

    A schema can say neither.

    Only where the body is good but for them: a bad one must not become a good one.
    """
    within = case.operation.label == BATCH
    if not _fits(case, "BatchItem" if within else "NewJob"):
        return
    job = case.body["job"] if within else case.body
    if "unique" not in job:
        return
    by = job["unique"]["by"]
    by = [one for one in by if not any(one.startswith(f"{other}/") for other in by)]
    if not any(_leads_to_a_value(job, pointer) for pointer in by):
        by = ["/payload"]
    job = {**job, "unique": {"by": by}}
    case.body = {**case.body, "job": job} if within else job


def _leads_to_a_value(job, pointer):
    value = job
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step in map(str, range(len(value))):
            value = value[int(step)]
        else:
            return False
    return True


def _find_name(case):
    """Gives a new name to a request whose name already stands for another one.

    Schemathesis likes the names of the examples and short ones, and tries body after body with them. All but the first
    would be refused: nothing would come to the database, and a body that should have been refused would seem to be.
    """
    scope, name = _name(case)
    if name is None or _meanings[scope].get(name, _text(case)) == _text(case):
        return
    number = next(_turns[case.operation.label])
    if not (case.meta.generation.mode.is_negative or number % KEPT):
        return
    new = f"contract-check.{next(_turns['names'])}"
    if scope == PUT:
        case.path_parameters["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, new))
    elif case.operation.label == BATCH:
        case.body = {**case.body, "idempotency_key": new}
    else:
        case.headers[KEY] = new


def _find_job(case):
    """Leads a request to a job that waits, or now and then to one that is over, where its id is none of a job.

    Not in walks along the links: there the id comes from an answer.
    """
    job = _job(case)
    if job is None or job in _waiting or case.meta.phase.name.value == "stateful":
        return
    number = next(_turns["jobs"])
    jobs = _over if number % KEPT == 1 else list(_waiting)
    if jobs and number % KEPT:
        case.path_parameters["id"] = jobs[number % len(jobs)]


def _find_version(case):
    """Adds the version that the job is of to those that a request names."""
    named = case.headers.get("If-Match")
    if named is None or named == "*" or case.meta.generation.mode.is_negative:
        return
    if next(_turns["versions"]) % KEPT:
        version = _waiting.get(_job(case))
        case.headers["If-Match"] = f"{named}, {version}" if version else "*"


def _find_key(case):
    """Asks for a key that has been used. Which have been, a schema cannot tell."""
    known = _meanings[CHANGE if case.query.get("route") == CHANGE else SUBMIT]
    # It sends a question mark in a path as it is, and what follows would be a query.
    known = [key for key in known if "?" not in key]
    number = next(_turns["keys"])
    if known and number % KEPT and case.meta.generation.mode.is_positive:
        case.path_parameters["key"] = known[number % len(known)]


@schemathesis.hook
def after_call(context, case, response):
    """Remembers what a name stands for, and how the jobs are."""
    label, status, job = case.operation.label, response.status_code, _job(case)
    if label in (SUBMIT, BATCH, CHANGE, PUT) and status in (200, 201):
        scope, name = _name(case)
        if name is not None:
            _meanings[scope][name] = _text(case)
    for made in _made(label, response):
        _waiting[made["id"]] = f'"{made["version"]}"'
        # Its content as a PUT would have to send it is not known.
        _meanings[PUT].setdefault(made["id"], None)
    if job in _waiting and status == 200 and "etag" in response.headers:
        _waiting[job] = response.headers["etag"][0]
    if label == DELETE and status == 204:
        _meanings[PUT][job] = None
    if (label, status) in ((CANCEL, 200), (DELETE, 204)) and job in _waiting:
        del _waiting[job]
        _over.append(job)


def _made(label, response):
    """The jobs that a request has made."""
    if label in (SUBMIT, PUT) and response.status_code == 201:
        return [response.json()]
    if label == BATCH and response.status_code == 200:
        return [line["job"] for line in _lines(response) if line["status"] == 201]
    return []


def _name(case):
    """The scope of the name that a request has, and the name; None where it has none."""
    if case.operation.label == PUT:
        return PUT, _job(case)
    if case.operation.label == BATCH:
        key = case.body.get("idempotency_key") if isinstance(case.body, dict) else None
        return SUBMIT, key if isinstance(key, str) else None
    # The same for both forms of a key, if it has no escapes.
    key = case.headers.get(KEY)
    return case.operation.label, None if key is None else key.partition('";')[0].strip('"')


def _text(case):
    """What a name stands for."""
    told = case.body
    if case.operation.label == BATCH:
        told = told.get("job")
    if case.operation.label == CHANGE:
        told = [case.path_parameters.get("id"), told]
    return json.dumps(told, default=repr)


def _job(case):
    """The id in the path, if it is one."""
    try:
        return str(uuid.UUID(case.path_parameters.get("id")))
    except (AttributeError, TypeError, ValueError):
        return None


@schemathesis.hook
def map_body(context, body):
    """Writes whole numbers without a fraction.

    To JSON Schema 3.0 is an integer. The contract wants integers to be written without fraction and exponent, which it
    can say in words only.
    """
    if isinstance(body, dict):
        job = body["job"] if isinstance(body.get("job"), dict) else body
        for name in ("priority", "max_attempts"):
            value = job.get(name)
            if isinstance(value, float) and value.is_integer():
                job[name] = int(value)
    return body


@schemathesis.deserializer("text/html")
def page(context, response):
    """A page is a string to its schema."""
    return response.text


@schemathesis.serializer("application/x-ndjson", "application/ndjson")
def batch(context, item):
    """The item, no item, one that is cut off, the item again, and a good one."""
    item = json.dumps(item, default=repr)
    digest = hashlib.sha256(item.encode()).hexdigest()
    good = {"idempotency_key": digest, "job": {"type": "contract-check", "payload": digest}}
    return "\n".join([item, "", "{", item, json.dumps(good)]).encode()


@schemathesis.deserializer("application/x-ndjson")
def first_line(context, response):
    """The schema is that of one line; the others are held to it by each_item_has_an_answer_of_its_own."""
    return _lines(response)[0]


def _lines(response):
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


@schemathesis.check
def repetition_is_the_first_answer(context, response, case):
    """The same request again: the same answer, but that what has been made is not made."""
    label = case.operation.label
    keyed = label in (SUBMIT, CHANGE) and KEY in case.headers
    status = AGAIN.get((label, response.status_code))
    if status is None or (label == CHANGE and not keyed):
        return
    again = _again(case, status)
    # PUT promises the same members, all others the same bytes.
    same = again.json() == response.json() if label == PUT else again.content == response.content
    assert same, f"The repetition's body is another one: {again.text}"
    for name in ("location", "etag", "idempotency-expires"):
        assert again.headers.get(name) == response.headers.get(name), f"The repetition's {name} is another one"
    assert not keyed or again.headers["idempotent-replayed"] == ["true"], "The repetition does not say that it is one"


@schemathesis.check
def each_item_has_an_answer_of_its_own(context, response, case):
    """A line for each item, good or bad; the same again is 200 for what has been done."""
    if case.operation.label != BATCH or response.status_code != 200:
        return
    lines = _lines(response)
    assert [line["item"] for line in lines] == [0, 1, 2, 3], f"Not a line for each item: {response.text}"
    for line in lines:
        _schema(case, "BatchAnswer").validate(line)
    first, cut_off, repeated, good = lines
    expected = (200, 201, 422) if _fits(case, "BatchItem") else (400,)
    assert first["status"] in expected, f"The item was answered {first['status']}, not one of {expected}"
    assert cut_off["status"] == 400, f"What is not JSON was answered {cut_off['status']}"
    assert good["status"] in (200, 201), f"A good item was answered {good['status']}"
    _hold_repeated(first, repeated)
    for line, again in zip(lines, _lines(_again(case, 200)), strict=True):
        _hold_repeated(line, again)


def _hold_repeated(line, again):
    done = line["status"] in (200, 201)
    assert again["status"] == (200 if done else line["status"]), f"The repeated item was answered {again['status']}"
    for name in ("job", "location", "idempotency_expires"):
        assert again.get(name) == line.get(name), f"The repeated item's {name} is another one: {again.get(name)}"
    assert not done or again["idempotent_replayed"], "The repeated item does not say that it is one"


def _fits(case, name):
    return isinstance(case.body, dict) and _schema(case, name).is_valid(case.body)


def _schema(case, name):
    if name not in _schemas:
        components = case.operation.schema.raw_schema["components"]
        document = {"$ref": f"#/components/schemas/{name}", "components": components}
        _schemas[name] = jsonschema_rs.Draft202012Validator(document, validate_formats=True)
    return _schemas[name]


def _again(case, status):
    again = case.call()
    case.operation.validate_response(again)
    assert again.status_code == status, f"The repetition was answered {again.status_code}"
    return again


@schemathesis.check
def head_is_get_without_the_body(context, response, case):
    """The same status and header fields, and no body, for errors as well."""
    if case.method != "GET" or next(_turns["heads", case.operation.label]) % KEPT:
        return
    request = response.request.copy()
    request.method = "HEAD"
    with requests.Session() as session:
        head = session.send(request, timeout=20, allow_redirects=False)
    assert head.status_code == response.status_code, f"HEAD was answered {head.status_code}"
    assert not head.content, f"HEAD was answered with a body: {head.text}"
    fields = {name.lower(): [value] for name, value in head.headers.items()}
    assert fields.keys() == response.headers.keys(), f"HEAD was answered with other header fields: {sorted(fields)}"
    # Of queues the answer tells how old the oldest job is by now.
    for name in fields.keys() - MOVING - ({"content-length"} if case.path == "/queues" else set()):
        assert fields[name] == response.headers[name], f"HEAD was answered with another {name}: {fields[name]}"
