"""Hooks and checks for what the schemas of the contract cannot express.

Hooks: a name (an idempotency key or the id of a PUT) belongs to one request, the ids of existing jobs and claims, the
format of integers, short waits, HTML pages and batches. Checks: a retry is safe, and HEAD is GET without the body.
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
RETRY = "POST /jobs/{id}/retry"
SHOW = "GET /jobs/{id}"
ATTEMPTS = "GET /jobs/{id}/attempts"
CLAIM = "PUT /claims/{claim_id}"
SHOW_CLAIM = "GET /claims/{claim_id}"
EXTEND = "POST /claims/{claim_id}/heartbeat"
REPORT = "POST /claims/{claim_id}/results"
RELEASE = "DELETE /claims/{claim_id}"
SHOW_KEY = "GET /idempotency-keys/{key}"
KEY = "Idempotency-Key"
FIRST_SENT = "Repeatability-First-Sent"
# One in KEPT requests stays as generated, so that the unchanged inputs are tested, too.
KEPT = 8
# The status of a retry, by operation and status of the first response.
AGAIN = {
    (SUBMIT, 201): 200,
    (PUT, 201): 200,
    (PUT, 200): 200,
    (CHANGE, 200): 200,
    (CANCEL, 200): 200,
    (RETRY, 200): 200,
    (DELETE, 204): 204,
    (CLAIM, 201): 200,
    (RELEASE, 204): 204,
}
# Header fields that differ in each response.
MOVING = {"date", "ratelimit", "x-request-id"}

# The content of the request that used each name: a key in the scope of SUBMIT, CHANGE or RETRY, or the id of a PUT.
_meanings = {SUBMIT: {}, CHANGE: {}, RETRY: {}, PUT: {}, CLAIM: {}}
# The last known ETag of each queued job, and the jobs that have ended or are deleted.
_waiting = {}
_over = []
# The jobs that each claim holds.
_held = {}
_prepared = set()
_schemas = {}
_turns = collections.defaultdict(itertools.count)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Changes a generated request into one that a client would send. A retry is sent unchanged."""
    if case.id in _prepared:
        return
    _prepared.add(case.id)
    label = case.operation.label
    if label in (CHANGE, CANCEL, DELETE, RETRY, ATTEMPTS):
        _find_job(case)
    if label in (SHOW_CLAIM, EXTEND, REPORT, RELEASE):
        _find_claim(case)
    if label == CLAIM:
        _find_work(case)
    if label == REPORT:
        _find_held_jobs(case)
    if label == SHOW:
        _wait_briefly(case.query)
    if label == CHANGE:
        _find_version(case)
    if label == SHOW_KEY:
        _find_key(case)
    if label in (SUBMIT, BATCH):
        _separate_pointers(case)
    if label in (SUBMIT, BATCH, CHANGE, RETRY):
        _date(case)
    if label in (SUBMIT, BATCH, CHANGE, RETRY, PUT, CLAIM):
        _find_name(case)


def _date(case):
    """Sets the time of the first attempt to now. A schema cannot express which times are valid."""
    if FIRST_SENT in (case.headers or {}):
        case.headers[FIRST_SENT] = email.utils.formatdate(usegmt=True)


