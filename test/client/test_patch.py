"""The laws of state patches, for documents that hypothesis makes up:

    merge(base, diff(base, new)) is new to the byte
    merge(base, compose(p1, p2)) is merge(merge(base, p1), p2)
    compose is associative in effect

That diff(a, b) is null says that a and b have the same bytes.  The documents
to compare with come from jsonb's own input function.

    DGEN_PATCH_SEED=n test/run client patch     other documents
    test/run client patch -s                    prints times of large documents
"""

import decimal
import json
import os
import random
import tempfile
import time

import psycopg
import pytest
from hypothesis import HealthCheck, configuration, given, seed, settings
from hypothesis import strategies as st

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "dgen-hypothesis"))

SEED = os.environ.get("DGEN_PATCH_SEED")


def examples(n, number=SEED):
    """Runs a test for n examples, the same ones each time without a seed."""
    def decorate(test):
        test = settings(max_examples=n, deadline=None, database=None, print_blob=False,
                        derandomize=number is None,
                        suppress_health_check=[HealthCheck.too_slow,
                                               HealthCheck.data_too_large])(test)
        return test if number is None else seed(int(number))(test)
    return decorate


# --- documents: what json has in Python, numbers as Decimal for their scale

def render(doc):
    """As JSON text."""
    if isinstance(doc, decimal.Decimal):
        return format(doc, "f")
    if isinstance(doc, list):
        return "[%s]" % ",".join(map(render, doc))
    if isinstance(doc, dict):
        return "{%s}" % ",".join("%s:%s" % (json.dumps(k), render(v)) for k, v in doc.items())
    return json.dumps(doc)


KEYS = st.one_of(
    st.sampled_from(["a", "b", "n", "id", "", "[]", "-", "items", "a longer name than others"]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=6))
IDS = st.one_of(st.sampled_from(["", "x", "y", "17"]), st.integers(0, 30).map("e{}".format))
NUMBERS = st.one_of(
    st.integers(-40, 40), st.integers(-10 ** 30, 10 ** 30),
    st.sampled_from(["0", "0.0", "1", "1.0", "1.00", "-1", "10", "1e3", "0.5", "-0.000001", "1e-20",
                     "2147483647", "2147483648", "-2147483648", "12345.67890"])).map(decimal.Decimal)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, KEYS, st.integers(60, 300).map("x".__mul__))


FLAT = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(KEYS, SCALARS, max_size=3))
FEW = st.lists(FLAT, min_size=1, max_size=4)
# more children than there are lengths between two offsets
WIDE = st.one_of(
    st.builds(lambda n, few: (few * n)[:n], st.integers(30, 100), FEW),
    st.builds(lambda n, few: {"k%d" % i: few[i * 7 % len(few)] for i in range(n)}, st.integers(30, 100), FEW),
    st.builds(lambda n, few: [{"id": "e%d" % i, "v": few[i * 7 % len(few)]} for i in range(n)],
              st.integers(30, 100), FEW))


def containers(inner):
    with_id = st.builds(lambda i, rest: dict(rest, id=i), st.one_of(IDS, IDS, NUMBERS),
                        st.dictionaries(KEYS, inner, max_size=3))
    return st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=5),
        st.lists(with_id, max_size=12))


DOCUMENTS = st.recursive(st.one_of(SCALARS, SCALARS, WIDE), containers, max_leaves=8)


def edit_list(doc, rnd, other):
    new = list(doc)
    for _ in range(rnd.randint(1, 3)):
        place = rnd.randint(0, len(new))
        kind = rnd.randint(0, 8)
        if kind == 0:
            new.insert(place, other)
        elif kind == 1:
            del new[place:place + rnd.randint(1, 4)]
        elif kind == 2:
            rnd.shuffle(new)
        elif kind == 3:
            new = new[place:] + new[:place]
        elif kind == 4 and new:
            new.insert(place, new[rnd.randint(0, len(new) - 1)])
        elif kind == 5 and new:
            new.insert(place, new.pop(rnd.randint(0, len(new) - 1)))
        elif kind == 6:
            new += [other, decimal.Decimal(rnd.randint(-3, 3))]
        elif new:
            place = rnd.randint(0, len(new) - 1)
            new[place] = edit(new[place], rnd, other)
    return new


def edit_dict(doc, rnd, other):
    new = dict(doc)
    for _ in range(rnd.randint(1, 3)):
        kind = rnd.randint(0, 5)
        key = rnd.choice(sorted(new)) if new else "a"
        if kind == 0:
            new.pop(key, None)
        elif kind == 1:
            new["new%d" % rnd.randint(0, 9)] = other
        elif kind == 2:
            new[key] = other
        elif key in new:
            new[key] = edit(new[key], rnd, other)
    return new


