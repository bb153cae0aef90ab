"""Views under ATOMIC_REQUESTS: each is one transaction."""
import json

from django.db import Error, IntegrityError, connection, transaction
from django.http import JsonResponse
from django.urls import path

from shop.models import Order


def scalar(query, *args):
    with connection.cursor() as cursor:
        cursor.execute(query, args)
        return cursor.fetchone()[0]


def call(server, request):
    return json.loads(scalar("SELECT dgen.call(%s, %s::jsonb, timeout => '2 s')", server, json.dumps(request)))


def buy(request, item, n):
    """A row, and a call that commits by itself."""
    Order.objects.create(item=item)
    return JsonResponse(call("stock/" + item, {"take": n}))


def buy_or_fail(request, item, n):
    """The same, but the request fails afterwards: the row goes, the call stays."""
    Order.objects.create(item=item)
    call("stock/" + item, {"take": n})
    raise ValueError("after the call")


def try_to_buy(request, item, n):
    """A call that may fail, in a savepoint, so that the transaction goes on."""
    Order.objects.create(item=item)
    try:
        with transaction.atomic():
            return JsonResponse(call("stock/" + item, {"take": n}))
    except IntegrityError as e:
        return JsonResponse({"error": e.__cause__.diag.sqlstate, "orders": Order.objects.count()})


def spoil(request, item, n):
    """The same without a savepoint: the transaction is spoilt."""
    try:
        call("stock/" + item, {"take": n})
    except IntegrityError:
        pass
    try:
        Order.objects.create(item=item)
    except Error as e:
        return JsonResponse({"error": type(e).__name__}, status=409)


def invoke(request, item, n):
    """All or nothing: a row and the server."""
    Order.objects.create(item=item)
    scalar("SELECT dgen.invoke(%s, %s::jsonb)", "stock/" + item, json.dumps({"take": n}))
    raise ValueError("after the invoke")


def refill(request, item, n):
    scalar("SELECT dgen.cast(%s, %s::jsonb)", "stock/" + item, json.dumps({"add": n}))
    return JsonResponse({})


urlpatterns = [path("%s/<item>/<int:n>" % view.__name__, view)
               for view in (buy, buy_or_fail, try_to_buy, spoil, invoke, refill)]
