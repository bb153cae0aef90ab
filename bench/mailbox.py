"""Messages: sending them, draining mailboxes, and replies to requests."""

import time

from harness import CLIENT, MESSAGES, RUNS, percentile, scaled


def bare_handler(b, number, module):
    """Seconds that the handler alone takes."""
    state = b.value("SELECT state::text FROM dgen.server WHERE server = %s", module + "/1")
    start = time.perf_counter()
    got = b.ask("SELECT count(%s.handle_cast('%s', '%s')) FROM generate_series(1, %d)"
                % (module, MESSAGES[module], state, number))
    seconds = time.perf_counter() - start
    b.check("handlers run", got, number)
    return seconds


def drain_of_one(b, number, module="counter"):
    """Seconds from dgen.resume() until that many casts to one server are
    handled.  Behind them stands a request: its reply tells that they are."""
    server = module + "/1"
    b.ask("SELECT dgen.suspend(%s)", server)
    b.fill(1, number, module)
    request = b.ask("SELECT dgen.send_request(%s, %s::jsonb)", server, MESSAGES[module])
    b.expect(module, 1)
    listener = b.cluster.connect(user=CLIENT)
    listener.execute("LISTEN dgen_reply")
    start = time.perf_counter()
    b.ask("SELECT dgen.resume(%s)", server)
    b.wait_notify(listener, str(request))
    seconds = time.perf_counter() - start
    listener.close()
    b.check_sums()
    return seconds


def drain_of_many(b, servers, number, module="counter"):
    """The same of many servers, whose module is suspended."""
    b.ask("SELECT dgen.suspend(module => %s)", module)
    b.fill(servers, number, module)
    start = time.perf_counter()
    b.ask("SELECT dgen.resume(module => %s)", module)
    b.wait_idle()
    seconds = time.perf_counter() - start
    b.check_sums()
    return seconds


def drain_one(b):
    """100,000 casts waiting for one server"""
    number = scaled(100_000)
    for module in MESSAGES:
        drain_of_one(b, scaled(1000), module)
        b.vacuum()
        b.versus("%d casts to one %s, drained" % (number, module), "s",
                 lambda: drain_of_one(b, number, module), lambda: bare_handler(b, number, module),
                 baseline_is="the bare handler, as often", goal=("max", 1.6))


def drain_1000(b):
    """100,000 casts waiting for 1,000 servers"""
    number = scaled(100_000, 1000)
    for module in MESSAGES:
        drain_of_many(b, 1000, 1000, module)
        b.vacuum()
        b.versus("%d casts to 1,000 %ss, drained" % (number, module), "s",
                 lambda: drain_of_many(b, 1000, number, module),
                 lambda: bare_handler(b, number, module),
                 baseline_is="the bare handler, as often", goal=("max", 2.2))


def drain_what_was_sent(b, number):
    b.expect("counter", number)
    b.ask("SELECT dgen.resume(module => 'counter')")
    b.wait_idle()
    b.check_sums()


def cast_8(b):
    """casts by 8 clients, one statement each"""
    casts = ("\\set id random(1, 1000)\n"
             "SELECT dgen.cast('counter/' || :id::text, '\"increment\"');\n")
    inserts = "INSERT INTO plain_queue (message) VALUES ('\"increment\"');\n"

    def send():
        # sending alone, as INSERT does; then handling, for the sums
        b.ask("SELECT dgen.suspend(module => 'counter')")
        load = b.pgbench(casts, clients=8)
        b.check("messages waiting", b.value("SELECT count(*) FROM dgen.message"), load.count)
        drain_what_was_sent(b, load.count)
        return load.tps

    def insert():
        load = b.pgbench(inserts, clients=8)
        b.check("rows inserted", b.value("SELECT count(*) FROM plain_queue"), load.count)
        b.super.execute("TRUNCATE plain_queue")
        return load.tps

    def send_and_handle():
        load = b.pgbench(casts, clients=8)
        drain_what_was_sent(b, load.count)
        return load.tps

    b.fill(1000, 1000)
    b.wait_idle()
    b.versus("casts, 8 clients", "1/s", send, insert,
             baseline_is="INSERT of one row", goal=("min", 0.75))
    b.figure("casts, 8 clients, while they are handled", "1/s",
             [send_and_handle() for _ in range(RUNS)])


def cast_many_1000(b):
    """cast_many of 1,000"""
    statements = scaled(200, 10)
    casts = "SELECT dgen.cast_many(messages) FROM thousand_array;\n"
    inserts = "INSERT INTO plain_queue (message) SELECT message FROM thousand;\n"

    def send():
        b.ask("SELECT dgen.suspend(module => 'counter')")
        load = b.pgbench(casts, transactions=statements)
        drain_what_was_sent(b, 1000 * load.count)
        b.vacuum()
        return 1000 * load.tps

    def insert():
        load = b.pgbench(inserts, transactions=statements)
        b.check("rows inserted", b.value("SELECT count(*) FROM plain_queue"), 1000 * load.count)
        b.super.execute("TRUNCATE plain_queue")
        return 1000 * load.tps

    b.fill(100, 100)
    b.wait_idle()
    b.versus("messages by cast_many of 1,000", "1/s", send, insert,
             baseline_is="INSERT ... SELECT of 1,000 rows", goal=("min", 0.5))


def request_latency(b):
    """send_request to reply seen by a client that LISTENs"""
    number = scaled(2000, 100)
    listener = b.cluster.connect(user=CLIENT)
    listener.execute("LISTEN dgen_reply")

    def run(times):
        whole, after_commit = [], []
        for _ in range(times):
            start = time.perf_counter()
            request = b.ask("SELECT dgen.send_request('counter/1', '\"increment\"')")
            sent = time.perf_counter()
            b.wait_notify(listener, str(request), 30)
            seen = time.perf_counter()
            whole.append(1000 * (seen - start))
            after_commit.append(1000 * (seen - sent))
        b.expect("counter", times)
        b.check_sums()
        b.check("the last reply", b.ask("SELECT dgen.check_response(%s)", request),
                b.expected["counter"])
        return whole, after_commit

    run(50)
    results = [run(number) for _ in range(RUNS)]
    listener.close()
    for p, limit in ((50, 1), (99, 3)):
        b.figure("send_request to reply seen, p%d" % p, "ms",
                 [percentile(whole, p) for whole, _ in results],
                 goal=("max", limit), judge="ours")
        b.figure("from its commit to reply seen, p%d" % p, "ms",
                 [percentile(after, p) for _, after in results])


ROWS = [drain_one, drain_1000, cast_8, cast_many_1000, request_latency]
