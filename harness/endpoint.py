"""An OpenAI-compatible endpoint: many requests at once, in a time that is bounded.

    one request     at most `call_s`, then again after a pause, at most `tries` times
    a pause         grows, with a random part; never shorter than the server's Retry-After
    all requests    at most `limit_s`; what has no reply then is None
    the breaker     after `BREAKER` failures in a row nothing is sent for `REST_S` seconds
    the cache       a file for each usable reply: asked again, it costs nothing

A failure is no reply: the caller leaves out what it could not ask about, and goes on. Only a wrong
key, URL or model stops the run, as long as the endpoint never answered: it would never mend itself.

Why not the `openai` package: it retries as well, but bounds each *read* instead of a request, so
that a server which drips a byte a second holds it for ever, and it knows neither a limit for many
requests nor a breaker. httpx sends; what is written here is when to ask, and when to stop.
"""

import asyncio
import email.utils
import functools
import hashlib
import json
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

REFUSED = (401, 403, 404)  # HTTP: no valid key, no permission, no such URL or model
HOPELESS = (400, 413, 422)  # HTTP: this request will never do, for example because it is too long
BREAKER = 32  # failures in a row
REST_S = 60.0  # seconds that an open breaker stays open
UNUSABLE = 2  # replies to a request: without temperature, a third would be the same
SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class Reply:
    text: str
    cut: bool  # it ran into max_tokens
    tokens: int  # of the request and the reply, as the server counts them; 0 if it does not


class Failure(Exception):
    """A request without a reply. `pause_s`: what the server asks to wait; `retry`: is it of use?"""

    def __init__(self, reason: str, pause_s: float = 0.0, retry: bool = True, alive: bool = False):
        super().__init__(reason)
        self.pause_s = pause_s
        self.retry = retry
        self.alive = alive  # the server is well, and only asks for patience


