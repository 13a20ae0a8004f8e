"""The allow-lists of the read-only port: statements, nodes of a statement, functions, tables.

Owns names only; `guard` gives them their meaning. A name that is in none of these lists is refused,
so that a new version of ClickHouse opens nothing by itself.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED_STATEMENTS = _names(
    """
    ExplainQuery SelectWithUnionQuery ShowColumnsQuery ShowTablesQuery
    """
)
# Kinds of nodes that ClickHouse's parser makes of such statements.
ALLOWED_NODES = ALLOWED_STATEMENTS | _names(
    """
    ArrayJoin Asterisk ColumnsApplyTransformer ColumnsExceptTransformer ColumnsListMatcher
    ColumnsRegexpMatcher ColumnsReplaceTransformer ColumnsReplaceTransformerReplacement
    ColumnsTransformerList ExpressionList Function Identifier InterpolateElement Literal
    OrderByElement QualifiedAsterisk QualifiedColumnsListMatcher
    QualifiedColumnsRegexpMatcher QueryParameter SampleRatio SelectIntersectExceptQuery
    SelectQuery SetQuery Subquery TableExpression TableIdentifier TableJoin
    TablesInSelectQuery TablesInSelectQueryElement WindowDefinition WindowListElement
    WithElement
    """
)
ALLOWED_EXPLAINS = frozenset(
    {
        "EXPLAIN",
        "EXPLAIN AST",
        "EXPLAIN ESTIMATE",
        "EXPLAIN PIPELINE",
        "EXPLAIN QUERY TREE",
        "EXPLAIN SYNTAX",
    }
)
# Table functions that make rows out of their arguments alone, in lower case.
ALLOWED_TABLE_FUNCTIONS = _names(
    """
    generate_series generateseries null numbers numbers_mt sqlstandardvalues values view
    zeros zeros_mt
    """
)
# Scalar functions are allowed by the engine's own category, aggregates all. Left out as a whole: AI
# (network), Machine Learning and dictionaries (models and sources of the host), Introspection,
# Internal, Other.
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
# Out of Internal and Other: what queries and clients use and what tells nothing of the host. The
# last four are made by the parser and are in no list of functions.
ALLOWED_FUNCTIONS = _names(
    """
    _CAST bar buildId byteSize caseWithExpression countDigits currentDatabase currentSchemas
    currentUser defaultValueOfArgumentType defaultValueOfTypeName
    finalizeAggregation format formatQuery formatQuerySingleLine formatReadableDecimalSize
    formatReadableQuantity formatReadableSize formatReadableTimeDelta getSetting
    getSubcolumn identity ignore initializeAggregation isConstant isDecimalOverflow
    materialize neighbor normalizedQueryHash normalizeQuery parseReadableSize parseTimeDelta
    queryID revision rowNumberInAllBlocks rowNumberInBlock runningAccumulate
    runningDifference throwIf toColumnTypeName toTypeName transform variantElement
    variantType version visibleWidth
    exists grouping lambda untuple
    """
)
# In an allowed category and still not wanted: they wait, or read what an administrator set up.
REFUSED_FUNCTIONS = _names(
    """
    file fuzzQuery lemmatize sleep sleepEachRow synonyms
    """
)
# Catalogues that tell of schema and engine, not of the host or of other readers.
ALLOWED_SYSTEM_TABLES = _names(
    """
    aggregate_function_combinators collations columns contributors data_skipping_index_types
    data_skipping_indices data_type_families databases detached_parts dictionaries documentation
    formats
    functions keywords licenses merge_tree_settings numbers numbers_mt one parts settings
    table_engines table_functions tables time_zones zeros zeros_mt
    """
)
CATALOGUE_DATABASES = frozenset({"system", "information_schema"})
