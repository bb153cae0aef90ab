// What node-postgres makes of dgen.call, as lines of JSON for test_clients.py
import pg from 'pg'

const told = {}
const pool = new pg.Pool({ max: 1 })
const notices = []
pool.on('connect', (client) => client.on('notice', (n) => notices.push(n.code)))
const call = (client, key, request) =>
  client.query('SELECT dgen.call($1, $2::jsonb) AS reply', ['lab/' + key, request])
const failure = (promise) => promise.then(() => 'none', (e) => `${e.constructor.name} ${e.code}`)

told.reply = (await call(pool, 'pg', { echo: { a: [1, 'x', null] } })).rows[0].reply
told.array = await failure(call(pool, 'pg', [1, 2]))
told.string = await failure(call(pool, 'pg', 'increment'))
const client = await pool.connect()
const pid = async () => (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid
told.pid = await pid()
told.unique = await failure(call(client, 'pg', { raise: '23505' }))
told.interrupted = await failure(call(client, 'pg', { raise: '57P01' }))
told.lost = await failure(call(client, 'pg', { die: true }))
told.pid_after = await pid()
for (let i = 0; i < 12; i++) told.count = (await call(client, 'pg', { count: 1 })).rows[0].reply

await client.query('BEGIN')
await client.query('INSERT INTO lab.row VALUES (1)')
told.in_transaction = (await call(client, 'pg', { count: 1 })).rows[0].reply
await client.query('ROLLBACK')
told.notices = notices
await client.query('BEGIN')
await client.query("SET LOCAL statement_timeout = '300 ms'")
told.timeout = await failure(call(client, 'held', {}))
told.aborted = await failure(client.query('SELECT 1'))
await client.query('ROLLBACK')
client.release()
// pool.query closes its connection after any error
const connections = pool.totalCount
await failure(call(pool, 'pg', { raise: '23505' }))
told.connections = [connections, pool.totalCount]

const named = { name: 'named', text: 'SELECT dgen.call($1, $2::jsonb) AS reply', values: ['lab/named', { count: 1 }] }
told.named = 'none'
for (let i = 0; i < 6 && told.named === 'none'; i++) told.named = await failure(pool.query(named))
// the client gives up, and the server does not know of it
told.query_timeout = await failure(pool.query({
  text: "SELECT dgen.call('lab/held', '{}', timeout => '1 s')", query_timeout: 100 }))
console.log(JSON.stringify(told))
await pool.end()
