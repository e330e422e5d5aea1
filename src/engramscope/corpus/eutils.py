"""A polite client of the NCBI E-utilities: paced, patient, and suspicious of what comes back.

`Bio.Entrez` builds its addresses from constants inside its functions, so it cannot be pointed at another server (a
mirror, a recording proxy, the tests); it tries three times without regard to Retry-After and cannot know that a body
was cut short. The standard library's `urllib` does all that is needed.
"""

from __future__ import annotations

import http.client
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from engramscope.corpus.xml_stream import XmlError
from engramscope.errors import EngramscopeError, InputError

T = TypeVar("T")

NCBI = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/"
#: seconds between requests: NCBI allows 3 a second, 10 with a key; a little less than that is taken
PACE_S, PACE_WITH_KEY_S = 0.37, 0.11
TRIES = 7
#: of a connection that has never worked in this run: no network, a wrong address
TRIES_AT_FIRST = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
#: a server that asks for more patience than this is left alone
MOST_RETRY_AFTER_S = 300.0
#: an answer longer than this is none of PubMed's
_MOST_BYTES = 512 * 2**20


class RetrievalError(EngramscopeError):
    """PubMed could not be reached, or did not answer properly after all tries; what was fetched is kept."""


class RefusedError(RetrievalError):
    """The server understood the request and refused it (HTTP 4xx).

    Args:
        message: a sentence for a person.
        body: the beginning of what the server said.
    """

    def __init__(self, message: str, body: str) -> None:
        self.body = body
        super().__init__(message)


class _Transient(Exception):
    """Worth another try: what happened, how long the server asked to wait, whether it was reached at all."""

    def __init__(self, what: str, wait_s: float | None = None, *, reached: bool = True) -> None:
        self.what, self.wait_s, self.reached = what, wait_s, reached
        super().__init__(what)


class Eutils:
    """Requests to one server, one at a time.

    Every request is a POST, so that neither the key nor a long query stands in an address that ends up in a log.

    Args:
        endpoint: the address that the tools' names (`esearch.fcgi`) are appended to.
        api_key: of NCBI; allows ten requests a second in place of three. Never written anywhere.
        email: whom NCBI may write to.
        timeout_s: of one connection or one pause in an answer.
        sleep: called with seconds.
        clock: monotonic seconds.
        jitter: for the length of the waits.

    Raises:
        InputError: the endpoint is no http or https address.
    """

    def __init__(
        self,
        endpoint: str = NCBI,
        *,
        api_key: str = "",
        email: str = "",
        timeout_s: float = 60.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        self.endpoint = checked_endpoint(endpoint)
        self._fixed = {"tool": "engramscope", "email": email, "api_key": api_key}
        self._pace = PACE_WITH_KEY_S if api_key else PACE_S
        self._timeout, self._sleep, self._clock = timeout_s, sleep, clock
        self._jitter = jitter or random.Random()
        self._last = float("-inf")
        self._answered = False

    def call(self, tool: str, parameters: Mapping[str, str], read: Callable[[bytes], T]) -> T:
        """Post `parameters` to a tool and hand the whole body to `read`, again and again until both succeed.

        Tried again: 429, 5xx, time-outs, broken connections, bodies shorter than announced, and whatever `read` refuses
        with an `XmlError`. The n-th wait is 2^(n-1) seconds, at most a minute, times a random 0.5 to 1.5; a Retry-After
        of the server is waited for in full.

        Raises:
            RetrievalError: not after all tries, or the server asks to wait for more than five minutes.
            RefusedError: any other 4xx.
            InputError: the server refuses the API key.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return read(self._post(tool, parameters))
            except XmlError as error:
                trouble = _Transient(f"the answer cannot be used: {error}")
            except _Transient as error:
                trouble = error
            self._give_up_or_wait(tool, trouble, attempt)
        raise AssertionError("the last try returns or raises")

    def _give_up_or_wait(self, tool: str, trouble: _Transient, attempt: int) -> None:
        what = f"{self.endpoint}{tool}: {trouble.what}"
        if trouble.wait_s is not None and trouble.wait_s > MOST_RETRY_AFTER_S:
            raise RetrievalError(f"{what}; the server asks to wait for {trouble.wait_s:,.0f} s. Try again later.")
        never = not trouble.reached and not self._answered
        if attempt >= (TRIES_AT_FIRST if never else TRIES):
            hint = "Is there a network, and is the address right?" if never else "Try again later."
            raise RetrievalError(f"{what}, {attempt} times in a row. {hint}")
        wait = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S) * self._jitter.uniform(0.5, 1.5)
        self._sleep(max(wait, trouble.wait_s or 0.0))

    def _post(self, tool: str, parameters: Mapping[str, str]) -> bytes:
        pause = self._last + self._pace - self._clock()
        if pause > 0:
            self._sleep(pause)
        self._last = self._clock()
        fields = {key: value for key, value in (self._fixed | dict(parameters)).items() if value}
        data = urllib.parse.urlencode(fields).encode("ascii")
        request = urllib.request.Request(self.endpoint + tool, data=data, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                body = answer.read(_MOST_BYTES + 1)
                announced = answer.headers.get("Content-Length", "")
        except urllib.error.HTTPError as error:
            raise self._http_trouble(tool, error) from None
        except http.client.HTTPException as error:
            raise _Transient(f"the answer broke off or is no HTTP ({type(error).__name__})") from None
        except OSError as error:  # no such host, refused, reset, timed out, a bad certificate
            # urllib wraps what goes wrong until the request is sent, and nothing after that
            reached = not isinstance(error, urllib.error.URLError)
            reason = getattr(error, "reason", error)
            words = str(getattr(reason, "strerror", None) or reason).rstrip(".")
            what = "no whole answer came" if reached else "not reached"
            raise _Transient(f"{what} ({words})", reached=reached) from None
        self._answered = True
        if len(body) > _MOST_BYTES:
            raise RetrievalError(
                f"{self.endpoint}{tool} answered with more than {_MOST_BYTES:,} bytes; that is no batch."
            )
        if announced.isdecimal() and len(body) < int(announced):
            raise _Transient(f"the answer broke off after {len(body):,} of {int(announced):,} bytes")
        return body

    def _http_trouble(self, tool: str, error: urllib.error.HTTPError) -> Exception:
        self._answered = True
        with error:
            try:
                said = " ".join(error.read(2000).decode("utf-8", "replace").split())
            except (OSError, http.client.HTTPException):
                said = ""
        if error.code == 429 or error.code >= 500:
            return _Transient(f"HTTP {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After", "")))
        if "api key" in said.lower():
            return InputError(f"{self.endpoint}{tool} refuses the API key. Give a valid one, or none.")
        return RefusedError(
            f"{self.endpoint}{tool} refuses the request: HTTP {error.code} {error.reason}. {said[:200]}".rstrip(), said
        )


def checked_endpoint(endpoint: str) -> str:
    """The address with a slash at its end.

    Raises:
        InputError: no http or https address of a host.
    """
    try:
        parts = urllib.parse.urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"the endpoint {endpoint!r} is no address such as {NCBI}.")
    return endpoint if endpoint.endswith("/") else endpoint + "/"


def _retry_after(text: str) -> float | None:
    """Seconds, from seconds or from a date; None where there is none that can be read."""
    if text.strip().isdecimal():
        return float(text.strip())
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    # the oldest of the three forms that HTTP allows names no zone; all are in UTC
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