def edit(doc, rnd, other):
    """The document, changed in some places."""
    if rnd.randint(0, 9) == 0:
        return other
    if isinstance(doc, list):
        return edit_list(doc, rnd, other)
    if isinstance(doc, dict):
        return edit_dict(doc, rnd, other)
    if isinstance(doc, decimal.Decimal) and abs(doc) < 1000:
        return rnd.choice([doc + 1, doc * decimal.Decimal("1.0"), doc])
    return rnd.choice([doc, other])


@st.composite
def histories(draw, n):
    """n documents, each the one before changed, or another one."""
    rnd = draw(st.randoms(use_true_random=False))
    docs = [draw(DOCUMENTS)]
    while len(docs) < n:
        other = draw(DOCUMENTS)
        docs.append(edit(docs[-1], rnd, other))
    return [render(doc) for doc in docs]


# what may be a patch, and fit
PATCHES = st.recursive(
    st.one_of(SCALARS, st.integers(-4, 4).map(decimal.Decimal)),
    lambda inner: st.one_of(st.lists(inner, max_size=4),
                            st.dictionaries(st.sampled_from(["a", "b", "n", "id"]), inner, max_size=3)),
    max_leaves=8)
SMALL = st.recursive(
    st.sampled_from([None, True, "x", decimal.Decimal(1)]),
    lambda inner: st.one_of(st.lists(inner, max_size=6),
                            st.dictionaries(st.sampled_from(["a", "b", "n", "id"]), inner, max_size=4)),
    max_leaves=12)


@pytest.fixture(scope="module")
def conn(shared_cluster):
    print("seed: %s" % (SEED or "none, the same documents each time"))
    with shared_cluster.connect() as conn:
        yield conn


def one(conn, sql, *args):
    return conn.execute(sql, args, prepare=True).fetchone()


# --- the laws

def check_diff(conn, base, new):
    same, right, small = one(conn, """
        SELECT p IS NULL,
               CASE WHEN p IS NULL THEN base::text = new::text AND pg_column_size(base) = pg_column_size(new)
                    ELSE dgen.jsonb_diff(dgen.jsonb_merge(base, p), new) IS NULL END,
               p IS NULL OR pg_column_size(p) <= pg_column_size(new) + 12
        FROM (SELECT base, new, dgen.jsonb_diff(base, new) AS p
              FROM (SELECT %s::text::jsonb AS base, %s::text::jsonb AS new OFFSET 0) d OFFSET 0) d""",
                             base, new)
    assert right
    assert small
    return not same


def check_compose(conn, docs):
    # a diff that is null: the patch that sets everything, which is one, too
    results = one(conn, """
        SELECT dgen.jsonb_diff(dgen.jsonb_merge(d0, dgen.jsonb_compose(p1, p2)), d2) IS NULL,
               dgen.jsonb_diff(dgen.jsonb_merge(d0, dgen.jsonb_compose(dgen.jsonb_compose(p1, p2), p3)), d3) IS NULL,
               dgen.jsonb_diff(dgen.jsonb_merge(d0, dgen.jsonb_compose(p1, dgen.jsonb_compose(p2, p3))), d3) IS NULL
        FROM (SELECT d0, d2, d3,
                     coalesce(dgen.jsonb_diff(d0, d1), jsonb_build_array(d1)) AS p1,
                     coalesce(dgen.jsonb_diff(d1, d2), jsonb_build_array(d2)) AS p2,
                     coalesce(dgen.jsonb_diff(d2, d3), jsonb_build_array(d3)) AS p3
              FROM (SELECT %s::text::jsonb AS d0, %s::text::jsonb AS d1,
                           %s::text::jsonb AS d2, %s::text::jsonb AS d3 OFFSET 0) d OFFSET 0) d""",
                  *docs)
    assert results == (True, True, True)


@pytest.mark.seconds(300)
@examples(600)
@given(docs=histories(2))
def test_diff_merge(conn, docs):
    check_diff(conn, docs[0], docs[1])


@pytest.mark.seconds(300)
@examples(200)
@given(base=DOCUMENTS, new=DOCUMENTS)
def test_unrelated(conn, base, new):
    check_diff(conn, render(base), render(new))


@pytest.mark.seconds(300)
@examples(300)
@given(docs=histories(4))
def test_compose(conn, docs):
    check_compose(conn, docs)


def apply(conn, function, *args):
    """None where the patch does not fit or is malformed."""
    try:
        return one(conn, "SELECT dgen.jsonb_%s(%%s::text::jsonb, %%s::text::jsonb)::text" % function, *args)[0]
    except psycopg.errors.InvalidParameterValue:
        return None


def check_any_patch(conn, base, p1, p2):
    """Patches that diff would not make fit or raise 22023."""
    step = apply(conn, "merge", base, p1)
    two = apply(conn, "merge", step, p2) if step is not None else None
    folded = apply(conn, "compose", p1, p2)
    if step is not None:
        assert one(conn, """
            SELECT dgen.jsonb_diff(dgen.jsonb_merge(%s::text::jsonb, %s::text::jsonb), %s::text::jsonb)""",
                   base, p1, step) == (None,)
    if two is not None:
        assert folded is not None
        assert apply(conn, "merge", base, folded) == two


