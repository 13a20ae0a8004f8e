"""What a reader may ask: one statement that reads tables of ours, and nothing else.

ClickHouse itself parses the text (`parseQueryToJSON`), and this module walks that tree; it reads no
SQL of its own except the canonical form of DESCRIBE, EXISTS and SHOW CREATE, which have no JSON
form. Everything that is not known to be harmless is refused: kinds of nodes, functions, tables.
The engine's own `readonly = 1` stands behind it; alone, that setting still lets `file(...)`,
`x IN file(...)`, `DESCRIBE file(...)`, `arrayMap(file, ...)` and INTO OUTFILE through. It refuses
to know HTTP and who asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import orjson

from tidemill.agents.clickhouse.engine import Engine, EngineError
from tidemill.agents.clickhouse.guard_lists import (
    ALLOWED_EXPLAINS,
    ALLOWED_FUNCTION_CATEGORIES,
    ALLOWED_FUNCTIONS,
    ALLOWED_NODES,
    ALLOWED_STATEMENTS,
    ALLOWED_SYSTEM_TABLES,
    ALLOWED_TABLE_FUNCTIONS,
    CATALOGUE_DATABASES,
    REFUSED_FUNCTIONS,
)

DEFAULT_DATABASE = "default"
SQL_BYTES_MAX = 262_144
"""ClickHouse's own default of max_query_size; longer texts do not parse there either."""

APPROVED_MAX = 512
"""Approved texts remembered: a dashboard repeats the same few, and judging one takes 2 ms."""

WRITING_KEYS = ("out_file", "infile", "compression")

_PLAIN_TABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_$ \-]*$")
_IN_FUNCTIONS = re.compile(r"^(global)?(not)?(null)?in(ignoreset)?$", re.IGNORECASE)
_NAME = r"(?:[A-Za-z_][A-Za-z0-9_]*|`(?:[^`\\])+`)"
_CATALOGUE_QUESTION = re.compile(
    r"^(?:DESCRIBE TABLE|EXISTS (?:TABLE|VIEW|DATABASE)|SHOW CREATE (?:TABLE|VIEW))"
    rf" (?P<name>{_NAME}(?:\.{_NAME})?)(?: FORMAT (?P<format>[A-Za-z0-9]+))?$"
)
_ABOUT_SCOPE = re.compile(r":? In scope SELECT parseQueryToJSON.*$", re.DOTALL)
CODE_NO_JSON_FORM = 36
"""What `parseQueryToJSON` answers (BAD_ARGUMENTS) for a statement that it cannot write as JSON."""


class Refused(EngineError):
    """The statement is not for readers; the text says which part, and what to do instead."""

    def __init__(self, message: str, *, code: int = 497, name: str = "ACCESS_DENIED"):
        super().__init__(message, code=code, name=name)


@dataclass(frozen=True, slots=True)
class Approved:
    """A statement that may run as `sql`. `fmt` is its FORMAT, None when it names none."""

    sql: str
    fmt: str | None
    settings: dict[str, object] = field(default_factory=dict)
    """Settings that its SETTINGS clauses asked for; the clauses themselves are taken out."""


