// graphile-worker: `addJob` of one shared WorkerUtils, which its page "Library: queueing jobs" recommends for a process
// that queues many jobs, with a `jobKey` (page "Job key") in its default mode, on a pool of one connection a client.
//
// With --life, its own runner works on the jobs in the same process, as many at once as there are clients. Each client
// waits for the end of a job after each that it adds. Ten jobs a client are there before, so that the runner never waits.
import { randomUUID } from 'node:crypto'

import { Logger, makeWorkerUtils, run } from 'graphile-worker'
import pg from 'pg'

import { measure, measureLife, settings } from './measure.js'

const TASK = 'bench'
const AHEAD = 10

const asked = settings()
const pool = new pg.Pool({ connectionString: asked.url, max: asked.clients })
pool.on('error', console.error)
pool.on('connect', (client) => client.on('error', console.error))
// Its default logger writes a line for each job.
const logger = new Logger(() => () => {})
const utils = await makeWorkerUtils({ pgPool: pool, logger })
await utils.migrate()

const insert = (key, payload) => utils.addJob(TASK, payload, { jobKey: key })
const count = async () => {
  const { rows } = await pool.query('select count(*)::int as jobs from graphile_worker.jobs')
  return rows[0].jobs
}

async function life() {
  const before = AHEAD * asked.clients
  for (let added = 0; added < before; added += 1) await insert(randomUUID(), {})
  const taskList = { [TASK]: async () => {} }
  const runner = await run({ pgPool: pool, concurrency: asked.clients, taskList, noHandleSignals: true, logger })
  // Ends that no client waits for yet, and clients that wait for one.
  let [ended, waiting, all] = [0, [], 0]
  runner.events.on('job:complete', ({ error }) => {
    if (error) throw error
    all += 1
    const client = waiting.shift()
    if (client) client()
    else ended += 1
  })
  const oneEnds = async () => {
    if (ended > 0) ended -= 1
    else await new Promise((resolve) => waiting.push(resolve))
  }
  await measureLife('graphile-worker', asked, {
    live: async (key, payload) => {
      await insert(key, payload)
      await oneEnds()
    },
    ended: async () => {
      for (let left = before; left > 0; left -= 1) await oneEnds()
      await runner.stop()
      const left = await count()
      if (left > 0) throw new Error(`${left} jobs are left`)
      return all - before
    },
  })
}

await (asked.life ? life() : measure('graphile-worker', asked, { insert, count }))
await utils.release()
await pool.end()