def _separate_pointers(case):
    """Corrects the pointers of `unique`: removes one that leads into another, adds one if none leads to a value.

    A schema cannot express these rules. Only if the body is otherwise valid: an invalid body must stay invalid.
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
    """Gives a new name to a request whose name already belongs to another one.

    Schemathesis often uses the names of the examples and short names, with one body after another. The server would
    refuse all except the first: the database would not be tested, and an invalid body would be refused for its name.
    """
    scope, name = _name(case)
    if name is None or _meanings[scope].get(name, _text(case)) == _text(case):
        return
    number = next(_turns[case.operation.label])
    if not (case.meta.generation.mode.is_negative or number % KEPT):
        return
    new = f"contract-check.{next(_turns['names'])}"
    if scope in (PUT, CLAIM):
        case.path_parameters["id" if scope == PUT else "claim_id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, new))
    elif case.operation.label == BATCH:
        case.body = {**case.body, "idempotency_key": new}
    else:
        case.headers[KEY] = new


def _find_job(case):
    """Replaces an unknown job id by that of a queued job, and sometimes by that of an ended or deleted one.

    The other way round for RETRY, which needs a job that has ended. Not in the stateful phase: there the id comes from
    a response.
    """
    job = _job(case)
    usual, other = (_over, list(_waiting)) if case.operation.label == RETRY else (list(_waiting), _over)
    if job is None or job in usual or case.meta.phase.name.value == "stateful":
        return
    # The first requests of an operation get what it needs: a phase may send only a few valid ones.
    number = next(_turns[f"jobs of {case.operation.label}"])
    jobs = other if number % KEPT == KEPT - 2 else usual
    if jobs and number % KEPT != KEPT - 1:
        case.path_parameters["id"] = jobs[number % len(jobs)]


def _find_claim(case):
    """Replaces an unknown claim id by that of a claim that holds jobs.

    Seldom for RELEASE: heartbeats and results come later and need the claims.
    """
    claim = _claim(case)
    if claim is None or claim in _held or case.meta.phase.name.value == "stateful":
        return
    number = next(_turns[case.operation.label])
    claims = list(_held)
    if claims and (number % KEPT == 0 if case.operation.label == RELEASE else number % KEPT):
        case.path_parameters["claim_id"] = claims[number % len(claims)]


def _find_work(case):
    """Claims a few jobs of the queue that most jobs are in, too, and mostly for long, because few claims are extended.

    A schema cannot know which queues have jobs.
    """
    if not _fits(case, "NewClaim"):
        return
    queues = ["default", *(queue for queue in case.body["queues"] if queue != "default")]
    case.body = {**case.body, "queues": queues[:16]}
    if case.body.get("max_jobs", 1) > 3:
        case.body["max_jobs"] = 3
    if next(_turns["leases"]) % KEPT:
        case.body["lease_seconds"] = 900
    _wait_briefly(case.body)


def _find_held_jobs(case):
    """Reports on jobs that the claim holds, each once. A schema can express neither."""
    if not _fits(case, "Results"):
        return
    held = iter(_held.get(_claim(case), []))
    items = [{**item, "job_id": next(held, None) or str(uuid.uuid4())} for item in case.body["results"]]
    case.body = {"results": items}


def _wait_briefly(members):
    """Sends a valid wait as 0, and seldom as 1: most requests would wait, and longer than schemathesis does."""
    wait = members.get("wait_seconds") if isinstance(members, dict) else None
    if isinstance(wait, bool) or str(wait) not in map(str, range(1, 31)):
        return
    seconds = 1 if next(_turns["waits"]) % (KEPT * KEPT) == 0 else 0
    members["wait_seconds"] = str(seconds) if isinstance(wait, str) else seconds


def _find_version(case):
    """Adds the current version of the job to the versions in If-Match."""
    named = case.headers.get("If-Match")
    if named is None or named == "*" or case.meta.generation.mode.is_negative:
        return
    if next(_turns["versions"]) % KEPT:
        version = _waiting.get(_job(case))
        case.headers["If-Match"] = f"{named}, {version}" if version else "*"


def _find_key(case):
    """Requests a used key. A schema cannot know the used keys."""
    route = case.query.get("route")
    known = _meanings[route if route in (CHANGE, RETRY) else SUBMIT]
    # Schemathesis does not encode a question mark in a path, so the rest would become a query.
    known = [key for key in known if "?" not in key]
    number = next(_turns["keys"])
    if known and number % KEPT and case.meta.generation.mode.is_positive:
        case.path_parameters["key"] = known[number % len(known)]


@schemathesis.hook
def after_call(context, case, response):
    """Records the used names, the state of the jobs, and which claim holds them."""
    label, status, job = case.operation.label, response.status_code, _job(case)
    if label in (SUBMIT, BATCH, CHANGE, RETRY, PUT) and status in (200, 201):
        scope, name = _name(case)
        if name is not None:
            _meanings[scope][name] = _text(case)
    for made in _made(label, response):
        _waiting[made["id"]] = f'"{made["version"]}"'
        # The content that a PUT would have to send is not known.
        _meanings[PUT].setdefault(made["id"], None)
    if job in _waiting and status == 200 and "etag" in response.headers:
        _waiting[job] = response.headers["etag"][0]
    if label == DELETE and status == 204:
        _meanings[PUT][job] = None
    if (label, status) in ((CANCEL, 200), (DELETE, 204)) and job in _waiting:
        del _waiting[job]
        _over.append(job)
    if (label, status) == (RETRY, 200) and job in _over:
        _over.remove(job)
        _waiting[job] = response.headers["etag"][0]
    _record_claim(case, response)


def _record_claim(case, response):
    label, status, claim = case.operation.label, response.status_code, _claim(case)
    if label == CLAIM and status in (200, 201) and response.json()["jobs"]:
        _meanings[CLAIM][claim] = _text(case)
        _held[claim] = [job["id"] for job in response.json()["jobs"]]
        for job in _held[claim]:
            _waiting.pop(job, None)
    if label == REPORT and status == 200:
        for item in response.json()["results"]:
            if item["status"] == "recorded" and item["job_id"] in _held.get(claim, []):
                _held[claim].remove(item["job_id"])
                if item["state"] != "queued":
                    _over.append(item["job_id"])
        if not _held.get(claim, True):
            del _held[claim]
    if (label, status) in ((RELEASE, 204), (EXTEND, 410)):
        _held.pop(claim, None)


def _made(label, response):
    """The jobs that a request has created."""
    if label in (SUBMIT, PUT) and response.status_code == 201:
        return [response.json()]
    if label == BATCH and response.status_code == 200:
        return [line["job"] for line in _lines(response) if line["status"] == 201]
    return []


def _name(case):
    """The scope and the name of a request. The name is None if the request has none."""
    if case.operation.label == PUT:
        return PUT, _job(case)
    if case.operation.label == CLAIM:
        return CLAIM, _claim(case)
    if case.operation.label == BATCH:
        key = case.body.get("idempotency_key") if isinstance(case.body, dict) else None
        return SUBMIT, key if isinstance(key, str) else None
    # Works for both forms of a key without escapes.
    key = case.headers.get(KEY)
    return case.operation.label, None if key is None else key.partition('";')[0].strip('"')


def _text(case):
    """The content that a name belongs to."""
    told = case.body
    if case.operation.label == BATCH:
        told = told.get("job")
    if case.operation.label == CHANGE:
        told = [case.path_parameters.get("id"), told]
    if case.operation.label == RETRY:
        told = case.path_parameters.get("id")
    if case.operation.label == CLAIM and isinstance(told, dict):
        told = {name: value for name, value in told.items() if name != "wait_seconds"}
    return json.dumps(told, default=repr)


def _job(case):
    """The job id in the path, or None if it is not a UUID."""
    return _uuid(case, "id")


def _claim(case):
    """The claim id in the path, or None if it is not a UUID."""
    return _uuid(case, "claim_id")


def _uuid(case, name):
    try:
        return str(uuid.UUID((case.path_parameters or {}).get(name)))
    except (AttributeError, TypeError, ValueError):
        return None


@schemathesis.hook
def map_body(context, body):
    """Writes whole numbers without a fraction.

    In JSON Schema, 3.0 is an integer. The contract requires integers without fraction and exponent, which a schema
    cannot express.
    """
    if isinstance(body, dict):
        job = body["job"] if isinstance(body.get("job"), dict) else body
        for name in ("priority", "max_attempts", "max_jobs", "lease_seconds", "wait_seconds"):
            value = job.get(name)
            if isinstance(value, float) and value.is_integer():
                job[name] = int(value)
    return body


@schemathesis.deserializer("text/html")
def page(context, response):
    """The schema of a page is a string."""
    return response.text


@schemathesis.serializer("application/x-ndjson", "application/ndjson")
def batch(context, item):
    """The item, an empty line, a truncated item, the item again, and a valid item."""
    item = json.dumps(item, default=repr)
    digest = hashlib.sha256(item.encode()).hexdigest()
    good = {"idempotency_key": digest, "job": {"type": "contract-check", "payload": digest}}
    return "\n".join([item, "", "{", item, json.dumps(good)]).encode()


@schemathesis.deserializer("application/x-ndjson")
def first_line(context, response):
    """The schema describes one line. each_item_has_an_answer_of_its_own checks the other lines."""
    return _lines(response)[0]


def _lines(response):
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


@schemathesis.check
def repetition_is_the_first_answer(context, response, case):
    """A retry gets the same response, with the status for what already exists."""
    label = case.operation.label
    keyed = label in (SUBMIT, CHANGE, RETRY) and KEY in case.headers
    status = AGAIN.get((label, response.status_code))
    if status is None or (label == CHANGE and not keyed):
        return
    again = _again(case, status)
    # PUT promises the same members, the other operations the same bytes.
    same = again.json() == response.json() if label in (PUT, CLAIM) else again.content == response.content
    assert same, f"The retry got another body: {again.text}"
    for name in ("location", "etag", "idempotency-expires"):
        assert again.headers.get(name) == response.headers.get(name), f"The retry got another {name}"
    assert not keyed or again.headers["idempotent-replayed"] == ["true"], "The retry got no Idempotent-Replayed: true"


@schemathesis.check
def a_result_is_recorded_once(context, response, case):
    """The response has an item for each result, in order. In a retry, a recorded result is already recorded."""
    if case.operation.label != REPORT or response.status_code != 200:
        return
    items = response.json()["results"]
    reported = [item["job_id"].lower() for item in case.body["results"]]
    assert [item["job_id"] for item in items] == reported, f"Not one item for each result: {response.text}"
    for item, again in zip(items, _again(case, 200).json()["results"], strict=True):
        expected = "already-recorded" if item["status"] == "recorded" else item["status"]
        assert again["status"] == expected, f"{item['status']} became {again['status']}"


@schemathesis.check
def each_item_has_an_answer_of_its_own(context, response, case):
    """The response has a line for each item, valid or not. In a retry, the lines of items that succeeded have 200."""
    if case.operation.label != BATCH or response.status_code != 200:
        return
    lines = _lines(response)
    assert [line["item"] for line in lines] == [0, 1, 2, 3], f"Not one line for each item: {response.text}"
    for line in lines:
        _schema(case, "BatchAnswer").validate(line)
    first, cut_off, repeated, good = lines
    expected = (200, 201, 422) if _fits(case, "BatchItem") else (400,)
    assert first["status"] in expected, f"The item got {first['status']}, expected one of {expected}"
    assert cut_off["status"] == 400, f"An item that is not JSON got {cut_off['status']}"
    assert good["status"] in (200, 201), f"A valid item got {good['status']}"
    _hold_repeated(first, repeated)
    for line, again in zip(lines, _lines(_again(case, 200)), strict=True):
        _hold_repeated(line, again)


def _hold_repeated(line, again):
    done = line["status"] in (200, 201)
    assert again["status"] == (200 if done else line["status"]), f"The repeated item got {again['status']}"
    for name in ("job", "location", "idempotency_expires"):
        assert again.get(name) == line.get(name), f"The repeated item got another {name}: {again.get(name)}"
    assert not done or again["idempotent_replayed"], "The repeated item got no idempotent_replayed: true"


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
    assert again.status_code == status, f"The retry got {again.status_code}"
    return again


@schemathesis.check
def head_is_get_without_the_body(context, response, case):
    """HEAD gets the same status and header fields as GET, and no body. This includes errors."""
    if case.method != "GET" or next(_turns["heads", case.operation.label]) % KEPT:
        return
    request = response.request.copy()
    request.method = "HEAD"
    with requests.Session() as session:
        head = session.send(request, timeout=20, allow_redirects=False)
    assert head.status_code == response.status_code, f"HEAD got {head.status_code}"
    assert not head.content, f"HEAD got a body: {head.text}"
    fields = {name.lower(): [value] for name, value in head.headers.items()}
    assert fields.keys() == response.headers.keys(), f"HEAD got other header fields: {sorted(fields)}"
    # The response of /queues contains the age of the oldest job, so its length can change.
    for name in fields.keys() - MOVING - ({"content-length"} if case.path == "/queues" else set()):
        assert fields[name] == response.headers[name], f"HEAD got another {name}: {fields[name]}"