class Guard:
    """Judges statements with the parser and the function list of one engine."""

    def __init__(self, engine: Engine, *, database: str = DEFAULT_DATABASE):
        self._engine = engine
        self._own_database = database
        self._approved = lru_cache(APPROVED_MAX)(self._judged)

    def check(self, sql: str, *, database: str = DEFAULT_DATABASE) -> Approved:
        """The statement, approved to run with `database` as the current one; raises Refused."""
        return self._approved(sql.strip(), database)

    def _judged(self, text: str, database: str) -> Approved:
        self._check_database(database)
        if not text:
            raise Refused("Empty query", code=62, name="SYNTAX_ERROR")
        if "\0" in text or len(text.encode()) > SQL_BYTES_MAX:
            raise Refused(
                f"Query is longer than {SQL_BYTES_MAX} bytes or holds a zero byte",
                code=62,
                name="SYNTAX_ERROR",
            )
        tree = self._parsed(text)
        if tree is None:
            return self._catalogue_question(text, database)
        if tree["type"] not in ALLOWED_STATEMENTS:
            raise _read_only(str(tree["type"]))
        _Walk(self, database).judge(tree)
        return self._approval(text, tree)

    def _parsed(self, text: str) -> dict[str, Any] | None:
        try:
            answer = self._parse_function("parseQueryToJSON", text)
        except EngineError as error:
            if error.code == CODE_NO_JSON_FORM:
                return None
            message = _ABOUT_SCOPE.sub("", error.message)
            raise Refused(message, code=error.code, name=error.name) from error
        try:
            tree: dict[str, Any] = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            raise Refused("Query is nested too deeply", code=167, name="TOO_DEEP_AST") from error
        return tree

    def _parse_function(self, function: str, text: str) -> str:
        answer = self._engine.query(
            f"SELECT {function}({{q:String}}) AS answer", {"q": text}, {"readonly": 1}
        )
        return str(answer[0]["answer"])

    def _catalogue_question(self, text: str, database: str) -> Approved:
        canonical = self._parse_function("formatQuerySingleLine", text)
        found = _CATALOGUE_QUESTION.match(canonical)
        if not found:
            raise _read_only(" ".join(canonical.split(" ")[:2]))
        parts = [part.strip("`") for part in re.findall(_NAME, found["name"])]
        if "DATABASE" not in canonical.split(" ")[:2]:
            self.check_table(parts, database)
        return Approved(sql=canonical, fmt=found["format"])

    def _approval(self, text: str, tree: dict[str, Any]) -> Approved:
        settings: dict[str, object] = {}
        _take_settings(tree, settings)
        fmt = tree.get("format_ast") or {}
        if settings:
            text = self._parse_function("formatQueryFromJSON", orjson.dumps(tree).decode())
        return Approved(sql=text, fmt=fmt.get("name"), settings=settings)

    def _check_database(self, database: str) -> None:
        if database.lower() not in CATALOGUE_DATABASES | {self._own_database}:
            raise Refused(f"Database {database} does not exist", code=81, name="UNKNOWN_DATABASE")

    def check_table(self, parts: list[str], database: str) -> None:
        """Raises unless the table, named by one or two parts, is ours or a harmless catalogue."""
        if len(parts) > 2 or not parts:
            raise Refused(f"Table {'.'.join(parts)}: use database.table")
        table = parts[-1]
        owner = parts[0] if len(parts) == 2 else database
        self._check_database(owner)
        if not _PLAIN_TABLE.match(table):
            raise Refused(
                f"Table {table!r}: not a plain table name; files and addresses cannot be read"
            )
        if owner.lower() == "system" and table not in ALLOWED_SYSTEM_TABLES:
            raise Refused(
                f"Table system.{table} is not open to readers; open are: "
                + ", ".join(sorted(ALLOWED_SYSTEM_TABLES))
            )

    def check_function(self, name: str) -> None:
        """Raises unless the function only computes."""
        if name.lower() in ALLOWED_TABLE_FUNCTIONS or name in ALLOWED_FUNCTIONS:
            return
        if name in REFUSED_FUNCTIONS or not self._is_computing(name):
            raise Refused(
                f"Function {name} is not open to readers: only functions that compute are, and the "
                "table functions " + ", ".join(sorted(ALLOWED_TABLE_FUNCTIONS))
            )

    def is_refused_function(self, name: str) -> bool:
        """True when the engine has a function of this name and readers may not call it."""
        return name.lower() in self._functions.refused

    def _is_computing(self, name: str) -> bool:
        known = self._functions
        if name in known.exact or name.lower() in known.any_case:
            return True
        base = name
        while suffix := next(
            (s for s in known.combinators if base.endswith(s) and base != s), None
        ):
            base = base.removesuffix(suffix)
            if base in known.aggregates or base.lower() in known.aggregates & known.any_case:
                return True
        return False

    @cached_property
    def _functions(self) -> _Functions:
        rows = self._engine.query(
            "SELECT name, alias_to, is_aggregate, case_insensitive, categories,"
            " toString(origin) AS origin FROM system.functions"
        )
        suffixes = self._engine.query("SELECT name FROM system.aggregate_function_combinators")
        return _Functions.sorted_out(rows, [str(row["name"]) for row in suffixes])


@dataclass(frozen=True, slots=True)
class _Functions:
    """The engine's functions by what a reader may do with them."""

    exact: frozenset[str]
    any_case: frozenset[str]
    """Allowed in any spelling; in lower case."""
    aggregates: frozenset[str]
    combinators: tuple[str, ...]
    """Suffixes such as If and OrNull, longest first: sumIf, quantilesTDigestOrNullIf."""
    refused: frozenset[str]
    """Known to the engine and not allowed; in lower case."""

    @classmethod
    def sorted_out(cls, rows: list[dict[str, Any]], combinators: list[str]) -> _Functions:
        by_name = {str(row["name"]): row for row in rows}
        allowed = {name for name, row in by_name.items() if _computes(by_name, row)}
        any_case = {name.lower() for name in allowed if by_name[name]["case_insensitive"]}
        aggregates = {name for name in allowed if by_name[name]["is_aggregate"]}
        return cls(
            exact=frozenset(allowed),
            any_case=frozenset(any_case),
            aggregates=frozenset(aggregates | {name.lower() for name in aggregates} & any_case),
            combinators=tuple(sorted(combinators, key=len, reverse=True)),
            refused=frozenset(
                name.lower() for name in by_name.keys() - allowed if name.lower() not in any_case
            ),
        )


def _computes(by_name: Mapping[str, dict[str, Any]], row: Mapping[str, Any]) -> bool:
    target = by_name.get(row["alias_to"] or row["name"])
    if target is None or target["origin"] != "System" or target["name"] in REFUSED_FUNCTIONS:
        return False
    return bool(
        target["is_aggregate"]
        or target["name"] in ALLOWED_FUNCTIONS
        or target["categories"] in ALLOWED_FUNCTION_CATEGORIES
    )


