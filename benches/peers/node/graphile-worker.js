// graphile-worker: `addJob` of one shared WorkerUtils, which its page "Library: queueing jobs" recommends for a process
// that queues many jobs, with a `jobKey` (page "Job key") in its default mode, on a pool of one connection a client.
import { makeWorkerUtils } from 'graphile-worker'
import pg from 'pg'

import { measure, settings } from './measure.js'

const asked = settings()
const pool = new pg.Pool({ connectionString: asked.url, max: asked.clients })
pool.on('error', console.error)
pool.on('connect', (client) => client.on('error', console.error))
const utils = await makeWorkerUtils({ pgPool: pool })
await utils.migrate()

await measure('graphile-worker', asked, {
  insert: (key, payload) => utils.addJob('bench', payload, { jobKey: key }),
  count: async () => {
    const { rows } = await pool.query('select count(*)::int as jobs from graphile_worker.jobs')
    return rows[0].jobs
  },
})
await utils.release()
await pool.end()
