"""procrastinate: `defer_async` of a configured task with a `queueing_lock`, on the async connector.

The pages are "Instantiate your connector", which takes PsycopgConnector for the default, "Defer a job", and "Ensure
tasks don't accumulate in the queue" for the lock. Producers on one event loop each await one insert after the other, on
a pool of one connection a client.
"""

import argparse
import asyncio
import importlib.metadata
import json
import math
import time
import uuid

import procrastinate
import psycopg

WARM_UP_SECONDS = 1
# With the key and the names of the members, about 200 bytes of JSON.
TEXT = "The words of a customer. " * 6


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--database-url", required=True)
    arguments.add_argument("--clients", type=int, required=True)
    arguments.add_argument("--seconds", type=float, required=True)
    asked = arguments.parse_args()

    pool = {"min_size": asked.clients, "max_size": asked.clients}
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=asked.database_url, **pool))
    task = app.task(name="bench")(lambda order, text: None)
    own = await psycopg.AsyncConnection.connect(asked.database_url, autocommit=True)
    async with own, app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await measure(asked, task, own)


async def measure(asked, task, own):
    """Prints the measured line; fails if a job was lost, doubled or invented."""
    await a_key_twice_is_one_job(task, own)
    before = await count(own)
    acknowledged, latencies = await load(asked.clients, asked.seconds, task)
    stored = await count(own) - before
    if stored != acknowledged:
        raise SystemExit(f"{acknowledged} inserts were acknowledged, {stored} jobs are stored")

    latencies.sort()

    def microseconds(share):
        return round(latencies[math.ceil(share * len(latencies)) - 1] / 1000)

    line = {
        "peer": "procrastinate",
        "version": importlib.metadata.version("procrastinate"),
        "jobs": len(latencies),
        "seconds": asked.seconds,
        "p50_us": microseconds(0.5),
        "p99_us": microseconds(0.99),
    }
    print(json.dumps(line, separators=(",", ":")), flush=True)


async def a_key_twice_is_one_job(task, own):
    """Else the keys would be ballast, and the figures those of a plain insert."""
    key, before = str(uuid.uuid4()), await count(own)
    await insert(task, key)
    try:
        await insert(task, key)
    except procrastinate.exceptions.AlreadyEnqueued:
        pass
    stored = await count(own) - before
    if stored != 1:
        raise SystemExit(f"the same key twice made {stored} jobs")


async def load(clients, seconds, task):
    begin = time.perf_counter_ns() + WARM_UP_SECONDS * 10**9
    end = begin + int(seconds * 10**9)
    latencies = []

    async def produce():
        acknowledged = 0
        while time.perf_counter_ns() < end:
            key = str(uuid.uuid4())
            sent = time.perf_counter_ns()
            await insert(task, key)
            answered = time.perf_counter_ns()
            acknowledged += 1
            if begin <= answered < end:
                latencies.append(answered - sent)
        return acknowledged

    acknowledged = sum(await asyncio.gather(*(produce() for _ in range(clients))))
    if not latencies:
        raise SystemExit("no insert was acknowledged in time")
    return acknowledged, latencies


async def insert(task, key):
    await task.configure(queueing_lock=key).defer_async(order=key, text=TEXT)


async def count(own):
    cursor = await own.execute("select count(*) from procrastinate_jobs")
    return (await cursor.fetchone())[0]


if __name__ == "__main__":
    asyncio.run(main())
