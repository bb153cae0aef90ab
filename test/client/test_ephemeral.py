"""Keys of a state that are not stored: where they are seen again, and where not."""

import pytest

from cluster import wait_for


@pytest.fixture
def conn(cluster):
    # one worker, so that it is the same one each time
    cluster.configure({"dgen.max_workers": 1})
    cluster.reload()
    cluster.psql("""
        CREATE EXTENSION dgen;
        CREATE ROLE keys LOGIN;
        CREATE SCHEMA keys AUTHORIZATION keys;
        SET ROLE keys;
        CREATE FUNCTION keys.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT exit text)
        LANGUAGE plpgsql AS $$
        BEGIN
          reply := state;
          state := state || (request - 'exit');
          exit := request ->> 'exit';
        END $$;
        SELECT dgen.create_module('keys', ephemeral_keys => ARRAY['cache']);""")
    with cluster.connect(user="keys") as c:
        yield c


def call(conn, request, key="a"):
    return conn.execute("SELECT dgen.call('keys/' || %s, %s::jsonb)", (key, request)).fetchone()[0]


def test_kept_in_the_worker(cluster, conn):
    assert call(conn, '{"n": 1, "cache": 1}') == {}
    assert call(conn, '{"cache": [2]}') == {"n": 1, "cache": 1}
    assert call(conn, '{"n": 2}') == {"n": 1, "cache": [2]}
    # several activations in one batch
    rows = conn.execute("""SELECT reply FROM dgen.multi_call(array_fill('keys/a'::text, ARRAY[50]),
                                                             '{"cache": 3}')""").fetchall()
    assert [r[0] for r in rows] == [{"n": 2, "cache": [2]}] + 49 * [{"n": 2, "cache": 3}]
    # other servers have their own
    assert call(conn, '{"cache": "b"}', "b") == {}
    assert call(conn, "{}") == {"n": 2, "cache": 3}
    assert call(conn, "{}", "b") == {"cache": "b"}


def test_an_error_leaves_what_was(cluster, conn):
    assert call(conn, '{"n": 1, "cache": 1}') == {}
    with pytest.raises(Exception) as e:
        call(conn, '"scalar"')
    assert e.value.sqlstate == "22023"
    assert call(conn, "{}") == {"n": 1, "cache": 1}


def test_missing_after_changes_by_others(cluster, conn):
    assert call(conn, '{"n": 1, "cache": 1}') == {}
    conn.execute("SELECT dgen.replace_state('keys/a', '{\"n\": 2, \"cache\": 2}')")
    assert call(conn, '{"cache": 3}') == {"n": 2}
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        conn.execute("SELECT dgen.invoke('keys/a', '{\"n\": 3, \"cache\": 4}')")
    assert call(conn, '{"cache": 5}') == {"n": 3}
    assert call(conn, '{"exit": "enough"}') == {"n": 3, "cache": 5}
    assert call(conn, '{"cache": 6}') == {}


def test_missing_after_the_worker(cluster, conn):
    assert call(conn, '{"n": 1, "cache": 1}') == {}
    pid = conn.execute("SELECT pid FROM dgen.workers").fetchone()[0]
    cluster.psql("SELECT pg_terminate_backend(%d)" % pid)
    wait_for(lambda: not [w for w in cluster.psql("SELECT pid FROM dgen.workers").split() if w == str(pid)])
    assert call(conn, '{"cache": 2}') == {"n": 1}
    assert call(conn, "{}") == {"n": 1, "cache": 2}
