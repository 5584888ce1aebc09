"""A worker for Hapax in Python. It needs the standard library only."""
import argparse, http.client, json, math, os, random, signal, sys, threading, time, urllib.request, uuid

class ErrorsAreAnswers(urllib.request.HTTPErrorProcessor):
    http_response = https_response = lambda self, request, response: response

OPENER = urllib.request.build_opener(ErrorsAreAnswers)

class Worker:
    def __init__(self, base, token, queues, work, lease_seconds=60, name=None):
        self.base, self.work, self.lease_seconds = base.rstrip("/"), work, lease_seconds
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.request = {"queues": queues, "lease_seconds": lease_seconds, "wait_seconds": 20}
        if name:
            self.request["worker"] = name

    def run(self):
        """Takes one job after the other, until an exception such as SystemExit ends it."""
        while True:
            claim, started = str(uuid.uuid4()), time.monotonic()
            try:
                status, answer = self.call("PUT", f"/claims/{claim}", self.request)
                if status not in (200, 201, 410):
                    raise RuntimeError(answer)
                jobs = answer.get("jobs", [])
                for job in jobs:
                    self.run_job(claim, job, answer["heartbeat_after_seconds"])
            except BaseException:
                # At shutdown: the job is queued again. After the lease, that happens without this call.
                self.call("DELETE", f"/claims/{claim}", limit_seconds=self.lease_seconds)
                raise
            if not jobs and time.monotonic() - started < self.request["wait_seconds"]:
                time.sleep(random.uniform(0.5, 1.5))  # the server shuts down, or too many requests wait

    def run_job(self, claim, job, heartbeat_seconds):
        stop, done = threading.Event(), threading.Event()
        heartbeats = (claim, job, heartbeat_seconds, stop, done)
        threading.Thread(target=self.send_heartbeats, args=heartbeats, daemon=True).start()
        try:
            report = {"outcome": "succeeded", "result": self.work(job, stop)}
            json.dumps(report)  # raises an exception if the result cannot be sent
        except Exception as error:
            report = {"outcome": "cancelled" if stop.is_set() else "failed", "error": repr(error)[:4000]}
        for report in (report, {"outcome": "failed", "error": "the result was refused", "retry": False}):
            results = {"results": [{"job_id": job["id"], **report}]}
            status, answer = self.call("POST", f"/claims/{claim}/results", results)
            if status == 200:
                return done.set()
        raise RuntimeError(answer)

    def send_heartbeats(self, claim, job, seconds, stop, done):
        while not done.wait(seconds):
            # A try that gets no answer must leave time for others within the lease.
            try:
                status, answer = self.call("POST", f"/claims/{claim}/heartbeat", None, self.lease_seconds - seconds, seconds)
            except TimeoutError:
                return stop.set()  # the lease may be over, and another worker may have the job
            cancelled = {item["id"]: item["cancel_requested"] for item in answer["jobs"]} if status == 200 else {}
            if cancelled.get(job["id"], True):
                return stop.set()  # the job should stop, or the lease is lost

    def call(self, method, path, body=None, limit_seconds=math.inf, timeout=60):
        """Sends the same request until it has an answer. Returns the status and the body."""
        data, backoff, deadline = json.dumps(body).encode() if body else None, 1, time.monotonic() + limit_seconds
        while True:
            wait = random.uniform(0, backoff)
            try:
                request = urllib.request.Request(self.base + path, data, self.headers, method=method)
                with OPENER.open(request, timeout=timeout) as response:
                    answer = json.loads(response.read() or b"{}")
                if not answer.get("retryable"):
                    return response.status, answer
                wait = max(wait, int(response.headers.get("Retry-After", 0)))
            except (OSError, http.client.HTTPException, ValueError):
                pass  # no answer, a part of one, or a proxy's own error page
            if time.monotonic() + wait > deadline:
                raise TimeoutError(f"no answer to {method} {path}")
            time.sleep(wait)
            backoff = min(2 * backoff, timeout)

def work(job, stop):
    """Sleeps for as long as the payload says. With `fail_once`, the first attempt fails."""
    payload = job["payload"] if isinstance(job["payload"], dict) else {}
    if payload.get("fail_once") and job["attempt"] == 1:
        raise RuntimeError("the first attempt fails, as the payload says")
    if stop.wait(payload.get("milliseconds", 0) / 1000):
        raise RuntimeError("told to stop")
    return {"attempt": job["attempt"]}

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="http://127.0.0.1:8080", help="URL of the service (default: %(default)s)")
    parser.add_argument("--token", default=os.environ.get("HAPAX_TOKEN"), help="default: $HAPAX_TOKEN")
    parser.add_argument("--queue", action="append", help="may be repeated (default: default)")
    parser.add_argument("--lease-seconds", type=int, default=60, help="5 to 900 (default: %(default)s)")
    parser.add_argument("--name", help="a name of this worker, for people")
    options = parser.parse_args()
    if not options.token:
        parser.error("the token is missing: set HAPAX_TOKEN, or give --token")
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, lambda *_: sys.exit())
    queues = options.queue or ["default"]
    Worker(options.base, options.token, queues, work, options.lease_seconds, options.name).run()

if __name__ == "__main__":
    main()
