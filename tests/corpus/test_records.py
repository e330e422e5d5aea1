"""Single records: what the parser makes of every oddity of PubMed's XML, and what it refuses."""

from __future__ import annotations

import pytest

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.records import article_of, bare_doi, bare_pmid, year_in
from engramscope.corpus.xml_stream import AnswerError, XmlError, iterate_records
from engramscope.errors import InputError

from .fake_pubmed import HEAD, article_set, article_xml

FULL = """
<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="2">101</PMID>
<DateRevised><Year>2024</Year><Month>7</Month><Day>28</Day></DateRevised>
<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Print"><PubDate>
<MedlineDate>1998 Dec-1999 Jan</MedlineDate>
</PubDate></JournalIssue><Title>Journal of &amp; about Seizures</Title></Journal>
<ArticleTitle>CO<sub>2</sub> in <i>Danio rerio</i>:
  a study</ArticleTitle>
<ELocationID EIdType="doi" ValidYN="N">10.1/wrong</ELocationID>
<ELocationID EIdType="pii" ValidYN="Y">S1</ELocationID><ELocationID EIdType="doi" ValidYN="Y">10.1/right</ELocationID>
<Abstract><AbstractText Label="AIM" NlmCategory="OBJECTIVE">To see <b>what</b> x<sup>2</sup> does,
p &lt; 0.05.</AbstractText>
<AbstractText Label="EMPTY"></AbstractText><AbstractText Label="UNLABELLED">No label here.</AbstractText>
<AbstractText Label="RESULTS:">Much.</AbstractText><CopyrightInformation>(c) Nobody</CopyrightInformation></Abstract>
<AuthorList><Author><CollectiveName>The Group</CollectiveName></Author>
<Author><LastName>A</LastName></Author></AuthorList>
<Language>eng</Language><Language>fre</Language><PublicationTypeList>
<PublicationType UI="D016428">Journal Article</PublicationType></PublicationTypeList></Article>
<CommentsCorrectionsList><CommentsCorrections RefType="Cites"><RefSource>x</RefSource><PMID Version="1">999</PMID>
</CommentsCorrections></CommentsCorrectionsList>
<OtherAbstract Type="plain-language-summary"><AbstractText>Not this.</AbstractText></OtherAbstract>
<KeywordList Owner="NOTNLM"><Keyword MajorTopicYN="N">epilepsy</Keyword>
<Keyword MajorTopicYN="N">EEG </Keyword></KeywordList>
<KeywordList Owner="KIE"><Keyword MajorTopicYN="N">epilepsy</Keyword>
<Keyword MajorTopicYN="N">ethics</Keyword></KeywordList>
</MedlineCitation><PubmedData><PublicationStatus>ppublish</PublicationStatus><ArticleIdList>
<ArticleId IdType="doi">10.1/second</ArticleId></ArticleIdList>
<ReferenceList><Reference><Citation>x</Citation><ArticleIdList>
<ArticleId IdType="doi">10.1/reference</ArticleId></ArticleIdList></Reference>
</ReferenceList></PubmedData></PubmedArticle>
"""


def parse(document: str | bytes, size: int = 1 << 16) -> list[Article | Withdrawal]:
    data = document.encode() if isinstance(document, str) else document
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    return [one for record in iterate_records(pieces) for one in article_of(record)]


def only(document: str) -> Article:
    (article,) = parse(article_set(document))
    assert isinstance(article, Article)
    return article


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_full_record_by_hand(size: int) -> None:
    assert parse(article_set(FULL), size) == [
        Article(
            pmid="101",
            title="CO2 in Danio rerio: a study",
            abstract="AIM: To see what x2 does, p < 0.05. No label here. RESULTS: Much.",
            journal="Journal of & about Seizures",
            keywords=("epilepsy", "EEG", "ethics"),
            year=1998,
            doi="10.1/right",
            languages=("eng", "fre"),
            types=("Journal Article",),
            revision=(2, "2024-07-28"),
            structured=True,
            collective=True,
        )
    ]


def test_the_doi_of_a_reference_is_not_the_articles() -> None:
    without = FULL.replace("10.1/right", "").replace('<ArticleId IdType="doi">10.1/second</ArticleId>', "")
    assert only(without).doi == ""
    assert only(FULL.replace('"Y">10.1/right', '"N">10.1/right')).doi == "10.1/second"


def test_a_citation_without_a_frame_is_a_record_and_one_within_is_none_of_its_own() -> None:
    citation = FULL[FULL.index("<MedlineCitation") : FULL.index("<PubmedData>")]
    (bare,) = parse(f"<MedlineCitationSet>{citation}</MedlineCitationSet>")
    assert isinstance(bare, Article)
    assert bare.pmid == "101"
    assert len(parse(article_set(FULL, FULL))) == 2


