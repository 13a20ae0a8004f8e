"""Writes jars.json again for another Kafka: `python -m tidemill.agents.embedded.pin 4.1.2`.

Owns: which artifacts are asked for and how they are resolved.
Refuses to know: how pinned jars are used. Only here are versions resolved; users never do that.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from tidemill.agents.embedded.jars import Part

# kafka-clients is named too: without it jgo settles for an older one that a dependency asks for.
BROKER = ("kafka_2.13", "kafka-clients")
# The command-line clients; what they need for producing and consuming is in the broker's set.
TOOLS = ("kafka-tools",)
# Without a binding of slf4j the broker's log is silent. It must be of log4j-core's version.
BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "log4j-core")

Coordinate = tuple[str, str, str]


def main(kafka: str) -> None:
    """Resolve, download and hash everything for this version of Kafka, and write jars.json."""
    from jgo.maven import MavenContext, PythonResolver

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(resolver=PythonResolver(), repo_cache=Path(folder), local_repos=[])

        def resolve(names: tuple[str, ...]) -> set[Coordinate]:
            wanted = [context.create_dependency(f"org.apache.kafka:{n}:{kafka}") for n in names]
            root, nodes = context.resolver.get_dependency_list(wanted)
            needed = [node.dep for node in [*root.children, *nodes]]
            return {
                (dep.groupId, dep.artifactId, dep.version)
                for dep in needed
                if dep.scope not in ("test", "provided") and not dep.optional
            }

        def pin(coordinate: Coordinate) -> dict[str, str | int]:
            group, artifact, version = coordinate
            path = context.project(group, artifact).at_version(version).artifact().resolve()
            content = path.read_bytes()
            return {
                "coordinate": ":".join(coordinate),
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
            }

        broker = resolve(BROKER)
        group, binding, core = BINDING
        broker.add((group, binding, next(v for g, a, v in broker if (g, a) == (group, core))))
        parts: dict[Part, list[Coordinate]] = {
            "broker": sorted(broker),
            "tools": [("org.apache.kafka", name, kafka) for name in TOOLS],
        }
        pins: dict[str, object] = {"kafka": kafka}
        pins |= {part: [pin(c) for c in coordinates] for part, coordinates in parts.items()}
    target = Path(__file__).with_name("jars.json")
    target.write_text(json.dumps(pins, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
