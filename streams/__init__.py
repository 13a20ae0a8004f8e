"""What the engine decides: pure and synchronous.

Owns every decision about a job. Refuses to know Kafka, ClickHouse, the clock, randomness and
threads: instants come in as arguments, effects go out as values.

Read `lifecycle` first, which is the law, then `decisions.decide`.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__, demand=True)
