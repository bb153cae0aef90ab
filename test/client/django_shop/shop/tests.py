"""A developer's own tests: `manage.py test`, not through a pooler."""
from django.db import DatabaseError, IntegrityError, connection
from django.test import TestCase, TransactionTestCase

from shop.models import Order
from shop.views import call, scalar


class Inline(TestCase):
    """TestCase rolls back: with dgen.inline the servers too."""

    @classmethod
    def setUpTestData(cls):
        # here, not in setUp(): it lasts as long as the class's transaction
        scalar("SELECT set_config('dgen.inline', 'on', true)")

    def test_one(self):
        for left in (3, 1):
            self.assertEqual(self.client.get("/buy/%s/2" % ("tea" if left == 3 else "tea2")).status_code, 200)
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 3})

    def test_two(self):
        """Nothing is left of the other test."""
        self.assertEqual(call("stock/tea", {"take": 1}), {"left": 4})

    def test_casts(self):
        self.client.get("/refill/tea/7")
        scalar("SELECT dgen.drain()")
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 12})

    def test_savepoint(self):
        told = self.client.get("/try_to_buy/tea/6").json()
        self.assertEqual(told, {"error": "23514", "orders": 1})
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 5})


class Real(TransactionTestCase):
    """Calls that commit in workers.  What they leave is deleted by hand:
    Django empties only its own tables."""

    def tearDown(self):
        scalar("SELECT dgen.delete('stock/tea')")

    def test_call_commits_by_itself(self):
        with self.assertRaises(ValueError):
            self.client.get("/buy_or_fail/tea/2")
        self.assertEqual(Order.objects.count(), 0)
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 3})

    def test_invoke_is_undone(self):
        with self.assertRaises(ValueError):
            self.client.get("/invoke/tea/2")
        self.assertEqual(Order.objects.count(), 0)
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 5})

    def test_cast_is_sent_by_the_commit(self):
        self.client.get("/refill/tea/7")
        scalar("SELECT dgen.wait_idle('stock/tea')::text")
        self.assertEqual(call("stock/tea", {"take": 0}), {"left": 12})

    def test_savepoint(self):
        self.assertEqual(self.client.get("/try_to_buy/tea/6").json(), {"error": "23514", "orders": 1})
        self.assertEqual(Order.objects.count(), 1)

    def test_spoilt(self):
        self.assertEqual(self.client.get("/spoil/tea/6").json(), {"error": "InternalError"})

    def test_classes(self):
        for state, wanted, found in [("23505", IntegrityError, "23505"), ("23514", IntegrityError, "23514"),
                                     ("40001", DatabaseError, "OT020"), ("57P01", DatabaseError, "OT020")]:
            with self.assertRaises(DatabaseError) as caught:
                call("stock/tea", {"raise": state})
            self.assertIs(type(caught.exception), wanted)
            self.assertEqual(caught.exception.__cause__.diag.sqlstate, found)
            self.assertTrue(connection.is_usable())
