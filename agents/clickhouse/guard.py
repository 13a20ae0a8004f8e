"""What a reader may ask: one statement that reads tables of ours, and nothing else.

Owns the allow-lists of statements, functions, tables and settings. ClickHouse itself parses the
text (`parseQueryToJSON`), and this module walks that tree; it looks at no text of its own making
except the canonical form of DESCRIBE, EXISTS and SHOW CREATE, which have no JSON form.
It refuses to know HTTP and who asks. The engine's own `readonly = 1` stands behind it; that setting
alone still lets `file('/etc/passwd')`, `x IN file(...)`, `DESCRIBE file(...)` and INTO OUTFILE through.
Everything that is not known to be harmless is refused: kinds of nodes, functions, tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from agents.clickhouse.engine import Engine, EngineError, text_params

DEFAULT_DATABASE = "default"
SQL_BYTES_MAX = 262_144
"""ClickHouse's own default of max_query_size; longer texts do not parse there either."""

ALLOWED_STATEMENTS = frozenset(
    {"SelectWithUnionQuery", "ExplainQuery", "ShowTablesQuery", "ShowColumnsQuery"}
)
ALLOWED_NODES = ALLOWED_STATEMENTS | frozenset(
    {
        "ArrayJoin",
        "Asterisk",
        "ColumnsApplyTransformer",
        "ColumnsExceptTransformer",
        "ColumnsListMatcher",
        "ColumnsRegexpMatcher",
        "ColumnsReplaceTransformer",
        "ColumnsReplaceTransformerReplacement",
        "ColumnsTransformerList",
        "ExpressionList",
        "Function",
        "Identifier",
        "InterpolateElement",
        "Literal",
        "OrderByElement",
        "QualifiedAsterisk",
        "QualifiedColumnsListMatcher",
        "QualifiedColumnsRegexpMatcher",
        "QueryParameter",
        "SampleRatio",
        "SelectIntersectExceptQuery",
        "SelectQuery",
        "SetQuery",
        "Subquery",
        "TableExpression",
        "TableIdentifier",
        "TableJoin",
        "TablesInSelectQuery",
        "TablesInSelectQueryElement",
        "WindowDefinition",
        "WindowListElement",
        "WithElement",
    }
)
ALLOWED_EXPLAINS = frozenset(
    {"EXPLAIN", "EXPLAIN AST", "EXPLAIN SYNTAX", "EXPLAIN QUERY TREE", "EXPLAIN PIPELINE", "EXPLAIN ESTIMATE"}
)
WRITING_KEYS = ("out_file", "infile", "compression")

ALLOWED_TABLE_FUNCTIONS = frozenset(
    {
        "generateseries",
        "generate_series",
        "null",
        "numbers",
        "numbers_mt",
        "sqlstandardvalues",
        "values",
        "view",
        "zeros",
        "zeros_mt",
    }
)
# Functions are allowed by the engine's own category. Left out as a whole: AI (network), Machine
# Learning and dictionaries (models and sources of the host), Introspection, Internal, Other.
ALLOWED_FUNCTION_CATEGORIES = frozenset(
    {
        "Aggregate Functions",
        "Arithmetic",
        "Arrays",
        "Bit",
        "Bitmap",
        "Comparison",
        "Conditional",
        "Dates and Times",
        "Distance",
        "Encoding",
        "Encryption",
        "Financial",
        "Geo",
        "Geo Polygon",
        "Hash",
        "IP Address",
        "JSON",
        "Logical",
        "Map",
        "Mathematical",
        "Null",
        "NumericIndexedVector",
        "QBit",
        "Random Number",
        "Rounding",
        "String",
        "String Replacement",
        "String Search",
        "String Splitting",
        "Time Series",
        "Time Window",
        "Tuple",
        "Type Conversion",
        "URL",
        "UUID",
    }
)
# Of the category Other and Internal, what queries and clients use and what tells nothing of the host.
ALLOWED_FUNCTIONS = frozenset(
    {
        "_CAST",
        "bar",
        "buildId",
        "byteSize",
        "caseWithExpression",
        "countDigits",
        "currentDatabase",
        "currentSchemas",
        "currentUser",
        "defaultValueOfArgumentType",
        "defaultValueOfTypeName",
        "displayName",
        "finalizeAggregation",
        "format",
        "formatQuery",
        "formatQuerySingleLine",
        "formatReadableDecimalSize",
        "formatReadableQuantity",
        "formatReadableSize",
        "formatReadableTimeDelta",
        "getSetting",
        "getSubcolumn",
        "identity",
        "ignore",
        "initializeAggregation",
        "isConstant",
        "isDecimalOverflow",
        "materialize",
        "neighbor",
        "normalizeQuery",
        "normalizedQueryHash",
        "parseReadableSize",
        "parseTimeDelta",
        "queryID",
        "revision",
        "rowNumberInAllBlocks",
        "rowNumberInBlock",
        "runningAccumulate",
        "runningDifference",
        "throwIf",
        "toColumnTypeName",
        "toTypeName",
        "transform",
        "uptime",
        "variantElement",
        "variantType",
        "version",
        "visibleWidth",
        # Made by the parser and in no list of functions.
        "exists",
        "lambda",
        "untuple",
        "grouping",
    }
)
# In an allowed category and still not wanted: they wait, or read what an administrator configured.
REFUSED_FUNCTIONS = frozenset({"file", "lemmatize", "synonyms", "sleep", "sleepEachRow", "fuzzQuery"})

