"""Shows the servers of a module in a browser, and one server's state as it changes.

    psql -f follow.sql mydb
    PGDATABASE=mydb python3 server.py parcel        # http://127.0.0.1:8080/

    python3 server.py parcel --pooler               # no LISTEN: dgen.wait_change

Wants python3-aiohttp and python3-psycopg.  The role that it connects as has to be a
reader of the module.  States are read from view dgen.servers, so they are masked by
format_status; who should see which page is not its business: it listens on loopback.
"""
import argparse
import asyncio
import contextlib
import json
import os

import psycopg
from aiohttp import web
from psycopg import sql

HERE = os.path.dirname(os.path.abspath(__file__))
QUIET = 15      # seconds until a page is told that there is nothing new


class Follower:
    """What all pages share: a connection that reads, and one that listens."""

    def __init__(self, module, pooler):
        self.module, self.pooler = module, pooler
        self.waiting = {}           # server -> events of the pages that follow it
        self.reader = None
        self.turn = asyncio.Lock()

    async def connect(self):
        # no prepared statements, which a pooler in transaction mode may lose
        return await psycopg.AsyncConnection.connect(autocommit=True, prepare_threshold=None)

    async def read(self, query, *parameters):
        """Pages use one connection in turn; a lost one is made anew, once."""
        async with self.turn:
            for attempt in 1, 2:
                if self.reader is None or self.reader.closed:
                    self.reader = await self.connect()
                try:
                    return await (await self.reader.execute(query, parameters)).fetchall()
                except psycopg.OperationalError:
                    await self.reader.close()
                    if attempt == 2:
                        raise

    async def servers(self):
        rows = await self.read("SELECT server FROM dgen.servers WHERE module = %s ORDER BY server LIMIT 1000",
                               self.module)
        return [server for server, in rows]

    async def state(self, server):
        rows = await self.read("SELECT version, state FROM dgen.servers WHERE server = %s AND module = %s",
                               server, self.module)
        return rows[0] if rows else (None, None)

    async def channel(self):
        rows = await self.read("SELECT notify FROM dgen.modules WHERE module = %s", self.module)
        return rows[0][0] if rows else None

    # --- by LISTEN: one connection for all pages

    async def listen(self):
        """For ever.  What was announced while nobody listened is not repeated, so
        all look again after each LISTEN."""
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                channel = await self.channel()
                if channel is None:     # taken away: pages look each QUIET seconds
                    await asyncio.sleep(QUIET)
                    continue
                async with await self.connect() as conn:
                    await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    self.wake(self.waiting)
                    async for notice in conn.notifies():
                        news = json.loads(notice.payload)
                        # without a server, any of the module may have changed
                        self.wake([news["server"]] if "server" in news else self.waiting)
            await asyncio.sleep(1)

    def wake(self, servers):
        for server in servers:
            for event in self.waiting.get(server, ()):
                event.set()

    @contextlib.contextmanager
    def entered(self, server):
        event = asyncio.Event()
        self.waiting.setdefault(server, set()).add(event)
        try:
            yield event
        finally:
            self.waiting[server].remove(event)
            if not self.waiting[server]:
                del self.waiting[server]

    async def changes(self, server):
        """(version, state) now and after each change; None when nothing is new."""
        with self.entered(server) as event:
            known = ()
            while True:
                event.clear()       # before the look, so that no change is missed
                found = await self.state(server)
                yield found if found != known else None
                known = found
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(event.wait(), QUIET)

    # --- by a long poll: a connection for each page, which may be a pooler's

    async def polled_changes(self, server):
        known = ()
        conn = await self.connect()
        try:
            while True:
                found = await self.state(server)
                yield found if found != known else None
                known = found
                await conn.execute("CALL dgen.wait_change(%s, %s::bigint, %s)",
                                   (server, found[0], "%d s" % QUIET))
        finally:
            await conn.close()


routes = web.RouteTableDef()


@routes.get("/servers")
async def servers(request):
    return web.json_response(await request.app["follower"].servers())


@routes.get("/events")
async def events(request):
    """Server-sent events, until the browser closes the page."""
    follower = request.app["follower"]
    server = request.query.get("server", "")
    if not server.startswith(follower.module + "/"):
        raise web.HTTPNotFound()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    changes = follower.polled_changes(server) if follower.pooler else follower.changes(server)
    with contextlib.suppress(ConnectionResetError):
        async with contextlib.aclosing(changes):
            async for change in changes:
                if change is None:
                    await response.write(b":\n\n")      # is anybody there?
                else:
                    data = json.dumps({"version": change[0], "state": change[1]})
                    await response.write(b"data: %s\n\n" % data.encode())
    return response


@routes.get("/")
async def page(request):
    return web.FileResponse(os.path.join(HERE, "page.html"))


@routes.get("/{name:page.(?:js|css)}")
async def file(request):
    return web.FileResponse(os.path.join(HERE, request.match_info["name"]))


async def add_headers(request, response):
    """No script but the page's own, whatever a state may say."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    response.headers["X-Content-Type-Options"] = "nosniff"


async def background(app):
    follower = app["follower"]
    if not follower.pooler and await follower.channel() is None:
        raise SystemExit("module %s has no option notify, or is not for this role to see: set it, or pass --pooler"
                         % follower.module)
    task = None if follower.pooler else asyncio.create_task(follower.listen())
    yield
    if task:
        task.cancel()
    if follower.reader:
        await follower.reader.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--pooler", action="store_true")
    arguments = parser.parse_args()

    app = web.Application()
    app["follower"] = Follower(arguments.module, arguments.pooler)
    app.add_routes(routes)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(background)
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, shutdown_timeout=1)


if __name__ == "__main__":
    main()
