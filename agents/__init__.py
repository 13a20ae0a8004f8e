"""The edges: Faust apps, the runtime under them, the HTTP API and the web page.

Owns everything that touches Kafka, ClickHouse, clocks and user code; refuses to decide what a job
does next, which is the work of ``streams``.
"""
