"""A ledger on dgen: what `make demo` runs.

ledger.sql has the servers.  Here are a client that loses its connection and
goes on (class Client), and the story: transfers, a duplicate delivery, a
poison message, kill -9 of the whole database under load, and the sums.
"""

import argparse
import os
import random
import sys
import threading
import time
import uuid

import psycopg

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "test", "lib"))

from build import Build, build_root  # noqa: E402
from cluster import Cluster, wait_for  # noqa: E402

DATABASE = "ledger"
OPENING = 100_000
INSUFFICIENT_FUNDS = "LG001"

# dgen's errors after which asking again makes sense: timed out, outcome
# unknown, no worker, worker lost
ASK_AGAIN = ("OT001", "OT002", "OT015", "OT020")


class Client:
    """One connection, made anew whenever it is lost."""

    def __init__(self, conninfo, patience=60):
        self.conninfo = conninfo
        self.patience = patience
        self.conn = None
        self.retries = 0

    def close(self):
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    def value(self, query, *parameters):
        if self.conn is None or self.conn.closed:
            self.conn = psycopg.connect(autocommit=True, **self.conninfo)
        row = self.conn.execute(query, parameters).fetchone()
        return row[0] if row else None

    def call(self, server, request, request_key):
        """dgen.call, again and again until it is answered.  The request_key
        makes that safe: whether the first one was lost before it ran or after
        it committed, it is run once, and every try gets the same reply."""
        end = time.monotonic() + self.patience
        while True:
            try:
                return self.value(
                    "SELECT dgen.call(%s, %s::jsonb, request_key => %s)",
                    server, psycopg.types.json.Json(request), request_key)
            except psycopg.Error as e:
                lost = (isinstance(e, psycopg.OperationalError)
                        and (e.sqlstate or "08")[:2] in ("08", "57"))
                if not (lost or e.sqlstate in ASK_AGAIN) or time.monotonic() > end:
                    raise
                self.retries += 1
                if lost:
                    self.close()
                time.sleep(0.05)

    def transfer(self, key, debit, credit, amount):
        """True: done.  False: refused, nothing happened."""
        try:
            self.call("transfer/" + key, {"from": debit, "to": credit, "amount": amount}, key)
            return True
        except psycopg.Error as e:
            if e.sqlstate == INSUFFICIENT_FUNDS:
                return False
            raise


