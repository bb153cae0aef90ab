// What postgres.js makes of dgen.call, as lines of JSON for test_clients.py
import postgres from 'postgres'

const told = {}
const notices = []
const options = { max: 1, onnotice: (n) => notices.push(n.code) }
const sql = postgres({ ...options, prepare: false })
const call = (sql, key, request) => sql`SELECT dgen.call(${'lab/' + key}, ${sql.json(request)}) AS reply`
const failure = (promise) => promise.then(() => 'none', (e) => `${e.constructor.name} ${e.code}`)

told.reply = (await call(sql, 'js', { echo: { a: [1, 'x', null] } }))[0].reply
// a string for a parameter that is jsonb becomes a JSON string
told.string = (await sql`SELECT jsonb_typeof(${'{"count": 1}'}::jsonb) AS type`)[0].type
told.text = (await sql`SELECT jsonb_typeof(${'{"count": 1}'}::text::jsonb) AS type`)[0].type
told.unique = await failure(call(sql, 'js', { raise: '23505' }))
told.pid = (await sql`SELECT pg_backend_pid() AS pid`)[0].pid
told.interrupted = await failure(call(sql, 'js', { raise: '57P01' }))
told.lost = await failure(call(sql, 'js', { die: true }))
told.pid_after = (await sql`SELECT pg_backend_pid() AS pid`)[0].pid
for (let i = 0; i < 12; i++) told.count = (await call(sql, 'js', { count: 1 }))[0].reply

await sql.begin(async (tx) => {
  await tx`INSERT INTO lab.row VALUES (1)`
  told.in_transaction = (await call(tx, 'js', { count: 1 }))[0].reply
  throw new Error('roll back')
}).catch((e) => { if (e.message !== 'roll back') throw e })
told.notices = notices
told.timeout = await failure(sql.begin(async (tx) => {
  await tx`SET LOCAL statement_timeout = '300 ms'`
  await call(tx, 'held', {})
}))
await sql.end()

const preparing = postgres(options)
told.named = 'none'
for (let i = 0; i < 6 && told.named === 'none'; i++)
  told.named = await failure(call(preparing, 'named', { count: 1 }))      // is tried again by itself
told.named_in_transaction = 'none'
for (let i = 0; i < 6 && told.named_in_transaction === 'none'; i++)
  told.named_in_transaction = await failure(preparing.begin((tx) => call(tx, 'named', { count: 1 })))
await preparing.end()
console.log(JSON.stringify(told))
