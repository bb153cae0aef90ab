"""The invariants of invariants.sql and every.sql find what they are for."""

import psycopg
import pytest

import every
from common import value, wait_idle
from invariants import INVARIANTS, broken, check_indexes, violations

ONE = "(SELECT min(id) FROM dgen.message WHERE server = 'j/0' AND kind = 'c')"
COPY = "INSERT INTO dgen.postponed SELECT * FROM dgen.message WHERE id = " + ONE
REPLY = ("INSERT INTO dgen.reply (id, server, replied_at, expires_at, request_key, sender_role, reply, error) "
         "SELECT id + %d, server, now(), now(), %s, 'x', %s, %s FROM dgen.message WHERE kind = 'r'")

# what each of them is to find
PLANTED = {
    "a message is in one place": COPY,
    "a message is of a module": "UPDATE dgen.message SET server = 'nosuch/1' WHERE id = " + ONE,
    "a mailbox has one hash, and effects another": "UPDATE dgen.message SET hash = hash + 1 WHERE id = " + ONE,
    "no id is given out twice: the sequence is past all of them": "UPDATE dgen.message SET id = id + 1000000000",
    "who was answered does not wait": REPLY % (0, "NULL", "'1'", "NULL"),
    "a reply is a reply or an error, or is yet to come": REPLY % (0, "NULL", "'1'", "'{}'"),
    "one reply a key": REPLY % (0, "'k'", "'1'", "NULL") + ";" + REPLY % (1000, "'k'", "'1'", "NULL"),
    "one message a dedup key": "INSERT INTO dgen.dedup VALUES ('j/0', 'd', 1, now()), ('j/0', 'd', 2, now())",
    "an attempt is of a message that waits": "INSERT INTO dgen.attempt VALUES (1, 'j/0', 1, 0, now(), NULL, 'P0001', '{}')",
    "a server knows that it fails":
        "INSERT INTO dgen.attempt VALUES (%s, 'j/0', 1, 0, now(), NULL, 'P0001', '{}')" % ONE,
    "a timer has a message, and one only": "DELETE FROM dgen.delayed WHERE kind = 'm'",
    "what is delayed of a timer has one, of an alarm a server": "DELETE FROM dgen.timer",
    "a timer ends with its incarnation": "UPDATE dgen.timer SET incarnation = incarnation + 1",
    "a server's alarm is there": "UPDATE dgen.server SET timeout_id = 1 WHERE server = 'j/0'",
    "a server's row makes sense": "UPDATE dgen.server SET state = NULL WHERE server = 'j/0'",
    "the patches are those of the state": "UPDATE dgen.patch SET version = version + 100",
    "no patch is missing": "DELETE FROM dgen.patch",
    "the history ends in the state":
        "DELETE FROM dgen.history h USING dgen.server s WHERE h.server = s.server AND h.version = s.version",
    "a history is of a server, and not ahead of it": "UPDATE dgen.history SET version = version + 1000 WHERE server = 'j/0'",
    "a locked server has its message": "UPDATE dgen.server SET lock_id = 1, lock_token = 1 WHERE server = 'j/0'",
    "what goes before all others is there": "UPDATE dgen.server SET continue_id = 1 WHERE server = 'j/0'",
    "and is what its server goes on with": "UPDATE dgen.message SET kind = 'n' WHERE id = " + ONE,
    "a server knows that it has postponed": COPY,
    "what is tied to an incarnation ends with it":
        "UPDATE dgen.server SET incarnation = incarnation + 1 WHERE server = 'j/0'",
    "a child has a supervisor, and knows it": "DELETE FROM dgen.supervisor",
    "a supervised server is a child of one supervisor": "DELETE FROM dgen.child",
    "a child that is down waits for its restart, or is kept down":
        "UPDATE dgen.server SET status = 'n' WHERE server = 'kid/1'",
    "a tombstone stands as its server says, and goes when its time is up":
        "INSERT INTO dgen.tombstone VALUES ('j/0', now())",
    "journal and states agree": "UPDATE effect SET amount = amount + 1 WHERE server = 'j/0'",
    "no effect without a state": "DELETE FROM dgen.server WHERE server = 'j/0'",
    "no effect twice": "INSERT INTO effect (token, server, amount) SELECT token, server, 0 FROM effect WHERE server = 'j/0'",
    "a message or its effect": "DELETE FROM dgen.message WHERE id = " + ONE,
    "no message that nobody sent": "DELETE FROM sent WHERE id = " + ONE,
    "no reply without its effect": "DELETE FROM effect WHERE server = 'j/0'",
    "a request has its reply when it has its effect": "DELETE FROM dgen.reply",
    "no effect after the commit without what it is of": "INSERT INTO outbox VALUES (1, 'x')",
    "no effect after the commit twice": "INSERT INTO outbox SELECT * FROM outbox",
    "the sum is conserved": "UPDATE dgen.server SET state = '1' WHERE server = 'bank/1'",
    "each state of a history was one": "DELETE FROM doc_log",
    "locked work is done or waits": """UPDATE dgen.message m SET message = jsonb_build_object('t', dgen.state('held/0')->'done'->0),
        server = 'held/0' WHERE id = """ + ONE,
    "attributes are those of the state": "UPDATE %(attributes)s SET attributes = '{}'",
}