class Endpoint:
    """An endpoint and a model there.

    url         up to and with `/v1`
    flag        the command-line flag that named it, for messages
    key_name    the environment variable with the key, which is sent and appears nowhere else
    cache       folder of the replies, shared by ranks and runs
    in_flight   requests at the same time
    call_s      seconds for one request, `limit_s` for all requests of one `ask_all`
    warn        is told when the breaker opens and when the time is up

    `counts` has the numbers since `take_counts`: calls, hits (found in the cache), tokens.
    Raises ValueError naming the flag for a URL that is none, or that holds a password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        flag: str,
        key_name: str,
        cache: Path,
        in_flight: int = 16,
        call_s: float = 60.0,
        limit_s: float = 300.0,
        tries: int = 6,
        first_pause_s: float = 0.5,
        warn: Callable[[str], None] = print,
    ):
        self.url = check_url(url, flag)
        self.model = model
        self.flag = flag
        self.key_name = key_name
        self.key = os.environ.get(key_name, "")
        self.cache = cache
        self.in_flight = in_flight
        self.call_s = call_s
        self.limit_s = limit_s
        self.tries = tries
        self.first_pause_s = first_pause_s
        self.warn = warn

        self.counts = Counter()
        self.ever_answered = False
        self.failures = 0  # in a row
        self.rests_until = 0.0  # time.monotonic(); the breaker is open until then

    def take_counts(self) -> dict[str, int]:
        """The numbers since the last call of this method, which starts them again at 0."""
        counts = {name: self.counts[name] for name in ("calls", "hits", "tokens")}
        self.counts.clear()
        return counts

    # --- All requests ---------------------------------------------------------------------------

    def ask_all(
        self, bodies: Sequence[dict], is_usable: Callable[[Reply], bool] = lambda reply: True
    ) -> list[Reply | None]:
        """A reply to each request, in order; None where there is none in time.

        bodies      JSON of a chat completion without its model; equal ones are asked once
        is_usable   a reply that is not is asked for again, and not kept

        Raises ValueError naming the flag if the endpoint refuses the first requests.
        """
        keys = [self.key_of(body) for body in bodies]
        replies: dict[str, Reply] = {}
        missing: dict[str, dict] = {}
        for key, body in zip(keys, bodies):
            if key in replies or key in missing:
                continue
            reply = self.read_cache(key)
            if reply is not None and is_usable(reply):
                replies[key] = reply
                self.counts["hits"] += 1
            else:
                missing[key] = body

        if missing and time.monotonic() >= self.rests_until:
            asyncio.run(self.ask_within_limit(missing, is_usable, replies))
        return [replies.get(key) for key in keys]

    async def ask_within_limit(self, missing: dict[str, dict], is_usable, replies: dict) -> None:
        """Ask for what is missing and enter it in `replies`, until `limit_s` is over."""
        places = asyncio.Semaphore(self.in_flight)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        settings = {
            "headers": headers,
            "limits": httpx2.Limits(max_connections=self.in_flight),
            "timeout": self.call_s,
            "verify": certificates(),
        }

        async def ask_one(key: str, body: dict) -> None:
            async with places:
                reply = await self.ask(client, {"model": self.model, **body}, is_usable)
            if reply is not None:
                replies[key] = reply
                self.write_cache(key, reply)

        async with httpx2.AsyncClient(**settings) as client:
            waiting = list(missing.items())
            try:
                async with asyncio.timeout(self.limit_s):
                    if self.failures >= BREAKER:  # it was open: one request tries first
                        await ask_one(*waiting.pop(0))
                    await asyncio.gather(*[ask_one(key, body) for key, body in waiting])
            except TimeoutError:
                unasked = sum(key not in replies for key in missing)
                self.warn(
                    f"{self.flag}: {unasked} of {len(missing)} questions have no answer after "
                    f"{self.limit_s:.0f} s"
                )

    # --- One request ----------------------------------------------------------------------------

    async def ask(self, client, body: dict, is_usable) -> Reply | None:
        """One request, again after a failure; None if there is no usable reply."""
        unusable = 0
        for attempt in range(self.tries):
            if time.monotonic() < self.rests_until:
                return None

            pause_s = 0.0
            try:
                reply = await self.send(client, body)
                self.failures, self.ever_answered = 0, True
                self.counts["tokens"] += reply.tokens
                if is_usable(reply):
                    return reply
                unusable += 1
                if unusable == UNUSABLE:
                    return None
            except Failure as failure:
                self.note(failure)
                if not failure.retry or time.monotonic() < self.rests_until:
                    return None
                pause_s = failure.pause_s

            if attempt + 1 < self.tries:
                # The random part keeps requests that failed together from coming back together.
                pause_s = max(pause_s, self.first_pause_s * 2**attempt)
                await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
        return None

    async def send(self, client, body: dict) -> Reply:
        """Send a request once. Raises Failure, or ValueError if the endpoint refuses us."""
        self.counts["calls"] += 1
        try:
            # Trap: the client's own timeout starts anew with every byte that comes. A server that
            # drips would hold a request for ever (test_a_failure_that_passes_costs_nothing).
            async with asyncio.timeout(self.call_s):
                content = json.dumps(body)
                response = await client.post(f"{self.url}/chat/completions", content=content)
        except TimeoutError as error:
            raise Failure(f"no reply within {self.call_s:.0f} s") from error
        except httpx2.HTTPError as error:
            raise Failure(f"{type(error).__name__}: {error}") from error

        status, said = response.status_code, response.text[:SHOWN]
        if status in REFUSED and not self.ever_answered:
            raise ValueError(self.hide_key(
                f"{self.flag} {self.url}: the endpoint refused the request (HTTP {status}: "
                f"{said}); check the URL, the model {self.model!r} and the environment variable "
                f"{self.key_name}"
            ))  # fmt: skip
        if status == 429:
            raise Failure("HTTP 429", retry_after(response), alive=True)
        if status != 200:
            pause_s = retry_after(response)
            raise Failure(f"HTTP {status}: {said}", pause_s, retry=status not in HOPELESS)
        return read_reply(response)

    def note(self, failure: Failure) -> None:
        """Count a failure, and open the breaker after too many, or if told to stay away long."""
        if not failure.alive:
            self.failures += 1
        rest_s = 0.0
        if failure.pause_s > self.call_s:
            rest_s = failure.pause_s
        elif self.failures >= BREAKER:
            rest_s = REST_S
        if rest_s and time.monotonic() >= self.rests_until:
            self.rests_until = time.monotonic() + rest_s
            self.warn(self.hide_key(
                f"{self.flag} {self.url}: {self.failures} requests in a row failed, the last by "
                f"{failure}; nothing is asked for {rest_s:.0f} s, and what needs it is left out"
            ))  # fmt: skip

    def hide_key(self, text: str) -> str:
        """Without the key, which a server may repeat in what it says."""
        return text.replace(self.key, "(key)") if self.key else text

    # --- The cache ------------------------------------------------------------------------------
    # Files and nothing else: ranks on several machines share a folder, mostly over a network, where
    # the locks that a database relies on (SQLite, diskcache) are not safe. A rename is.

    def key_of(self, body: dict) -> str:
        """What the reply depends on: the model and all of the request but its limit of tokens."""
        asked = {name: value for name, value in body.items() if name != "max_tokens"}
        return hashlib.sha256(json.dumps([self.model, asked], sort_keys=True).encode()).hexdigest()

    def file_of(self, key: str) -> Path:
        return self.cache / key[:2] / f"{key}.json"  # no folder with a million files

    def read_cache(self, key: str) -> Reply | None:
        try:
            return Reply(**json.loads(self.file_of(key).read_text()))
        except (OSError, ValueError, TypeError):  # not there, or damaged: it is asked for again
            return None

    def write_cache(self, key: str, reply: Reply) -> None:
        """Keep a reply. With a rename, no rank reads a file that is half written."""
        if reply.cut:  # with more tokens, it may be complete
            return
        file = self.file_of(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{uuid.uuid4().hex}.partial")  # no other process has this name
        partial.write_text(json.dumps(asdict(reply)))
        os.replace(partial, file)


# --- Reading -------------------------------------------------------------------------------------


@functools.cache
def certificates():
    """What HTTPS trusts, read once a process: it takes 0.15 s, and each rollout connects anew."""
    return httpx2.create_ssl_context()


def check_url(url: str, flag: str) -> str:
    """The URL without a slash at its end. Raises ValueError naming the flag if it is none."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{flag} {url}: no URL: {error}") from error
    if parsed.userinfo:  # it would be written into config.json
        raise ValueError(f"{flag}: the URL holds a password; give the key in the environment")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{flag} {url}: wanted http://HOST/v1 or https://HOST/v1")
    return url.rstrip("/")


def retry_after(response) -> float:
    """The seconds of a Retry-After, which may be a date; 0 without one."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def read_reply(response) -> Reply:
    """The reply in a chat completion. Raises Failure for anything else, however odd."""
    try:
        answer = json.loads(response.content)
        choice = answer["choices"][0]
        text = choice["message"].get("content")
        usage = answer.get("usage") or {}
        tokens = int(usage.get("total_tokens") or 0)
        cut = choice.get("finish_reason") == "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f"no chat completion: {response.text[:SHOWN]!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise Failure("an empty reply")
    return Reply(text, cut, tokens)