ALLOWED_SYSTEM_TABLES = frozenset(
    {
        "aggregate_function_combinators",
        "collations",
        "columns",
        "contributors",
        "data_skipping_index_types",
        "data_skipping_indices",
        "data_type_families",
        "databases",
        "dictionaries",
        "documentation",
        "formats",
        "functions",
        "keywords",
        "licenses",
        "merge_tree_settings",
        "numbers",
        "numbers_mt",
        "one",
        "parts",
        "settings",
        "table_engines",
        "table_functions",
        "tables",
        "time_zones",
        "zeros",
        "zeros_mt",
    }
)
CATALOGUE_DATABASES = frozenset({"system", "information_schema"})

_PLAIN_TABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_$ \-]*$")
_IN_FUNCTIONS = re.compile(r"^(global)?(not)?(null)?in(ignoreset)?$", re.IGNORECASE)
_NAME = r"(?:[A-Za-z_][A-Za-z0-9_]*|`(?:[^`\\])+`)"
_CATALOGUE_QUESTION = re.compile(
    rf"^(?:DESCRIBE TABLE|EXISTS TABLE|EXISTS VIEW|EXISTS DATABASE|SHOW CREATE TABLE|SHOW CREATE VIEW)"
    rf" (?P<name>{_NAME}(?:\.{_NAME})?)(?: FORMAT (?P<format>[A-Za-z0-9]+))?$"
)
_ABOUT_SCOPE = re.compile(r":? In scope SELECT parseQueryToJSON.*$", re.DOTALL)
_NO_JSON_FORM = "does not support JSON serialization"


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

    def check(self, sql: str, *, database: str = DEFAULT_DATABASE) -> Approved:
        """The statement, approved to run with `database` as the current one; raises Refused."""
        self._check_database(database)
        text = sql.strip()
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
        return self._approved(text, tree)

    def _parsed(self, text: str) -> dict[str, Any] | None:
        try:
            answer = self._parse_function("parseQueryToJSON", text)
        except EngineError as error:
            if _NO_JSON_FORM in error.message:
                return None
            message = _ABOUT_SCOPE.sub("", error.message)
            raise Refused(message, code=error.code, name=error.name) from error
        tree: dict[str, Any] = orjson.loads(answer)
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

    def _approved(self, text: str, tree: dict[str, Any]) -> Approved:
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
            raise Refused(f"Table {table!r}: not a plain table name; files and addresses cannot be read")
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

    def _is_computing(self, name: str) -> bool:
        exact, any_case, aggregates, suffixes = self._known_functions
        if name in exact or name.lower() in any_case:
            return True
        # Combinators: sumIf, quantilesTDigestOrNullIf, ...
        base, is_shorter = name, True
        while is_shorter:
            is_shorter = False
            for suffix in suffixes:
                if base.endswith(suffix) and len(base) > len(suffix):
                    base, is_shorter = base.removesuffix(suffix), True
                    if base in aggregates or base.lower() in any_case & aggregates:
                        return True
                    break
        return False

    @cached_property
    def _known_functions(self) -> tuple[set[str], set[str], set[str], list[str]]:
        rows = self._engine.query(
            "SELECT name, alias_to, is_aggregate, case_insensitive, categories, toString(origin) AS origin"
            " FROM system.functions"
        )
        by_name = {row["name"]: row for row in rows if row["origin"] == "System"}
        exact, any_case, aggregates = set[str](), set[str](), set[str]()
        for name, row in by_name.items():
            target = by_name.get(row["alias_to"] or name)
            if target is None or target["name"] in REFUSED_FUNCTIONS:
                continue
            is_aggregate = bool(target["is_aggregate"])
            is_listed = target["name"] in ALLOWED_FUNCTIONS
            if is_aggregate or is_listed or target["categories"] in ALLOWED_FUNCTION_CATEGORIES:
                exact.add(name)
                if row["case_insensitive"]:
                    any_case.add(name.lower())
                if is_aggregate:
                    aggregates |= {name, name.lower()} if row["case_insensitive"] else {name}
        found = self._engine.query("SELECT name FROM system.aggregate_function_combinators")
        suffixes = sorted((row["name"] for row in found), key=len, reverse=True)
        return exact, any_case, aggregates, suffixes