@pytest.fixture
def db(cluster):
    """Something of everything, and nothing of it runs."""
    every.setup(cluster)
    if cluster.psql("SELECT name FROM pg_available_extensions WHERE name = 'amcheck'"):
        cluster.psql("CREATE EXTENSION amcheck")
    load = every.Load(cluster, 1, 1)
    with cluster.connect() as conn, cluster.connect() as load.side:
        load.conn = conn
        for do in ("name", "effect", "timeout"):
            load.send("j/0", "cast", do=do)
        load.send("j/0", "cast", do="monitor", to="j/1")
        value(conn, "SELECT dgen.wait_response(%s)", load.send("j/0", "request"))
        load.call("j/0")
        load.do_bank()
        load.do_doc()
        load.do_held()
        conn.execute("SELECT dgen.cast('held/0', '{\"t\": \"held\"}')")
        load.send("kid/1", "cast")
        wait_idle(conn)
        conn.execute("SELECT dgen.send_after('j/0', '{}', '1 h', name => 'x')")
        conn.execute("SELECT dgen.send_every('j/1', '{}', '1 h')")
        conn.execute("SELECT dgen.suspend(module => name) FROM dgen.module")
        for kind in ("cast", "cast", "request", "late"):
            load.send("j/0", kind)
        conn.execute("UPDATE dgen.timer SET incarnation = (SELECT incarnation FROM dgen.server s WHERE s.server = 'j/0') "
                     "WHERE server = 'j/0'")
        assert violations(conn, every.INVARIANTS) == []
        yield conn


def test_each_finds_what_it_is_for(db):
    known = {"attributes": value(db, "SELECT to_regclass('dgen.attributes_' || id) FROM dgen.module WHERE name = 'j'")}
    assert set(PLANTED) == {name for name, _ in INVARIANTS + every.INVARIANTS}
    for name, plant in PLANTED.items():
        query = dict(INVARIANTS + every.INVARIANTS)[name]
        with db.transaction(force_rollback=True):
            for statement in plant.split(";"):
                db.execute(statement % known if "%(" in statement else statement)
            assert broken(db, [(name, query)]), "not found: %s" % name
    assert violations(db, every.INVARIANTS) == []


def test_an_index_without_an_entry(db):
    if not value(db, "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'"):
        pytest.skip("there is no amcheck")
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL allow_system_table_mods = on")
        ready = "UPDATE pg_index SET indisready = %s WHERE indexrelid = 'dgen.delayed_due_idx'::regclass"
        db.execute(ready, (False,))
        db.execute("UPDATE dgen.delayed SET due_at = due_at + interval '1 s'")
        db.execute(ready, (True,))
        with pytest.raises(psycopg.Error) as found:
            check_indexes(db)
        assert "delayed_due_idx" in str(found.value)