def test_a_book_and_a_withdrawal() -> None:
    book = """<PubmedBookArticle><BookDocument><PMID Version="1">7</PMID><ArticleIdList><ArticleId IdType="doi">10.2/b
    </ArticleId></ArticleIdList><Book><BookTitle>GeneReviews</BookTitle><PubDate><Year>1993</Year></PubDate></Book>
    <ArticleTitle>A chapter</ArticleTitle><Language>eng</Language><PublicationType>Review</PublicationType>
    <Abstract><AbstractText>Text.</AbstractText></Abstract><ContributionDate><Year>2001</Year></ContributionDate>
    </BookDocument></PubmedBookArticle>"""
    deleted = "<DeleteCitation><PMID Version='1'>5</PMID><PMID Version='1'>6</PMID></DeleteCitation>"
    chapter, *gone = parse(article_set(book, deleted))
    assert gone == [Withdrawal("5"), Withdrawal("6")]
    assert isinstance(chapter, Article)
    assert (chapter.title, chapter.journal, chapter.year) == ("A chapter", "GeneReviews", 1993)
    assert (chapter.doi, chapter.book, chapter.abstract) == ("10.2/b", True, "Text.")


def test_an_entity_that_only_the_dtd_knows_is_not_lost_without_a_word() -> None:
    assert only(article_xml("1", abstract="&alpha;-wave &zork; &#945;")).abstract == "α-wave &zork; α"


def test_a_title_only_in_its_own_language() -> None:
    text = article_xml("1").replace("Title 1</ArticleTitle>", "[Not Available].</ArticleTitle>")
    assert only(text).title == "[Not Available]."
    named = text.replace(
        "</PublicationTypeList>", "</PublicationTypeList><VernacularTitle>Über Anfälle</VernacularTitle>"
    )
    assert only(named).title == "Über Anfälle"


@pytest.mark.parametrize(
    ("kind", "title", "retracted"),
    [
        ("Retracted Publication", "x", True), ("Retraction of Publication", "x", True),
        ("Retraction Notice", "x", True),
        ("journal-article", "RETRACTED: x", True), ("", "RETRACTED: x", True), ("", "RETRACTED ARTICLE: x", True),
        ("Journal Article, Retracted Publication", "x", True), ("Journal Article", "x", False),
        ("", "Retracted tongues in seizures", False), ("", "RETRACTION times of muscles", False),
    ],
)  # fmt: skip
def test_what_counts_as_retracted(kind: str, title: str, retracted: bool) -> None:
    assert Article(types=(kind,) if kind else (), title=title).retracted is retracted


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "cut off, or empty"),
        ("<PubmedArticleSet>", "cut off, or empty"),
        (article_set(FULL)[:-30], "cut off, or empty"),
        ("<PubmedArticleSet><a></b></PubmedArticleSet>", r"mismatched tag \(line 1, column 24\)"),
        (b"\x00\x01\x02junk", "not well-formed"),
        ("<html><body/></html>", "its root element is <html>; expected PubmedArticleSet"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><PubmedArticleSet/>', r"declares an entity of its own \(a\)"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><PubmedArticleSet/>', "declares an entity"),
        (f"{HEAD}<PubmedArticleSet/>{HEAD}<PubmedArticleSet/>", "declaration not at start|junk after"),
        ("<PubmedArticleSet>" + "<a>" * 300, "nested more than 200 deep"),
    ],
)
def test_what_is_refused_and_why(document: str | bytes, words: str) -> None:
    with pytest.raises(XmlError, match=words):
        parse(document)


def test_a_record_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engramscope.corpus.xml_stream._MOST_CHARACTERS", 10_000)
    assert len(parse(article_set(*(article_xml(str(n)) for n in range(100))))) == 100
    with pytest.raises(XmlError, match="one record is longer than 10,000 characters"):
        parse(article_set(article_xml("1", abstract="x" * 10_001)))


def test_an_error_of_the_server_is_one() -> None:
    with pytest.raises(AnswerError, match="Unable to obtain query"):
        parse("<eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>")
    assert issubclass(AnswerError, InputError)


def test_small_readers() -> None:
    assert [year_in(text) for text in ("1998 Dec-1999 Jan", "Spring 2001", "2018.0", "x", "12345", "20201")] == [
        1998, 2001, 2018, None, None, None,
    ]  # fmt: skip
    assert {bare_pmid(text) for text in ("NA", "n/a", "nan", "-", "None", "PMID:")} == {""}
    assert [bare_pmid(text) for text in (" 12345.0", "PMID: 007", "PMC12", "", "1.5")] == [
        "12345",
        "7",
        "PMC12",
        "",
        "1.5",
    ]
    assert bare_doi(" https://doi.org/10.1/a ") == bare_doi("doi:10.1/a") == "10.1/a"
