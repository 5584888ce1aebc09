// pg-boss: `send` with a `singletonKey` (page "Jobs") to a queue of the policy `exclusive` (page "Queues"), in which a
// key can be queued or active once; in a queue of the default policy the key alone refuses nothing.
//
// With --life, each client also fetches and completes one job after each that it sends (`fetch` and `complete`, page
// "Jobs"). Its workers (`work`) would wait for half a second after each job.
import pg from 'pg'
import { PgBoss } from 'pg-boss'

import { measure, measureLife, settings } from './measure.js'

const QUEUE = 'bench'

const asked = settings()
const boss = new PgBoss({ connectionString: asked.url, max: asked.clients })
boss.on('error', console.error)
await boss.start()
await boss.createQueue(QUEUE, { policy: 'exclusive' })
const pool = new pg.Pool({ connectionString: asked.url, max: 1 })

const insert = async (key, payload) => {
  const id = await boss.send(QUEUE, payload, { singletonKey: key })
  if (id === null) throw new Error('the key is taken')
}
const count = async (condition = 'true') => {
  const { rows } = await pool.query(`select count(*)::int as jobs from pgboss.job where name = $1 and ${condition}`, [QUEUE])
  return rows[0].jobs
}

const life = {
  live: async (key, payload) => {
    await insert(key, payload)
    let jobs = []
    // There is a job for each client, but another one may have locked it for a moment.
    while (jobs.length === 0) jobs = await boss.fetch(QUEUE)
    await boss.complete(QUEUE, jobs[0].id)
  },
  ended: async () => {
    const left = await count("state <> 'completed'")
    if (left > 0) throw new Error(`${left} jobs are left`)
    return count()
  },
}

await (asked.life ? measureLife('pg-boss', asked, life) : measure('pg-boss', asked, { insert, count }))
await boss.stop()
await pool.end()
