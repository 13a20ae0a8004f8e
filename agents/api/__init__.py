"""The HTTP API and the web page: what people and programs see of the jobs.

Owns routes, templates, problem details and who may call. Refuses to decide anything about a job:
it reads ClickHouse, and what it is asked to do it writes to `jobs.requested` for the ledger.
"""
