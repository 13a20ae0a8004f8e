"""What the guard of the read-only ClickHouse port lets through and what it refuses.

Each refused line is an attack that was tried; each allowed one also runs, so that the guard cannot
pass a text that the engine then reads in another way. It needs chDB and opens one folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tidemill.agents.clickhouse.engine import Engine, EngineError, open_engine
from tidemill.agents.clickhouse.guard import Guard, Refused
from tidemill.agents.clickhouse.guard_lists import (
    ALLOWED_FUNCTION_CATEGORIES,
    ALLOWED_FUNCTIONS,
    ALLOWED_SYSTEM_TABLES,
    ALLOWED_TABLE_FUNCTIONS,
)

pytest.importorskip("chdb")

JOBS = (
    "CREATE TABLE jobs (a UInt64, tags Array(String), user_id String, at DateTime64(3))"
    " ENGINE = MergeTree ORDER BY a"
)
REVIEWED_CATEGORIES_LEFT_OUT = frozenset(
    {"AI", "Dictionary", "Embedded Dictionary", "Internal", "Introspection", "Machine Learning"}
    | {"Other", ""}
)

ALLOWED = [
    "select 1",
    "SELECT version(), timezone()",
    "SELECT name, value, readonly as readonly FROM system.settings LIMIT 10000",
    (
        "select count(), sum(a), uniqExact(user_id), quantilesTDigest(0.5,0.95,0.99)(a), "
        "quantileTDigestIf(0.5)(a, a>1), sumOrNullIf(a,a>1), argMaxIf(a,at,1) from jobs "
        "where user_id in ('a','b') and a between 1 and 2 and not (a is null)"
    ),
    (
        "with x as (select a, row_number() over (partition by user_id order by at desc) rn "
        "from default.jobs) select * except(rn), a as b from x where rn=1 order by a desc "
        "limit 1 by a limit 10 offset 1 format JSON"
    ),
    (
        "select toStartOfInterval(at, interval 1 minute) t, countIf(a=1)/count() r from "
        "jobs group by t order by t with fill step 60"
    ),
    "select * from jobs array join tags as tag",
    "select * apply(toString), columns('a') apply(x->x) from jobs",
    "select * from jobs settings max_threads=2, max_execution_time=3",
    "select * from (select * from jobs settings max_threads=3) format Native",
    "show tables",
    "show tables from default like 'j%'",
    "show databases",
    "show columns from jobs",
    "describe table jobs",
    'DESC TABLE "default"."jobs"',
    "exists default.jobs",
    "show create table jobs",
    "explain select * from jobs",
    "explain indexes=1 select * from jobs",
    "explain syntax select 1",
    "explain pipeline select 1",
    "select name from system.databases",
    "select * from information_schema.tables",
    "select * from INFORMATION_SCHEMA.COLUMNS limit 1",
    "select number from numbers(10) union all select 1 intersect select 2",
    "select * from generate_series(1,10)",
    "-- a comment\nselect /* x */ 1 -- end",
    "select 1;",
    "select rollup.user_id, count() from jobs rollup group by user_id with totals",
    "select user_id, count() from jobs group by rollup(user_id)",
    "select grouping(user_id), user_id from jobs group by cube(user_id)",
    (
        "select a, lagInFrame(a) over w, first_value(a) over w, rank() over w from jobs "
        "window w as (order by a rows between unbounded preceding and current row)"
    ),
    "select version(), revision(), timezone()",
    "select currentDatabase(), currentUser(), user()",
    "select has(tags, 'x'), 'x' in tags from jobs",
    "select 1 as a, a+1 where a in (1)",
    "select t.a in t.tags from (select 1 as a, [1] as tags) as t",
    (
        "select count() from jobs as j left join (select user_id, max(a) m from jobs group "
        "by user_id) k using (user_id) asof join jobs l on l.user_id=j.user_id and l.a<=j.a"
    ),
    "select * from view(select 1)",
    "select 1 qualify row_number() over () = 1",
    "select SUM(a), Count(*), MAX(a), IF(1,2,3), Lower('A') from jobs",
    "from jobs select a",
    (
        "select sumMap(map('a',1)), groupArraySorted(3)(a), topK(3)(user_id), "
        "uniqCombined64(a), any(a), anyLast(a), quantileExactWeighted(0.5)(a,1), "
        "histogram(5)(a), sumState(a) from jobs"
    ),
    "select generateUUIDv4(), rand(), cityHash64('a'), hex(MD5('a'))",
    (
        "select toDateTime('2020-01-01 00:00:00','UTC'), fromUnixTimestamp64Milli(1), "
        "toUnixTimestamp(now()), formatDateTime(now(),'%Y'), today(), yesterday()"
    ),
    "(select 1) union distinct (select 2)",
    "select 1, 'a;b', \"a\" from (select 1 as a)",
    "select * from (values (1,2),(3,4))",
    "with 1 as x select x",
    "with recursive r as (select 1 as n union all select n+1 from r where n<5) select * from r",
    "select * replace(a+1 as a) from jobs order by all",
    (
        "select case when a = 1 then 'x' else 'y' end, a::String, cast(a as "
        "Nullable(String)), [1, 2][1], (1, 2).1, exists(select 1), a in (select a from "
        "jobs), arrayMap(x -> x + 1, [1]) from jobs"
    ),
]

REFUSED = [
    "select 1; drop table jobs",
    "select 1; select 2",
    "drop table jobs",
    "/* select */ insert into jobs select 1",
    "insert into function file('/tmp/x','CSV','a Int') select 1",
    "create table x (a Int) engine=Memory",
    "create view v as select 1",
    "alter table jobs delete where 1",
    "truncate table jobs",
    "system flush logs",
    "kill query where 1",
    "set max_threads=1",
    "use system",
    "attach table x",
    "detach table jobs",
    "optimize table jobs",
    "rename table jobs to x",
    "grant select on x to y",
    "backup table jobs to Disk('x','y')",
    "check table jobs",
    "delete from jobs where 1",
    "update jobs set a=1 where 1",
    "select 1 into outfile '/tmp/x.csv'",
    "select 1 into outfile '/tmp/x' truncate format CSV",
    "explain select 1 into outfile '/tmp/x'",
    "explain ast select 1 into outfile '/tmp/x'",
    "(select 1 union all select 2) into outfile '/tmp/x'",
    "show tables into outfile '/tmp/x'",
    "show columns from jobs into outfile '/tmp/x'",
    "describe jobs into outfile '/tmp/x'",
    "exists jobs into outfile '/tmp/x'",
    "show create table jobs into outfile '/tmp/x'",
    "select * from file('/etc/passwd','LineAsString')",
    "select * from \"file\"('/etc/passwd','LineAsString')",
    "select * from `file`('/etc/passwd','LineAsString')",
    "select * from FILE('/etc/passwd','LineAsString')",
    "select * from file/**/('/etc/passwd','LineAsString')",
    "select file('/etc/passwd')",
    "select `file`('/etc/passwd')",
    "select * apply(file) from (select '/etc/passwd')",
    "select columns('.*') apply file from (select '/etc/passwd')",
    "select * apply(x->file(x)) from (select '/etc/passwd')",
    "select * replace(file('/etc/passwd') as a) from jobs",
    "select arrayMap(x->file(x), ['/etc/passwd'])",
    "select arrayMap(file, ['/etc/passwd'])",
    "with file('/etc/passwd') as f select f",
    "with f as (select * from file('/etc/passwd')) select * from f",
    "with (x -> file(x)) as f select f('/etc/passwd')",
    "select 1 in file('/etc/passwd','LineAsString')",
    "select 1 in (select * from file('/etc/passwd','LineAsString'))",
    "select 1 not in url('http://x','CSV','a String')",
    "describe file('/etc/passwd','LineAsString')",
    "describe table file('/etc/passwd')",
    "desc (select * from file('/etc/passwd'))",
    "desc `/etc/passwd`",
    "desc default.`/etc/passwd`",
    "explain select * from file('/etc/passwd')",
    "explain query tree select file('/etc/passwd')",
    "explain table override mysql('a:1','b','c','d','e') partition by x",
    "explain current transaction",
    "select * from `/etc/passwd`",
    "select * from '/etc/passwd'",
    "select * from default.`/etc/passwd`",
    'select * from "http://127.0.0.1/x.csv"',
    "select * from url('http://127.0.0.1:1','CSV','a String')",
    "select * from view(select * from url('http://127.0.0.1:1','CSV','a String'))",
    "select * from viewExplain('EXPLAIN','',(select * from file('x')))",
    "select * from remote('127.0.0.1', system.one)",
    "select * from remoteSecure('127.0.0.1', system.one)",
    "select * from cluster('default', system.one)",
    "select * from s3('http://x','CSV')",
    "select * from mysql('h:1','d','t','u','p')",
    "select * from postgresql('h:1','d','t','u','p')",
    "select * from sqlite('/tmp/x','t')",
    "select * from executable('id','CSV','a String')",
    "select * from Python(x)",
    "select * from python('x')",
    "select * from input('a Int')",
    "select * from merge('system','.*')",
    "select * from merge('default','.*')",
    "select * from dictionary('x')",
    "select * from loop(jobs)",
    "select * from hdfs('x')",
    "select * from filesystem('/etc')",
    "select * from arrowstream('x')",
    "select * from deltaLakeLocal('/etc')",
    "select * from icebergLocal('/etc')",
    "select * from mergeTreeIndex('default','jobs')",
    "select * from fuzzJSON('x')",
    "select * from eval('select 1')",
    "select dictGet('x','a',1)",
    "select joinGet('x','a',1)",
    "select hostName()",
    "select displayName()",
    "select displayname()",
    "select arrayMap(displayName, [1])",
    "select uptime()",
    "select serverUUID()",
    "select tcpPort()",
    "select connectionId()",
    "select hasColumnInTable('127.0.0.1', 'default', 'jobs', 'a')",
    "select * from system.build_options",
    "select * from system.server_settings",
    "select * from system.disks",
    "select * from system.processes",
    "select * from system.clusters",
    "select * from system.macros",
    "select * from system.asynchronous_metrics",
    "select * from system.user_directories",
    "select FQDN()",
    "select hostname()",
    "select sleep(3)",
    "select sleepEachRow(1) from numbers(100)",
    "select getServerSetting('path')",
    "select getMacro('x')",
    "select getOSKernelVersion()",
    "select filesystemAvailable()",
    "select addressToLine(1)",
    "select demangle('x')",
    "select logTrace('x')",
    "select showCertificate()",
    "select aiGenerate('x','y')",
    "select catboostEvaluate('/etc/passwd',1)",
    "select getClientHTTPHeader('x')",
    "select generateSerialID('x')",
    "select * from system.users",
    "select * from system.server_settings",
    "select * from system.processes",
    "select * from system.stack_trace",
    "select * from system.asynchronous_metrics",
    "select * from system.disks",
    "select * from `system`.`macros`",
    "select * from SYSTEM.users",
    "select * from system.`user_directories`",
    "select 1 in system.users",
    "select 'a' in (select name from system.users)",
    "select * from jobs join system.users on 1=1",
    "select * from {t:Identifier}",
    "select * from default.{t:Identifier}",
    "select * from {d:Identifier}.users",
    "select 1 in {t:Identifier}",
    "describe {t:Identifier}",
    "describe system.users",
    "show create table system.users",
    "show columns from users from system",
    "show processlist",
    "show grants",
    "show users",
    "show access",
    "show clusters",
    "show filesystem caches",
    "show settings profiles",
    "select * from other.t",
    "select * from a.b.c",
    "select * from numbers(1) where 1 in (select * from view(select * from file('x')))",
    "select quantile(0.5)(a) over (partition by file('x')) from jobs",
    "select a from jobs order by a with fill from file('x')",
    "select a from jobs limit file('x')",
    "select a from jobs array join file('x') as y",
    "select a from jobs window w as (order by file('x'))",
    "select a from jobs left join file('x') f on 1",
    "select a from jobs j join jobs k on file('x')=''",
    "select a from jobs prewhere file('x')=''",
    "select a from jobs qualify file('x')=''",
    "select a from jobs group by file('x')",
    "select a from jobs sample file('x')",
    "select a from jobs having file('x')=''",
    "select initializeAggregation('sum', file('x'))",
    "select a from jobs order by a with fill interpolate (a as file('x'))",
    "select 1 parallel with drop table jobs",
    "1+1",
    "exit",
    "copy jobs to '/tmp/x'",
    "call x()",
    "execute as x select 1",
    "begin transaction",
    "commit",
    "move user a to b",
    "create function f as (x)->x",
    "drop function f",
    "create dictionary d (a Int) primary key a source(file(path '/etc/passwd'))",
    "export table x",
    "undrop table jobs",
    "watch x",
    "prql from x",
    "select arrayMap(`file`, ['/etc/passwd'])",
    "with file as f select arrayMap(f, ['/etc/passwd'])",
    "select arrayMap(f, ['/etc/passwd']), file as f",
    "select arrayMap({f:Identifier}, ['/etc/passwd'])",
    "select arrayMap(File, ['/etc/passwd'])",
    "select {f:Identifier} from jobs",
    "select arrayMap(getServerSetting, ['path'])",
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = open_engine(f"chdb://{tmp_path_factory.mktemp('guard')}")
    opened.command(JOBS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def guard(engine: Engine) -> Guard:
    return Guard(engine)


@pytest.mark.parametrize("sql", ALLOWED)
def test_reading_is_allowed_and_runs(guard: Guard, engine: Engine, sql: str) -> None:
    approved = guard.check(sql)
    engine.run(approved.sql, "TSV", settings={"readonly": 1})


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_else_is_refused(guard: Guard, sql: str) -> None:
    with pytest.raises(Refused) as caught:
        guard.check(sql)
    assert caught.value.message


@pytest.mark.parametrize(
    "wrapping",
    [
        "{}",
        "/* a */ {} -- b",
        "  {} ;",
        "EXPLAIN {}",
        "SELECT * FROM ({})",
        "WITH x AS ({}) SELECT 1",
        "SELECT 1 WHERE 1 IN ({})",
        "SELECT 1 UNION ALL {}",
        "SELECT ({})",
        "SELECT * FROM view({})",
        "SELECT * FROM (SELECT 1) AS l LEFT JOIN ({}) AS r ON 1 = 1",
        "({}) INTERSECT SELECT 1",
        "SELECT arrayMap(x -> ({}), [1])",
        "SELECT 1 ORDER BY ({})",
        "SELECT 1 LIMIT ({})",
    ],
)
@pytest.mark.parametrize(
    "reading",
    [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT file('/etc/passwd')",
        "SELECT * FROM `system`.`users`",
        "SELECT * FROM `/etc/passwd`",
        "SELECT arrayMap(file, ['/etc/passwd'])",
    ],
)
def test_no_wrapping_hides_a_file(
    guard: Guard, engine: Engine, wrapping: str, reading: str
) -> None:
    with pytest.raises(Refused):
        guard.check(wrapping.format(reading))


def test_every_table_function_is_refused_unless_listed(guard: Guard, engine: Engine) -> None:
    names = {str(row["name"]) for row in engine.query("SELECT name FROM system.table_functions")}
    harmless = ALLOWED_TABLE_FUNCTIONS | {
        "format"
    }  # also a scalar; as a table it reads its argument
    for name in names:
        if name.lower() in harmless:
            continue
        for text in (f"SELECT * FROM `{name}`('x')", f"SELECT 1 IN `{name}`('x')"):
            with pytest.raises(Refused):
                guard.check(text)


def test_every_system_table_is_refused_unless_listed(guard: Guard, engine: Engine) -> None:
    rows = engine.query("SELECT name FROM system.tables WHERE database = 'system'")
    for name in {str(row["name"]) for row in rows} - ALLOWED_SYSTEM_TABLES:
        with pytest.raises(Refused):
            guard.check(f"SELECT * FROM system.`{name}`")


def test_every_function_outside_the_lists_is_refused(guard: Guard, engine: Engine) -> None:
    rows = engine.query(
        "SELECT name FROM system.functions WHERE NOT is_aggregate AND alias_to = ''"
        " AND categories IN {left_out:Array(String)}",
        {"left_out": sorted(REVIEWED_CATEGORIES_LEFT_OUT)},
    )
    for name in {str(row["name"]) for row in rows} - ALLOWED_FUNCTIONS:
        for text in (f"SELECT `{name}`('x')", f"SELECT arrayMap(`{name}`, ['x'])"):
            with pytest.raises(Refused):
                guard.check(text)


def test_no_category_of_functions_is_unreviewed(engine: Engine) -> None:
    rows = engine.query("SELECT DISTINCT categories AS name FROM system.functions")
    names = {str(row["name"]) for row in rows}
    assert names <= ALLOWED_FUNCTION_CATEGORIES | REVIEWED_CATEGORIES_LEFT_OUT


def test_settings_are_taken_out_of_the_text(guard: Guard) -> None:
    approved = guard.check("SELECT * FROM (SELECT 1 SETTINGS max_threads = 3) SETTINGS limit = 5")
    assert approved.settings == {"limit": 5, "max_threads": 3}
    assert "SETTINGS" not in approved.sql


def test_the_format_is_told(guard: Guard) -> None:
    assert guard.check("SELECT 1 FORMAT JSONEachRow").fmt == "JSONEachRow"
    assert guard.check("DESCRIBE TABLE jobs FORMAT CSV").fmt == "CSV"
    assert guard.check("SELECT 1").fmt is None


def test_a_database_is_a_context_too(guard: Guard) -> None:
    guard.check("SELECT * FROM settings", database="system")
    for sql, database in [("SELECT * FROM users", "system"), ("SELECT 1", "other")]:
        with pytest.raises(Refused):
            guard.check(sql, database=database)


def test_a_very_long_text_is_refused(guard: Guard) -> None:
    with pytest.raises(Refused, match="longer than"):
        guard.check("SELECT 1 -- " + "x" * 300_000)


def test_a_deep_text_is_refused_not_followed(guard: Guard) -> None:
    with pytest.raises(EngineError):
        guard.check("SELECT " + "(" * 50_000 + "1" + ")" * 50_000)
