"""ClickHouse as the sink, the API and the embedded stack see it: engine, guard, port, migrations.

It knows nothing of Kafka, Faust or the meaning of a job. The modules: `engine` (one way to both
ClickHouse engines), `chdb_engine` and `server_engine` (its two adapters), `guard` and `guard_lists`
(what a reader may ask), `wire` (bytes of ClickHouse's HTTP interface), `port` and `port_settings`
(that interface, read-only, over an engine), `migrate` (numbered schema changes).
"""