class _Walk:
    """One pass over a parsed statement; every node passes through `_judge_node`."""

    def __init__(self, guard: Guard, database: str):
        self._guard = guard
        self._database = database

    def judge(self, tree: Mapping[str, Any]) -> None:
        # A list and no recursion: ClickHouse nests deeper than Python's stack.
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            self._judge_node(node)
            waiting.extend(_children(node))

    def _judge_node(self, node: Mapping[str, Any]) -> None:
        kind = node["type"]
        if kind not in ALLOWED_NODES:
            raise Refused(
                f"{kind} is not open to readers: only SELECT, SHOW, DESCRIBE, EXISTS, EXPLAIN"
            )
        for key in WRITING_KEYS:
            if node.get(key):
                raise Refused("INTO OUTFILE is not open to readers: read the answer of the request")
        self._judge_kind(kind, node)

    def _judge_kind(self, kind: str, node: Mapping[str, Any]) -> None:
        match kind:
            case "Function":
                self._judge_function(node)
            case "ColumnsApplyTransformer":
                if node.get("func_name"):
                    self._guard.check_function(str(node["func_name"]))
            case "Identifier":
                self._judge_identifier(node)
            case "QueryParameter":
                if str(node.get("param_type")).lower() == "identifier":
                    raise Refused("{name:Identifier} is not open to readers: write the name itself")
            case "TableIdentifier":
                self._guard.check_table(self._parts(node), self._database)
            case "ShowTablesQuery":
                self._judge_show_tables(node)
            case "ShowColumnsQuery":
                owner = [node["database"]] if node.get("database") else []
                self._guard.check_table([*owner, node.get("table", "")], self._database)
            case "ExplainQuery":
                if node.get("kind") not in ALLOWED_EXPLAINS:
                    raise Refused(f"{node.get('kind')} is not open to readers")
            case _:
                pass

    def _judge_function(self, node: Mapping[str, Any]) -> None:
        name = str(node["name"])
        self._guard.check_function(name)
        if not _IN_FUNCTIONS.match(name):
            return
        # `x IN name` reads a table when `name` is no column, so a name there is judged like one.
        arguments = (node.get("arguments") or {}).get("children") or []
        for argument in arguments[1:]:
            if argument["type"] != "Identifier":
                continue
            parts = self._parts(argument)
            if len(parts) == 1 or parts[0].lower() in CATALOGUE_DATABASES:
                self._guard.check_table(parts, self._database)

    def _judge_identifier(self, node: Mapping[str, Any]) -> None:
        """A bare name may stand for a function, as in arrayMap(file, ['/etc/passwd'])."""
        parts = self._parts(node)
        if len(parts) == 1 and self._guard.is_refused_function(parts[0]):
            raise Refused(
                f"{parts[0]} is the name of a function that is not open to readers; for a column "
                f"of that name write table.{parts[0]}"
            )

    def _judge_show_tables(self, node: Mapping[str, Any]) -> None:
        for key in ("caches", "fscaches", "filesystem_caches", "clusters", "cluster"):
            if node.get(key):
                raise Refused("SHOW CLUSTERS and SHOW CACHES are not open to readers")

    def _parts(self, node: Mapping[str, Any]) -> list[str]:
        parts = [str(part) for part in node.get("name_parts") or [node["name"]]]
        if not all(parts):
            raise Refused("{name:Identifier} is not open to readers: write the name itself")
        return parts


def _children(node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node below, wherever the tree keeps it."""
    for value in node.values():
        found = value if isinstance(value, list) else [value]
        for item in found:
            if isinstance(item, dict):
                if "type" in item:
                    yield item
                else:
                    yield from _children(item)


def _take_settings(tree: dict[str, Any], found: dict[str, object]) -> None:
    """Moves the settings of all SETTINGS clauses out of the tree, the outermost winning."""
    level = [tree]
    while level:
        for node in level:
            # The settings of EXPLAIN are options of its own, such as indexes = 1.
            is_explain = node["type"] == "ExplainQuery"
            for key in ("settings_ast",) if is_explain else ("settings", "settings_ast"):
                clause = node.get(key)
                if isinstance(clause, dict) and clause.get("type") == "SetQuery":
                    for change in clause.get("changes") or []:
                        found.setdefault(str(change["name"]), change["value"].get("value"))
                    del node[key]
        level = [child for node in level for child in _children(node)]


def _read_only(statement: str) -> Refused:
    kind = statement.removesuffix("Query")
    return Refused(
        f"Cannot execute query in readonly mode: {kind}. This port only reads: SELECT, SHOW "
        "TABLES, SHOW COLUMNS, SHOW CREATE TABLE, DESCRIBE, EXISTS, EXPLAIN",
        code=164,
        name="READONLY",
    )
