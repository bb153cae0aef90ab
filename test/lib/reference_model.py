"""What dgen does, in plain Python: servers, mailboxes, failures, timers, names and
monitors, one activation after the other, without a database.

The handlers are those of test_model.py: a message {"n": number, "do": [...]}
is noted in the state's log of its lane, and does what it says.  Time stands still:
what backs off, and each timer, waits until it is told that its time has come.
"""

import copy

LANES = ("1", "0", "-1")


class Refused(Exception):
    """An error with its SQLSTATE."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Rejected(Refused):
    def __init__(self):
        super().__init__("OT021")


class Later(Refused):
    def __init__(self):
        super().__init__("later")


class Message:
    def __init__(self, place, kind, body, lane="0", incarnation=None, by=None, timer=None):
        self.place = place              # its id, but for the number
        self.kind = kind                # call, request, cast, info, timer, DOWN, reply, continue
        self.body = body
        self.lane = lane
        self.incarnation = incarnation  # for this one only
        self.by = by                    # server that has sent it
        self.timer = timer              # name of the timer that it comes of
        self.cancelled = False          # its timer: dropped when its turn comes
        self.attempts = 0
        self.backs_off = False

    def label(self):
        body = self.body.get("message", self.body)
        return str(body.get("n", body.get("info")))


class Server:
    def __init__(self):
        self.active = False
        self.incarnation = 0
        self.state = None
        self.reason = None
        self.suspended = False
        self.mail = []
        self.postponed = []
        self.going_on = None            # the place of a continue

    def is_failing(self):
        return any(m.attempts or m.backs_off for m in self.mail)


class Model:
    def __init__(self, servers, max_attempts, retry, on_stop, on_dead_letter):
        self.max_attempts = max_attempts
        self.retry = retry
        self.on_stop = on_stop
        self.on_dead_letter = on_dead_letter
        # one that is forgotten counts its incarnations from 1, or on where the next
        # begins in the same transaction: of these no more is said than that there is one
        self.counts = on_stop == "keep"
        self.servers = {name: Server() for name in servers}
        self.places = 0
        self.failing = {}               # number: how
        self.letters = []               # (server, message, SQLSTATE)
        self.timers = {}                # (server, name): (body, incarnation)
        self.names = {}                 # name: (server, incarnation)
        self.monitors = []              # (watcher, its incarnation, watched)
        self.replies = {}               # number of a request: what became of it
        self.keys = {}                  # (server, key): (number, reply)
        self.dedup = {}                 # (server, key): number
        self.effects = {}               # (server, lane): what was done, in order

    def place(self):
        self.places += 1
        return self.places

    def attempt(self, action):
        """All of it, or nothing."""
        before = copy.deepcopy(self.__dict__)
        try:
            return action()
        except Refused:
            self.__dict__ = before
            raise

    # --- sending

    def send(self, to, kind, body, lane="0", **more):
        self.servers[to].mail.append(Message(self.place(), kind, body, lane, **more))

    def note(self, server, lane, what):
        self.effects.setdefault((server, lane), []).append(what)

    # --- an incarnation

    def begin(self, name):
        s = self.servers[name]
        s.active, s.incarnation, s.reason = True, s.incarnation + 1, None
        s.state = {"log": {lane: [] for lane in LANES}}
        self.note(name, "0", "init")

    def end(self, name, reason, forget, terminate=True):
        s = self.servers[name]
        if terminate:
            self.note(name, "0", "terminate " + reason)
        s.mail += s.postponed
        s.postponed, s.going_on = [], None
        s.active, s.reason = False, reason
        self.timers = {k: t for k, t in self.timers.items() if k[0] != name or t[1] is None}
        if forget:
            s.state = None
            s.mail = [m for m in s.mail if m.incarnation != s.incarnation]
        self.end_ties(name, reason)
        self.forget_the_forgotten()

    def forget_the_forgotten(self):
        """One that was to leave nothing is remembered while it is suspended, or failing."""
        for s in self.servers.values():
            if self.on_stop == "delete" and not (s.active or s.suspended or s.is_failing() or s.state is not None):
                s.incarnation, s.reason = 0, None

    def end_ties(self, name, reason):
        self.names = {k: n for k, n in self.names.items() if n[0] != name}
        self.monitors = [m for m in self.monitors if m[0] != name]
        for watcher, incarnation, watched in [m for m in self.monitors if m[2] == name]:
            self.monitors.remove((watcher, incarnation, watched))
            self.down(watcher, incarnation, watched, reason)

    def down(self, watcher, incarnation, watched, reason):
        self.send(watcher, "DOWN", {"info": "DOWN", "server": watched, "reason": reason},
                  incarnation=incarnation, by=watched)

    # --- an activation

    def activate(self, name, message):
        """The reply; None: it was postponed.  Raises what the handler raises."""
        s = self.servers[name]
        if not s.active:
            self.begin(name)
        body = message.body
        if message.kind == "timer":
            body = body["message"]
        if "n" not in body:
            what = body["info"] + " " + (body["server"] + " " + body["reason"] if message.kind == "DOWN"
                                         else str(body["answer"]))
            self.log(name, message.lane, what)
            return [what]
        how = self.failing.get(body["n"])
        if how == "raise":
            raise Refused("FA001")
        if how == "reject":
            raise Rejected()
        if how == "later":
            raise Refused("OT011") if message.kind in ("call", "invoke") else Later()
        if "postpone" in body["do"] and not s.state.get("open"):
            self.note(name, message.lane, "postponed %d" % body["n"])
            if message.kind == "invoke":
                raise Refused("OT011")
            s.postponed.append(message)
            return None
        self.log(name, message.lane, body["n"])
        for action in body["do"]:
            if action != "postpone":
                self.act(name, message, action)
        if "exit" in body["do"]:
            self.end(name, "done", self.on_stop == "delete")
        return [body["n"]]

    def log(self, name, lane, what):
        s = self.servers[name]
        self.note(name, lane, str(what))
        s.state["log"][lane].append(what)
        # the server has changed
        s.mail += s.postponed
        s.postponed = []

    def act(self, name, message, action):
        s = self.servers[name]
        if action in ("open", "close"):
            s.state["open"] = action == "open"
        elif action == "continue":
            s.going_on = self.place()
            s.mail.append(Message(s.going_on, "continue", {"n": -message.body["n"], "do": []}, "1", s.incarnation))
        elif isinstance(action, list):
            what, to, body = action
            if what == "cast":
                self.send(to, "cast", body, by=name)
            elif what == "request":
                self.send(to, "request", body, by=name)
            elif what == "timer":
                self.timers[name, to] = (body, s.incarnation)
            elif what == "monitor" and self.servers[to].active:
                self.monitors.append((name, s.incarnation, to))
            elif what == "monitor":
                self.down(name, s.incarnation, to, "noproc")
            elif what == "call":
                self.invoke(to, body, by=name)

    # --- what waits

    def next_of(self, name):
        s = self.servers[name]
        if s.suspended:
            return None
        for m in s.mail:
            if m.place == s.going_on:
                return None if m.backs_off else m
        for lane in LANES:
            for m in sorted((m for m in s.mail if m.lane == lane), key=lambda m: m.place):
                if not m.backs_off:
                    return m
                if self.retry == "block":
                    break
        return None

    def is_blocked(self, name):
        """Would a call have to wait?"""
        s = self.servers[name]
        return s.suspended or any(m.backs_off and (m.place == s.going_on or
                                                   (self.retry == "block" and m.lane == "0")) for m in s.mail)

    def is_alive(self, s, incarnation):
        return incarnation is None or (s.active and incarnation == s.incarnation)

    def run(self):
        """Until there is nothing more to do."""
        busy = True
        while busy:
            busy = False
            for name in self.servers:
                m = self.next_of(name)
                if m is not None:
                    self.handle(name, m)
                    busy = True
        self.forget_the_forgotten()

    def handle(self, name, m):
        try:
            self.attempt(lambda: self.take(name, m.place))
        except Refused as e:
            self.failed(name, self.find(name, m.place), e)

    def find(self, name, place):
        return next((m for m in self.servers[name].mail if m.place == place), None)

    def take(self, name, place):
        """Out of the mailbox, and through the handler unless it has become void."""
        s, m = self.servers[name], self.find(name, place)
        s.mail.remove(m)
        if s.going_on == place:
            s.going_on = None
        if m.cancelled or not self.is_alive(s, m.incarnation):
            return
        m.attempts, m.backs_off = 0, False
        reply = self.activate(name, m)
        if m.kind == "request" and reply is not None:
            self.answer(name, m, ("reply", reply[0]))

    def answer(self, name, m, what):
        if m.by is None:
            self.replies[m.body["n"]] = what
        else:
            self.send(m.by, "reply", {"info": "reply", "answer": what[1]}, by=name)

    def failed(self, name, m, error):
        s = self.servers[name]
        if isinstance(error, Later):
            m.backs_off = True
            return
        m.attempts += 1
        m.backs_off = True
        if not isinstance(error, Rejected) and m.attempts < self.max_attempts:
            return
        s.mail.remove(m)
        self.letters.append((name, m, error.code))
        if s.going_on == m.place:
            s.going_on = None
        if m.kind == "request":
            self.answer(name, m, ("error", error.code))
        if self.on_dead_letter == "suspend":
            s.suspended = True

    # --- what clients do

    def call(self, name, body, key=None):
        if self.is_blocked(name):
            raise Refused("OT001")
        if key is not None and (name, key) in self.keys:
            n, reply = self.keys[name, key]
            if n != body:
                raise Refused("OT013")
            return reply
        reply = self.attempt(lambda: self.activate(name, Message(0, "call", body)))
        if key is not None:
            self.keys[name, key] = (body, reply)
        return reply

    def invoke(self, name, body, by=None):
        """It passes all messages but a continue and, by a server, those of that one."""
        s = self.servers[name]
        if s.suspended:
            raise Refused("55000")
        try:
            for place in sorted(m.place for m in s.mail if by is not None and m.by == by):
                self.go_on(name)
                if self.find(name, place):
                    self.take(name, place)
        except Refused:
            raise Refused("OT010") from None
        self.go_on(name)
        return self.activate(name, Message(0, "invoke", body))

    def go_on(self, name):
        s = self.servers[name]
        if s.going_on is not None:
            self.take(name, s.going_on)

    def start(self, name):
        s = self.servers[name]
        if s.active:
            raise Refused("OT019")
        if s.suspended:
            raise Refused("55000")
        self.begin(name)
        return s.incarnation if self.counts else 1

    def register(self, name, tag):
        s = self.servers[name]
        if not s.active:
            raise Refused("OT003")
        if tag in self.names and self.names[tag] != (name, s.incarnation):
            raise Refused("OT019")
        is_new = tag not in self.names
        self.names[tag] = (name, s.incarnation)
        return is_new

    def send_after(self, name, timer, body):
        self.cancel_timer(name, timer)
        self.timers[name, timer] = (body, None)

    def cancel_timer(self, name, timer):
        """Also one that has come due: its message is dropped when it is met."""
        s = self.servers[name]
        there = self.timers.pop((name, timer), None) is not None
        for m in s.mail + s.postponed:
            if m.timer == timer and not m.cancelled and self.is_alive(s, m.incarnation):
                there = m.cancelled = True
        return there

    def come_due(self, name, timer):
        body, incarnation = self.timers.pop((name, timer))
        self.send(name, "timer", {"info": "timer", "name": timer, "message": body},
                  incarnation=incarnation, timer=timer)

    def requeue(self, letter, discard):
        name, m, _ = letter
        self.letters.remove(letter)
        if not discard:
            m.attempts, m.backs_off, m.incarnation, m.timer = 0, False, None, None
            self.servers[name].mail.append(m)

    def exists(self, name):
        s = self.servers[name]
        return s.active or s.state is not None or s.suspended or s.incarnation > 0 or s.is_failing()

    def stop(self, name, kill=False):
        s = self.servers[name]
        if not self.exists(name):
            raise Refused("OT003")
        if not s.active:
            return False
        reason = "killed" if kill else "normal"
        self.end(name, reason, self.on_stop == "delete", terminate=not kill)
        if kill:
            s.state = None
        return True

    def delete(self, name):
        """As if it had never been; none of its code runs."""
        s = self.servers[name]
        timers = [key for key in self.timers if key[0] == name]
        letters = [letter for letter in self.letters if letter[0] == name]
        found = self.exists(name) or bool(s.mail or s.postponed or timers or letters)
        for m in sorted(s.mail + s.postponed, key=lambda m: m.place):
            if m.kind == "request":
                self.answer(name, m, ("error", "OT008"))
        for key in timers:
            del self.timers[key]
        self.letters = [letter for letter in self.letters if letter[0] != name]
        self.end_ties(name, "deleted")
        self.servers[name] = Server()
        return found

    def replace_state(self, name, key, value):
        s = self.servers[name]
        if not s.active:
            raise Refused("OT003")
        if s.state.get(key) != value:
            s.state[key] = value
            s.mail += s.postponed
            s.postponed = []
