"""What a partition remembers: tables that undo, write and load themselves.

Owns the state and its rows. Refuses to decide. Read `table` first, then `state`, which has them
all.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
