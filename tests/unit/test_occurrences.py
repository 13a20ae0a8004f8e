"""When schedules are due: moved clocks, intervals, ranges and catch-up, also by brute force."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from tests.occurrences import oracle, whole
from tidemill.agents import zones
from tidemill.streams.occurrences.cron import WORDS, BadPattern, Cron
from tidemill.streams.occurrences.due import CATCH_UP_MAX, due, jitter_ms, occurrence_id
from tidemill.streams.occurrences.plan import (
    COUNT_MAX,
    ByCron,
    Count,
    Every,
    Fold,
    Gap,
    Plan,
    between,
    count,
    latest,
    next_after,
)
from tidemill.streams.occurrences.zone import Zone

BERLIN = zones.zone("Europe/Berlin")
SAMOA = zones.zone("Pacific/Apia")  # 30 December 2011 did not exist there
# The short form: changes by an hour and by half of one, at night and at midnight, south and north,
# rules that change with the moon, no change at all, an odd offset.
ZONES = (
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca",
    "America/Santiago", "Asia/Gaza", "Asia/Kathmandu", "Africa/Cairo", "America/Havana",
    "Antarctica/Troll",
)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


def texts(instants: list[int] | tuple[int, ...]) -> list[str]:
    return [datetime.fromtimestamp(each / 1_000, UTC).strftime("%d %H:%M:%S") for each in instants]


def by(pattern: str, zone: Zone = BERLIN, gap: Gap = "next", fold: Fold = "first") -> Plan:
    return Plan(ByCron(Cron(pattern), zone, gap, fold))


# --- against brute force --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZONES)
def test_each_minute_around_a_change_is_as_brute_force_says(name: str) -> None:
    begin = whole.BEGIN
    spans = oracle.windows(name, begin, begin + 366 * oracle.DAY, oracle.DAY // 2)
    spans.append((whole.WEEK, whole.WEEK + oracle.DAY))
    found = list(whole.differences(name, spans))
    assert [said for said, _ in found if said] == []
    assert sum(number for _, number in found) > 1_000


@pytest.mark.parametrize("name", ["Europe/Berlin", "Australia/Lord_Howe"])
def test_each_second_around_a_change_is_as_brute_force_says(name: str) -> None:
    patterns = ("* * * * * *", "*/20 30 * * * *", "59 59 1 * * *", "15 30 2 * * *", "1 0 2,3 * * *")
    spans = [
        (each - 2 * oracle.HOUR, each + oracle.HOUR)
        for each in oracle.changes(name, whole.BEGIN, whole.BEGIN + 366 * oracle.DAY)
    ]
    found = list(whole.differences(name, spans, patterns, step=1))
    assert [said for said, _ in found if said] == []
    assert sum(number for _, number in found) > 1_000


def test_the_oracle_finds_a_plan_that_is_wrong() -> None:
    seen = oracle.window("Europe/Berlin", ms("2026-10-24") // 1_000, ms("2026-10-26") // 1_000)
    pattern = oracle.Pattern("30 2 * * *")
    found = {fold: oracle.due(pattern, seen, "next", fold) for fold in ("first", "second", "both")}
    assert len({tuple(each) for each in found.values()}) == 3


def test_tables_of_zones_are_what_zone_files_say() -> None:
    rng = random.Random(5)
    for name in rng.sample(oracle.zone_files(), 25):
        table, known = zones.zone(name), oracle.info(name)
        begin = int(datetime(1970, 1, 2, tzinfo=UTC).timestamp())
        places = [rng.randrange(begin, table.until) for _ in range(100)]
        places += [each + nudge for each in table.changes for nudge in (-1, 0, 1)]
        for instant in places:
            offset = datetime.fromtimestamp(instant, known).utcoffset()
            assert offset is not None
            assert table.local(instant) - instant == offset.total_seconds(), (name, instant)


# --- the rules, in words --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "expected"),
    [("next", ["28 01:30:00", "29 01:00:00", "30 00:30:00"]),
     ("skip", ["28 01:30:00", "30 00:30:00"])],
)
def test_a_local_time_that_does_not_exist(gap: Gap, expected: list[str]) -> None:
    plan = by("30 2 * * *", gap=gap)
    assert texts(between(plan, ms("2026-03-28"), ms("2026-03-31"), at_most=9)) == expected


@pytest.mark.parametrize(
    ("fold", "expected"),
    [("first", ["25 00:30:00"]), ("second", ["25 01:30:00"]),
     ("both", ["25 00:30:00", "25 01:30:00"])],
)
def test_a_local_time_that_comes_twice(fold: Fold, expected: list[str]) -> None:
    plan = by("30 2 * * *", fold=fold)
    assert texts(between(plan, ms("2026-10-25"), ms("2026-10-26"), at_most=9)) == expected


def test_many_local_times_in_a_gap_are_due_once_and_not_beside_the_time_after_it() -> None:
    plan = by("*/10 2,3 * * *")
    found = texts(between(plan, ms("2026-03-29"), ms("2026-03-29T02:00"), at_most=99))
    assert found == [f"29 01:{minute}0:00" for minute in range(6)]


def test_a_day_that_does_not_exist_is_due_when_the_next_one_begins() -> None:
    plan = by("0 9 * * *", SAMOA)
    found = texts(between(plan, ms("2011-12-28T20:00"), ms("2012-01-01"), at_most=9))
    # 09:00 of the 29th, midnight in place of 09:00 of the 30th, 09:00 of the 31st.
    assert found == ["29 19:00:00", "30 10:00:00", "30 19:00:00", "31 19:00:00"]


@pytest.mark.parametrize("fold", ["first", "second", "both"])
@pytest.mark.parametrize("gap", ["next", "skip"])
def test_step_by_step_and_in_one_go_are_the_same(gap: Gap, fold: Fold) -> None:
    for pattern in ("*/7 1-3 * * *", "0 0 * * *", "30 2 * * SUN"):
        plan = by(pattern, gap=gap, fold=fold)
        after, until = ms("2026-03-20"), ms("2026-11-05")
        whole_range = between(plan, after, until, at_most=99_999)
        assert whole_range == sorted(set(whole_range))
        rng = random.Random(3)
        for _ in range(50):
            begin = rng.randrange(after, until)
            expected = next((each for each in whole_range if each > begin), None)
            if expected is not None:
                assert next_after(plan, begin) == expected


def test_an_answer_ends_where_knowledge_of_the_zone_does() -> None:
    assert next_after(by("0 9 * * *"), ms("2099-12-31T12:00")) is None


# --- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", sorted(WORDS))
def test_words_are_the_patterns_that_they_stand_for(word: str) -> None:
    after = ms("2026-05-05T05:05")
    assert next_after(by(word), after) == next_after(by(WORDS[word]), after)
    assert next_after(by(f" {word.upper()} "), after) == next_after(by(word), after)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "0 fields"), ("* * * *", "4 fields"), ("* * * * * * *", "7 fields"),
        ("61 * * * *", "bad minute"), ("* 24 * * *", "bad hour"), ("* * 0 * *", "bad day-of-month"),
        ("* * * 13 *", "bad month"), ("* * * * 8", "bad day-of-week"), ("@never", "known are @ann"),
        ("@reboot", "known are"), ("*/0 * * * *", "bad minute"), ("5-1 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"), ("0 0 31 2,4,6,9,11 *", "bad day-of-month"),
        ("a b c d e", "bad"), ("٣ * * * *", "ASCII"), ("1," * 200 + "1 * * * *", "200 characters"),
        ("0 0 L-3 * *", "bad"), ("60 * * * * *", "bad second"), ("-5 * * * *", "bad minute"),
    ],
)
def test_what_is_no_pattern_is_said_with_the_way_out(pattern: str, words: str) -> None:
    with pytest.raises(BadPattern) as caught:
        Cron(pattern)
    assert words in str(caught.value)
    assert "cron" in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "after", "expected"),
    [
        ("0 9 * * MON-FRI", "2026-11-27T12:00", "2026-11-30T09:00"),  # Friday -> Monday
        ("0 0 1,15 * MON", "2026-11-02T12:00", "2026-11-09T00:00"),  # either
        ("0 0 L * *", "2028-02-01", "2028-02-29"), ("0 0 29 2 *", "2026-01-01", "2028-02-29"),
        ("0 0 29 2 *", "2096-03-01", "2104-02-29"),
        ("*/15 * * * * *", "2026-01-01", "2026-01-01T00:00:15"),
        ("0 0 * * 5L", "2026-11-01", "2026-11-27"), ("0 0 * * MON#2", "2026-11-01", "2026-11-09"),
        ("0 0 * * 7", "2026-11-28T01:00", "2026-11-29"),
        ("0 0 * * 0", "2026-11-28T01:00", "2026-11-29"),
        ("59 23 31 12 *", "2026-12-31T23:58:59", "2026-12-31T23:59"),
    ],
)
def test_fields_mean_what_crons_mean(pattern: str, after: str, expected: str) -> None:
    plan = Plan(ByCron(Cron(pattern)))  # UTC
    assert next_after(plan, ms(after)) == ms(expected)
    assert next_after(plan, ms(expected) - 1) == ms(expected)
    assert next_after(plan, ms(expected)) != ms(expected)


@pytest.mark.parametrize("name", ["", "Berlin", "europe/berlin", "../etc/passwd", "Europe"])
def test_what_is_no_zone_is_said(name: str) -> None:
    with pytest.raises(zones.UnknownZone, match=r"is no time zone .* write "):
        zones.zone(name)


# --- intervals, ranges, counts --------------------------------------------------------------------


def test_an_interval_counts_from_its_anchor() -> None:
    plan = Plan(Every(60_000, anchor_ms=ms("2026-01-01T00:00:30")))
    assert next_after(plan, ms("2025-01-01")) == ms("2026-01-01T00:01:30")
    assert next_after(plan, ms("2026-01-01T00:01:29")) == ms("2026-01-01T00:01:30")
    assert next_after(plan, ms("2026-01-01T00:01:30")) == ms("2026-01-01T00:02:30")
    assert next_after(plan, ms("2030-01-01")) == ms("2030-01-01T00:00:30")
    with pytest.raises(ValueError, match="less than 1000 ms"):
        Every(999, 0)


@pytest.mark.parametrize("rule", [Every(3_600_000, ms("2026-01-01")), ByCron(Cron("@hourly"))])
def test_a_first_run_is_once_more_or_the_same(rule: Every | ByCron) -> None:
    begin = ms("2026-01-01")
    own = between(Plan(rule), begin, begin + 10_800_000, at_most=9)
    assert len(own) == 3
    odd = begin + 5_000
    assert between(Plan(rule, odd), begin, begin + 10_800_000, at_most=9) == [odd, *own]
    assert between(Plan(rule, own[1]), begin, begin + 10_800_000, at_most=9) == own
    assert between(Plan(rule, begin), begin - 1, begin, at_most=9)[:1] == [begin]
    assert count(Plan(rule, odd), begin, begin + 10_800_000) == Count(4)
    assert count(Plan(rule, own[1]), begin, begin + 10_800_000) == Count(3)


PLANS = [
    by("*/7 * * * *", fold="both"), by("30 2 * * *", gap="skip"), by("* * * * 1-2 *"),
    by("0 0 29 2 *"), by("* * 3 * * MON"), Plan(Every(77_000, ms("2026-03-01")), ms("2026-03-02")),
    Plan(Every(3_600_000, ms("2027-01-01"))),
]


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_ranges_counts_and_the_latest_agree(number: int) -> None:
    plan = PLANS[number]
    for after, until in (("2026-01-01", "2026-01-09"), ("2026-03-28", "2026-03-30"),
                         ("2026-10-24", "2026-10-26"), ("2026-05-01", "2026-05-01"),
                         ("2026-05-02", "2026-05-01")):
        begin, end = ms(after), ms(until)
        found = between(plan, begin, end, at_most=COUNT_MAX)
        assert all(begin < each <= end for each in found)
        assert between(plan, begin, end, at_most=3) == found[:3]
        if len(found) < COUNT_MAX:
            assert count(plan, begin, end) == Count(len(found))
            for at_most in (0, 1, 5, 1_000):
                expected = found[-at_most:] if at_most else []
                assert latest(plan, begin, end, at_most=at_most) == expected


def test_the_latest_of_a_dense_time_long_ago_are_found() -> None:
    # Each second of January, and nothing for eleven months.
    plan = Plan(ByCron(Cron("* * * * 1 *")))
    found = latest(plan, ms("2020-01-01"), ms("2026-12-01"), at_most=1_000)
    assert len(found) == 1_000
    assert found[-1] == ms("2026-01-31T23:59:59")
    assert found[0] == found[-1] - 999_000


def test_a_count_that_is_too_long_says_at_least() -> None:
    plan = by("* * * * * *")
    assert count(plan, ms("2026-01-01"), ms("2027-01-01")) == Count(COUNT_MAX, is_exact=False)
    exact = count(Plan(Every(1_000, ms("2026-01-01"))), ms("2026-01-01"), ms("2027-01-01"))
    assert exact == Count(365 * 86_400)


# --- after a time in which nothing ran ------------------------------------------------------------

HOURLY = Plan(ByCron(Cron("@hourly")))
LAST, NOW = ms("2026-01-01T00:00"), ms("2026-01-01T05:00:00.200")


def test_missed_instants_run_as_the_schedule_wants() -> None:
    none = due(HOURLY, LAST, NOW, catch_up="none", grace_ms=5_000)
    assert (texts(none.run), none.late, none.skipped) == (["01 05:00:00"], 0, Count(4))
    last = due(HOURLY, LAST, NOW, catch_up="last", grace_ms=5_000)
    assert (texts(last.run), last.late, last.skipped) == (["01 05:00:00"], 0, Count(4))
    all_ = due(HOURLY, LAST, NOW, catch_up="all", grace_ms=5_000)
    assert (len(all_.run), all_.late, all_.skipped) == (5, 4, Count(0))


def test_the_last_missed_one_runs_where_none_is_on_time() -> None:
    found = due(HOURLY, LAST, NOW + 1_800_000, catch_up="last", grace_ms=5_000)
    assert (texts(found.run), found.late, found.skipped) == (["01 05:00:00"], 1, Count(4))
    nothing = due(HOURLY, LAST, NOW + 1_800_000, catch_up="none", grace_ms=5_000)
    assert (nothing.run, nothing.skipped) == ((), Count(5))


def test_of_very_many_missed_ones_the_latest_run() -> None:
    plan = Plan(Every(1_000, LAST))
    found = due(plan, LAST, LAST + 86_400_000, catch_up="all", grace_ms=0)
    assert (len(found.run), found.late) == (CATCH_UP_MAX + 1, CATCH_UP_MAX)
    assert found.skipped == Count(86_400 - CATCH_UP_MAX - 1)
    assert found.run[-1] == LAST + 86_400_000


def test_nothing_is_due_twice_or_before_its_time() -> None:
    assert due(HOURLY, LAST, LAST, catch_up="all", grace_ms=5_000).run == ()
    assert due(HOURLY, LAST, LAST - 10_000, catch_up="all", grace_ms=5_000).run == ()
    assert due(HOURLY, LAST, LAST + 3_599_999, catch_up="all", grace_ms=5_000).run == ()
    rng, last = random.Random(1), LAST
    seen: list[int] = []
    while last < LAST + 86_400_000:
        now = last + rng.randrange(1, 9_000_000)
        found = due(HOURLY, last, now, catch_up="all", grace_ms=5_000)
        assert found.skipped == Count(0)
        seen += found.run
        last = now
    assert seen == between(HOURLY, LAST, last, at_most=999)


def test_ids_and_jitter_are_the_same_every_time() -> None:
    assert occurrence_id("digest", ms("2026-11-28T08:00")) == "digest@2026-11-28T08:00:00Z"
    assert occurrence_id("digest", ms("2026-11-28T08:00") + 7) == "digest@2026-11-28T08:00:00.007Z"
    some = [jitter_ms("digest", LAST + n * 60_000, 30_000) for n in range(2_000)]
    assert some == [jitter_ms("digest", LAST + n * 60_000, 30_000) for n in range(2_000)]
    assert 0 <= min(some) < 500
    assert 29_500 < max(some) <= 30_000
    assert 14_000 < sum(some) / len(some) < 16_000
    assert jitter_ms("digest", LAST, 0) == 0