class Story:
    def __init__(self, cluster, accounts=20, clients=6, transfers=150, seed=None):
        self.cluster = cluster
        self.conninfo = cluster.conninfo(dbname=DATABASE)
        self.accounts = ["a%02d" % i for i in range(1, accounts + 1)]
        self.clients = clients
        self.transfers = transfers
        self.seed = random.randrange(1 << 32) if seed is None else seed
        self.client = Client(self.conninfo)
        self.value = self.client.value
        self.steps = 0
        self.done = []          # acknowledged: (key, debit, credit, amount)
        self.refused = []
        self.lock = threading.Lock()

    def step(self, text):
        self.steps += 1
        print("\n%d. %s" % (self.steps, text), flush=True)

    def tell(self, text):
        print("   " + text, flush=True)

    def check(self, what, found, wanted):
        if found != wanted:
            raise SystemExit("   WRONG: %s: %r, should be %r" % (what, found, wanted))
        self.tell("ok: %s: %s" % (what, found))

    def balance(self, account):
        return self.value("SELECT dgen.call(%s, '\"balance\"')", "account/" + account)

    def run(self):
        self.step("A database with the extension and the ledger's two modules")
        self.cluster.psql("CREATE DATABASE " + DATABASE)
        self.cluster.psql_file(os.path.join(HERE, "ledger.sql"), dbname=DATABASE)
        self.tell("modules: %s" % self.value("SELECT string_agg(m.module, ', ' ORDER BY m.module) "
                                             "FROM dgen.modules m"))
        self.open_accounts()
        self.duplicate_delivery()
        self.overdraft()
        self.poison()
        self.load()
        self.sums()
        self.client.close()

    def open_accounts(self):
        self.step("%d accounts: servers that begin to live with their first message"
                  % len(self.accounts))
        for account in self.accounts:
            self.client.call("account/" + account, {"deposit": OPENING}, "opening")
        self.tell("SELECT dgen.call('account/a01', '\"balance\"')  ->  %d" % self.balance("a01"))

    def duplicate_delivery(self):
        self.step("A transfer: two servers and a table in one transaction; "
                  "then the same request delivered again")
        for attempt in ("first", "again"):
            reply = self.client.call("transfer/t-1", {"from": "a01", "to": "a02", "amount": 250}, "t-1")
            self.tell("%s: request_key t-1  ->  %s" % (attempt, reply))
        self.done.append(("t-1", "a01", "a02", 250))
        self.check("a01, a02, lines in the journal",
                   (self.balance("a01"), self.balance("a02"),
                    self.value("SELECT count(*) FROM journal WHERE transfer = 't-1'")),
                   (OPENING - 250, OPENING + 250, 1))
        ids = [self.value("SELECT dgen.cast('account/a01', '{\"statement\": \"2026-01-31\"}', "
                          "dedup_key => 'statement 2026-01')") for _ in range(2)]
        self.tell("a cast sent twice with one dedup_key: ids %s and %s" % tuple(ids))
        written = lambda: self.value("SELECT count(*) FROM statement WHERE account = 'a01'")
        wait_for(written, message="the statement was not written")
        self.check("statements written", written(), 1)

    def overdraft(self):
        self.step("A transfer that fails half way: the deposit is undone with it")
        before = self.balance("a01"), self.balance("a02")
        try:
            # a01 comes first: its deposit succeeds before the withdrawal is refused
            self.value("SELECT dgen.call('transfer/t-2', %s::jsonb)",
                       '{"from": "a02", "to": "a01", "amount": 9999999}')
            raise SystemExit("   WRONG: the transfer was not refused")
        except psycopg.Error as e:
            self.tell("SQLSTATE %s: %s" % (e.sqlstate, e.diag.message_primary))
            self.check("SQLSTATE is the handler's own", e.sqlstate, INSUFFICIENT_FUNDS)
        self.check("a01 and a02 as before", (self.balance("a01"), self.balance("a02")), before)

    def poison(self):
        self.step("A poison message: its handler raises each time, until it is a dead letter")
        for day in ("the 31st of Never", "2026-02-28"):
            self.value("SELECT dgen.cast('account/a03', jsonb_build_object('statement', %s::text), "
                       "max_attempts => 3)", day)
        wait_for(lambda: self.value("SELECT count(*) FROM statement WHERE account = 'a03'"),
                 message="what came after the poison message was not handled")
        with psycopg.connect(autocommit=True, **self.conninfo) as conn:
            letters = conn.execute("SELECT server, message::text, attempts, sqlstate "
                                   "FROM dgen.dead_letters").fetchall()
        self.check("dead letters", len(letters), 1)
        self.tell("%s  %s  after %d attempts: SQLSTATE %s" % letters[0])
        self.tell("the message behind it was handled")

    def load(self):
        total = self.clients * self.transfers
        self.step("%d clients make %d transfers each; in the middle of it kill -9 of "
                  "every process of the database" % (self.clients, self.transfers))
        self.tell("seed %d" % self.seed)
        failures = []

        def work(number):
            chance = random.Random(self.seed + number)
            client = Client(self.conninfo)
            try:
                for _ in range(self.transfers):
                    key = str(uuid.UUID(int=chance.getrandbits(128)))
                    debit, credit = chance.sample(self.accounts, 2)
                    # now and then more than there is
                    amount = chance.randrange(1, 500) if chance.random() < 0.97 else 10 ** 9
                    done = client.transfer(key, debit, credit, amount)
                    with self.lock:
                        (self.done if done else self.refused).append((key, debit, credit, amount))
            except BaseException as e:
                failures.append(e)
            finally:
                with self.lock:
                    self.client.retries += client.retries
                client.close()

        answered = lambda: len(self.done) + len(self.refused) - 1
        started = time.monotonic()
        threads = [threading.Thread(target=work, args=(n,)) for n in range(self.clients)]
        for thread in threads:
            thread.start()
        wait_for(lambda: failures or answered() >= total / 3, timeout=120)
        killed = self.cluster.kill9()
        self.tell("killed %d processes after %d answers" % (killed, answered()))
        self.cluster.start()
        self.tell("started again; the clients come back and ask again with their keys")
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self.tell("%d answered in %.1f s: %d done, %d refused; %d requests were repeated"
                  % (answered(), time.monotonic() - started, len(self.done) - 1,
                     len(self.refused), self.client.retries))
        self.client.close()

    def sums(self):
        self.step("The sums")
        balances = {a: self.value("SELECT dgen.state(%s) -> 'balance'", "account/" + a)
                    for a in self.accounts}
        self.check("money in all accounts", sum(balances.values()), OPENING * len(self.accounts))

        with psycopg.connect(**self.conninfo) as conn:
            journal = conn.execute("SELECT transfer, debit, credit, amount FROM journal").fetchall()
        self.check("acknowledged transfers that are not exactly once in the journal",
                   len(set(self.done) - set(journal)) + len(journal) - len(set(journal)), 0)
        self.check("lines in the journal that nobody was told of",
                   len(set(journal) - set(self.done)), 0)
        wanted = {a: OPENING for a in self.accounts}
        for _, debit, credit, amount in journal:
            wanted[debit] -= amount
            wanted[credit] += amount
        self.check("accounts that differ from the journal",
                   sum(balances[a] != wanted[a] for a in self.accounts), 0)
        self.check("messages left over", self.value("SELECT count(*) FROM dgen.messages"), 0)


