// What Drizzle makes of dgen.call, as lines of JSON for test_clients.py
import { sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import pg from 'pg'

const told = {}
const pool = new pg.Pool({ max: 1 })
const notices = []
pool.on('connect', (client) => client.on('notice', (n) => notices.push(n.code)))
const db = drizzle(pool)
const call = async (db, key, request) =>
  (await db.execute(sql`SELECT dgen.call(${'lab/' + key}, ${JSON.stringify(request)}::jsonb) AS reply`)).rows[0].reply
const pid = async (db) => (await db.execute(sql`SELECT pg_backend_pid() AS pid`)).rows[0].pid
const failure = (promise) => promise.then(() => 'none', (e) => `${e.constructor.name} ${e.cause?.code}`)

told.reply = await call(db, 'drizzle', { echo: { a: [1, 'x', null] } })
told.unique = await failure(call(db, 'drizzle', { raise: '23505' }))
told.interrupted = await failure(call(db, 'drizzle', { raise: '57P01' }))
told.lost = await failure(call(db, 'drizzle', { die: true }))
for (let i = 0; i < 12; i++) told.count = await call(db, 'drizzle', { count: 1 })

await db.transaction(async (tx) => {
  await tx.execute(sql`INSERT INTO lab.row VALUES (1)`)
  told.in_transaction = await call(tx, 'drizzle', { count: 1 })
  tx.rollback()
}).catch((e) => { if (e.constructor.name !== 'TransactionRollbackError') throw e })
told.notices = notices
told.timeout = await failure(db.transaction(async (tx) => {
  await tx.execute(sql`SET LOCAL statement_timeout = '300 ms'`)
  await call(tx, 'held', {})
}))
// a nested transaction is a savepoint: what failed in it does not spoil the rest
told.savepoint = await db.transaction(async (tx) => {
  told.pid = await pid(tx)
  const inner = await failure(tx.transaction((nested) => call(nested, 'drizzle', { raise: '57P01' })))
  told.pid_after = await pid(tx)
  return [inner, await call(tx, 'drizzle', { count: 1 })]
})
console.log(JSON.stringify(told))
await pool.end()
