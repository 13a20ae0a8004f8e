"""A row and its job in one transaction of the application's own database.

Owns the public names; needs the extra `outbox` (SQLAlchemy 2). Refuses to know what a database is
(`tidemill.outbox.store`) and how rows get to Kafka (`tidemill.outbox.relay`).

    from tidemill import outbox

    outbox.attach(Base.metadata)                                # before create_all and migrations
    with Session(engine) as session, session.begin():
        session.add(order)
        outbox.add(session, charge, Charge(order=order.id), user_id="u1")

docs/OUTBOX.md has the guarantees and the limits.
"""

from __future__ import annotations

from tidemill.outbox.adding import add
from tidemill.outbox.errors import RelayError
from tidemill.outbox.relay import Relay
from tidemill.outbox.store import Lag
from tidemill.outbox.table import OutboxRow, attach, ddl, metadata, table

__all__ = ["Lag", "OutboxRow", "Relay", "RelayError", "add", "attach", "ddl", "metadata", "table"]
