"""Gathers: jobs that a handler asks for together and waits for.

Owns both sides: the parent's, which releases members and counts their ends, and that of a member's
home, which runs them and tells. Refuses to know how a handler asks
(`tidemill.agents.worker.suspending`). Read `table` first.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