class _Walk:
    """One pass over a parsed statement; every node passes through `judge`."""

    def __init__(self, guard: Guard, database: str):
        self._guard = guard
        self._database = database

    def judge(self, node: Mapping[str, Any]) -> None:
        kind = node["type"]
        if kind not in ALLOWED_NODES:
            raise Refused(f"{kind} is not open to readers: only SELECT, SHOW, DESCRIBE, EXISTS, EXPLAIN")
        for key in WRITING_KEYS:
            if node.get(key):
                raise Refused("INTO OUTFILE is not open to readers: read the answer of the request")
        self._judge_kind(kind, node)
        for child in _children(node):
            self.judge(child)

    def _judge_kind(self, kind: str, node: Mapping[str, Any]) -> None:
        match kind:
            case "Function":
                self._judge_function(node)
            case "ColumnsApplyTransformer":
                if node.get("func_name"):
                    self._guard.check_function(str(node["func_name"]))
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

    def _judge_show_tables(self, node: Mapping[str, Any]) -> None:
        for key in ("caches", "fscaches", "filesystem_caches", "clusters", "cluster"):
            if node.get(key):
                raise Refused("SHOW CLUSTERS and SHOW CACHES are not open to readers")

    def _parts(self, node: Mapping[str, Any]) -> list[str]:
        parts = [str(part) for part in node.get("name_parts") or [node["name"]]]
        if not all(parts):
            raise Refused("A table cannot be a {parameter:Identifier}: write its name in the query")
        return parts


def _children(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every node below, wherever the tree keeps it."""
    for value in node.values():
        found = value if isinstance(value, list) else [value]
        for item in found:
            if isinstance(item, dict):
                if "type" in item:
                    yield item
                else:
                    yield from _children(item)


def _take_settings(node: dict[str, Any], found: dict[str, object]) -> None:
    """Moves the settings of all SETTINGS clauses out of the tree, the outermost winning."""
    for key in ("settings", "settings_ast"):
        clause = node.get(key)
        if isinstance(clause, dict) and clause.get("type") == "SetQuery":
            for change in clause.get("changes") or []:
                found.setdefault(str(change["name"]), change["value"].get("value"))
            del node[key]
    for child in _children(node):
        if isinstance(child, dict):
            _take_settings(child, found)


def _read_only(statement: str) -> Refused:
    kind = statement.removesuffix("Query")
    return Refused(
        f"Cannot execute query in readonly mode: {kind}. This port only reads: SELECT, SHOW TABLES, "
        "SHOW COLUMNS, SHOW CREATE TABLE, DESCRIBE, EXISTS, EXPLAIN",
        code=164,
        name="READONLY",
    )


__all__ = ["Approved", "Guard", "Refused", "text_params"]