@examples(400)
@given(base=SMALL, p1=PATCHES, p2=PATCHES)
def test_any_patch(conn, base, p1, p2):
    check_any_patch(conn, render(base), render(p1), render(p2))


@pytest.mark.long
def test_many(conn):
    number = SEED or random.SystemRandom().randint(1, 10 ** 9)
    print("seed: %s" % number)

    @examples(20000, number)
    @given(docs=histories(4), base=SMALL, p1=PATCHES, p2=PATCHES)
    def laws(docs, base, p1, p2):
        check_diff(conn, docs[0], docs[1])
        check_compose(conn, docs)
        check_any_patch(conn, render(base), render(p1), render(p2))

    laws()


# --- deep and large ones

def test_deep(conn):
    """Every document that jsonb takes has a diff."""
    for opened, closed in (("[", "]"), ('{"a":', "}"), ('[0,{"id":"x","b":', "},0]")):
        depth = 1
        deepest = None
        while True:
            base, new = (opened * depth + text + closed * depth for text in ("1", "2"))
            try:
                one(conn, "SELECT %s::text::jsonb IS NULL", base)
            except psycopg.errors.StatementTooComplex:
                break
            deepest = base, new
            depth = depth * 3 // 2 + 1
        assert depth > 1000
        assert check_diff(conn, *deepest)


@pytest.mark.parametrize("function", ["merge", "compose"])
def test_deep_patch(conn, function):
    """A patch that is too deep for the stack raises an error."""
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    try:
        assert one(conn, "SELECT dgen.jsonb_%s(d, d) = d FROM (SELECT %%s::text::jsonb AS d OFFSET 0) d"
                   % function, deep) == (True,)
    except psycopg.errors.StatementTooComplex:
        pass
    assert one(conn, "SELECT 1") == (1,)


ELEMENT = ("'name', 'customer ' || i, 'n', i, 'ok', true, 'at', '2024-01-01 00:00:00', "
           "'amount', i * 1.25")
LARGE = {
    "object": ("jsonb_object_agg('e' || i, jsonb_build_object(%s))" % ELEMENT, "{e5000,n}"),
    "array with ids": ("jsonb_agg(jsonb_build_object('id', 'e' || i, %s))" % ELEMENT, "{5000,n}"),
    "array without ids": ("jsonb_agg(jsonb_build_object(%s))" % ELEMENT, "{5000,n}"),
}


@pytest.mark.parametrize("name", LARGE)
def test_large(conn, name):
    """One element of 10,000: some tens of bytes, and in less time than jsonb_set."""
    document, path = LARGE[name]
    conn.execute("""
        CREATE OR REPLACE FUNCTION pg_temp.times(base jsonb, path text[], OUT doc int, OUT patch int,
                OUT diff float, OUT merge float, OUT set float)
            LANGUAGE plpgsql AS $$
        DECLARE
            new jsonb; p jsonb; r jsonb; t timestamptz;
        BEGIN
            base := jsonb_set(base, path, '0');     -- in memory
            new := jsonb_set(base, path, '77');
            FOR i IN 1..10 LOOP
                t := clock_timestamp();
                p := dgen.jsonb_diff(base, new);
                diff := least(diff, extract(epoch FROM clock_timestamp() - t) * 1000);
                t := clock_timestamp();
                r := dgen.jsonb_merge(base, p);
                merge := least(merge, extract(epoch FROM clock_timestamp() - t) * 1000);
                t := clock_timestamp();
                r := jsonb_set(base, path, '78');
                set := least(set, extract(epoch FROM clock_timestamp() - t) * 1000);
            END LOOP;
            doc := pg_column_size(new);
            patch := pg_column_size(p);
        END $$""")
    doc, patch, diff, merge, jsonb_set = one(
        conn, "SELECT t.* FROM (SELECT %s AS d FROM generate_series(1, 10000) i) d, pg_temp.times(d, %%s) t"
        % document, path)
    print("%s of %d bytes: patch %d bytes, diff %.3f ms, merge %.3f ms, jsonb_set %.3f ms"
          % (name, doc, patch, diff, merge, jsonb_set))
    assert doc > 1000000
    assert patch < 100
    assert diff + merge < jsonb_set


def test_cancel(conn):
    """A patch may ask for far more than its own size, and can be cancelled then."""
    conn.execute("SET statement_timeout = '500 ms'")
    try:
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("""SELECT dgen.jsonb_compose((SELECT jsonb_agg(jsonb_build_array(i)) FROM generate_series(1, 100000) i),
                                (SELECT jsonb_agg(CASE WHEN i % 2 = 0 THEN 100000 ELSE 0 END) FROM generate_series(1, 2000) i))""")
        assert time.monotonic() - began < 5
    finally:
        conn.execute("RESET statement_timeout")
