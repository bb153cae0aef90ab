"""Sends the mail of examples/order: takes the messages of module mailer and puts
each into a Maildir, the first argument.  Reads PGHOST, PGDATABASE and so on.

A message is handed out again if this program dies before it has said that it is
done, so a mail could be sent twice; its Message-ID, the message's id, tells.
"""
import email.message
import mailbox
import sys

import psycopg
from psycopg.types.json import Jsonb


def send(box, work):
    server, message_id = work["server"], "<%d@orders.example.org>" % work["message_id"]
    if any(mail["Message-ID"] == message_id for mail in box):
        return
    mail = email.message.EmailMessage()
    mail["Message-ID"] = message_id
    mail["To"] = server.split("/", 1)[1]
    mail["Subject"] = work["message"]["subject"]
    mail.set_content(work["message"]["body"])
    box.add(mail)


def main(path):
    box = mailbox.Maildir(path)
    with psycopg.connect(autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
        while True:
            conn.execute("CALL dgen.wait_work('mailer', '10 s')")
            for work in conn.execute("SELECT * FROM dgen.take_work('mailer', max => 10)"):
                send(box, work)
                state = {"sent": work["state"].get("sent", 0) + 1}
                conn.execute("SELECT dgen.finish_work(%s, %s, %s)",
                             (work["token"], Jsonb(state), Jsonb("sent")))


if __name__ == "__main__":
    main(sys.argv[1])