def look_around(cluster):
    print("""
The database is still running.  To look around:

    %s

    SELECT * FROM dgen.servers LIMIT 10;
    SELECT * FROM dgen.modules;
    SELECT * FROM dgen.dead_letters;
    SELECT * FROM dgen.workers;
    SELECT dgen.state('account/a01');
    SELECT dgen.call('account/a01', '{"deposit": 5}');
    SELECT * FROM journal ORDER BY entered_at DESC LIMIT 10;

Its log: %s
`make demo-stop` ends it.""" % (cluster.psql_command(DATABASE), cluster.log))


def start(options):
    stop()
    print("building", flush=True)
    build = Build.make(demo_directory(), werror=False)
    cluster = Cluster("demo", directory=os.path.join(build.rundir, "cluster"), build=build)
    cluster.leave()
    cluster.init()
    cluster.start()
    print("%s runs in %s" % (build.ask("version"), cluster.directory))
    try:
        Story(cluster, clients=options.clients, transfers=options.transfers,
              seed=options.seed).run()
        cluster.assert_no_crash()
    except BaseException:
        print("\nThe database is still running; its log is %s" % cluster.log, flush=True)
        raise
    look_around(cluster)


def stop():
    """Ends and removes what start() left; whether there was something."""
    directory = demo_directory()
    if not os.path.isdir(directory):
        return False
    Build(None, directory).cleanup()
    return True


def demo_directory():
    return os.path.join(build_root(), "demo")


def main():
    parser = argparse.ArgumentParser(prog="examples/ledger/demo",
                                     description="A ledger on a throwaway cluster.")
    parser.add_argument("command", choices=("start", "stop"))
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--transfers", type=int, default=150, help="of each client")
    parser.add_argument("--seed", type=int, help="of the random transfers")
    options = parser.parse_args()
    if options.command == "start":
        start(options)
    else:
        print("stopped and removed" if stop() else "no demo is running")


if __name__ == "__main__":
    main()
