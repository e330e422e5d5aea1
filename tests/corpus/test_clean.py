"""Cleaning: texts, what is dropped and for which reason, and that every record is accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.clean import DROPPED, Rules, Tally, cleaned_rows, is_missing, tidy
from engramscope.corpus.table import COLUMNS
from engramscope.corpus.text import same_text_key


def clean(records: list[Article | Withdrawal], rules: Rules | None = None) -> tuple[list[str], Tally]:
    def begin() -> Iterator[Article | Withdrawal]:
        return iter(records)

    tally = Tally()
    rows = list(cleaned_rows(begin, rules or Rules(), tally))
    assert all(tuple(row) == COLUMNS for row in rows)
    assert tally.read == tally.rows + sum(tally.dropped.values())
    assert tally.rows == len(rows)
    return [row["Abstract"] for row in rows], tally


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p < 0.05 and q > 3", "p < 0.05 and q > 3"),
        ("a<b and c>d", "a<b and c>d"),
        ("(<r.m.s. deviation>bb)", "(<r.m.s. deviation>bb)"),
        ("<activity-regulated gene> <5 mg> <italics", "<activity-regulated gene> <5 mg> <italics"),
        ("CO<sub>2</sub>, <I class='x y' id=z>in vivo</I><br/>next<p>one", "CO2, in vivo next one"),
        ("CO&lt;sub&gt;2&lt;/sub&gt; &amp;lt; 3 &amp;amp; 4", "CO2 < 3 & 4"),
        ("<mml:math xmlns:mml='u'><mml:mi>x</mml:mi></mml:math>&#x2013;&frac12;&emsp14;y", "x–½ y"),
        ("R&D, cats&notdogs, AT&T; &unknown;", "R&D, cats&notdogs, AT&T; &unknown;"),
        ("\ufeffa\u200bb \u00a0\u2009 c\r\n\td\x00", "ab c d"),
        ("the patient\x92s \x93EEG\x94\x81", "the patient’s “EEG”"),
        ("", ""),
    ],
)
def test_markup_and_entities(text: str, expected: str) -> None:
    assert tidy(text) == expected


def test_the_same_text_is_found_in_every_form_and_only_then() -> None:
    key = same_text_key("The Title.", "A study: of EEG, in ﬁve")
    assert key == same_text_key("the  title", "a STUDY of EEG in five!")
    assert key != same_text_key("the title", "a study of EEGs in five")
    # the border between title and abstract counts
    assert same_text_key("a b", "c") != same_text_key("a", "b c")


def test_each_record_is_dropped_for_the_first_reason_that_holds() -> None:
    kept, tally = clean(
        [
            Article("1", "t", "old", revision=(1, "2020-01-01")),
            Article("1", "t", "newest", revision=(1, "2021-05-05")),
            Article("1", "t", "older, but later in the file", revision=(1, "2020-12-31")),
            Article("2", "t", "gone"),
            Article("3", "t", "", types=("Retracted Publication",), languages=("fre",)),
            Article("4", "t", "ja", languages=("ger",)),
            Article("5", "t", " <b> . </b> "),
            Article("6", "t", "No abstract available."),
            Article("7", "T!", "Newest"),
            Withdrawal("2"),
            Withdrawal("99"),
            Article("8", "t", "two languages", languages=("fre", "eng")),
            Article("", "t", "without a number"),
            Article("", "u", "without a number"),
        ]
    )
    assert kept == ["newest", "two languages", "without a number", "without a number"]
    assert tally.dropped == dict(zip(DROPPED, (2, 1, 1, 1, 2, 1), strict=True))
    assert tally.losses() == (
        "2 earlier revisions, or repetitions, of a PMID, 1 deleted from MEDLINE by a later file, 1 retracted, or the "
        "notice of a retraction, 1 not in English, 2 without an abstract, 1 with title and "
        "abstract as in an earlier record"
    )
    assert (tally.noted["no_pmid"], tally.noted["language_unknown"], tally.noted["no_year"]) == (2, 3, 4)


def test_the_version_goes_before_the_date_and_equal_revisions_before_the_order() -> None:
    assert clean([Article("1", "t", "v2", revision=(2, "")), Article("1", "t", "v1", revision=(1, "2025-01-01"))])[
        0
    ] == ["v2"]
    assert clean([Article("01", "t", "a"), Article("1", "t", "b")])[0] == ["b"]


def test_an_older_revision_does_not_take_the_text_of_the_newer_with_it() -> None:
    """Were the older one to claim the text before it is dropped, both would be lost."""
    assert clean([Article("1", "t", "same", revision=(1, "2020-01-01")), Article("1", "t", "Same.")])[0] == ["same"]
    assert clean([Article("1", "t", "same"), Article("1", "t", "Same.")])[0] == ["Same."]
    assert clean([Article("1", "t", "same", types=("Retracted Publication",)), Article("2", "t", "same")])[0] == [
        "same"
    ]


def test_a_record_that_comes_back_after_its_withdrawal_stays() -> None:
    assert clean([Article("1", "t", "a"), Withdrawal("1"), Article("1", "t", "b")])[0] == ["b"]


def test_what_may_be_kept_is_kept_and_counted() -> None:
    records: list[Article | Withdrawal] = [
        Article("1", "t", "a", types=("Retracted Publication",), languages=("eng",)),
        Article("2", "t", "b", types=("Journal Article",), languages=("ita",)),
    ]
    assert clean(records)[1].rows == 0
    kept, tally = clean(records, Rules(keep_retracted=True, keep_languages=True))
    assert kept == ["a", "b"]
    assert (tally.noted["retracted"], tally.noted["other_language"], tally.noted["types_unknown"]) == (1, 1, 0)


def test_columns_of_a_row() -> None:
    article = Article(
        "12", "A &amp; B", "x", "J<i>!</i>", ("* EEG", "a; b", "EEG."), "javascript:alert(1)", 2001, " 10.1/x "
    )
    (row,) = cleaned_rows(lambda: iter([article]), Rules(), Tally())
    assert row == {
        "PMID": "12", "Title": "A & B", "Abstract": "x", "Journal": "J!", "Keywords": "EEG; a; b",
        "URL": "https://pubmed.ncbi.nlm.nih.gov/12/", "Year": 2001, "DOI": "10.1/x",
    }  # fmt: skip


_ARTICLES = st.builds(
    Article,
    pmid=st.sampled_from(["", "1", "2", "3"]),
    title=st.sampled_from(["t", "T.", "u"]),
    abstract=st.sampled_from(["", "a", "A!", "b", "c"]),
    languages=st.sampled_from([(), ("eng",), ("fre",)]),
    types=st.sampled_from([(), ("Retracted Publication",)]),
    revision=st.tuples(st.integers(1, 2), st.sampled_from(["", "2020-01-01", "2021-01-01"])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_ARTICLES, st.builds(Withdrawal, st.sampled_from(["1", "2"]))), max_size=12))
def test_against_a_plain_list_of_everything(records: list[Article | Withdrawal]) -> None:
    """The naive way: all records in a list, gone through once per rule."""
    left = list(enumerate(records))
    articles = [(place, one) for place, one in left if isinstance(one, Article)]
    newest = {}
    for place, one in articles:
        newest[one.pmid] = max(newest.get(one.pmid, ((0, ""), -1)), (one.revision, place))
    articles = [(place, one) for place, one in articles if not one.pmid or newest[one.pmid][1] == place]
    articles = [
        (place, one) for place, one in articles
        if not any(isinstance(other, Withdrawal) and other.pmid == one.pmid and at > place for at, other in left)
    ]  # fmt: skip
    kept: list[tuple[str, str]] = []
    for _, one in articles:
        texts = (one.title.strip(".").lower(), one.abstract.strip("!").lower())
        if one.abstract and "fre" not in one.languages and not one.types and texts not in kept:
            kept.append(texts)
    assert [text.strip("!").lower() for text in clean(records)[0]] == [text for _, text in kept]


def test_placeholders() -> None:
    assert all(is_missing(text) for text in ("", " … ", "No abstract available.", "[No Abstract]", "N/A", "nan"))
    assert not any(is_missing(text) for text in ("No abstract thought was needed.", "A", "脳波"))
