"""An OpenAI-compatible endpoint on the loopback, which can fail in every way that they do.

    with FakeEndpoint(play) as server: ...      `play` says what to do with each request

A play returns the text of a reply, or one of the failures below.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Status:
    """An HTTP error; `after` is its Retry-After."""

    code: int
    after: str = ""
    says: str = "out of order"


@dataclass(frozen=True)
class Bytes:
    """A reply that is no chat completion; `claimed` bytes are announced, `data` is sent."""

    data: bytes
    claimed: int | None = None


@dataclass(frozen=True)
class Drip:
    """One byte after the other, for `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Late:
    """A reply after `seconds`."""

    text: str
    seconds: float


@dataclass(frozen=True)
class Cut:
    """A reply that ran into max_tokens."""

    text: str


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # the default of 5 refuses some of 16 that connect at once

    def handle_error(self, request, client_address):
        """A client that has given up is no news."""


class FakeEndpoint:
    """`asked` has the JSON of every request, `headers` their headers, `busiest` the most at once.

    play   a function of the JSON of a request and of how often this one was asked before
    """

    def __init__(self, play: Callable[[dict, int], object]):
        self.play = play
        self.asked: list[dict] = []
        self.headers: list = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as those of real servers do

            def do_POST(self):
                outer.serve(self)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            before = self.asked.count(body)
            self.asked.append(body)
            self.headers.append(handler.headers)
            self.times.append(time.monotonic())
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            perform(self.play(body, before), handler)
        except OSError:  # the client has given up
            pass
        finally:
            with self.lock:
                self.busy -= 1


def perform(act, handler) -> None:
    """Do what a play said."""
    if isinstance(act, Status):
        handler.send_response(act.code)
        if act.after:
            handler.send_header("Retry-After", act.after)
        send(handler, act.says.encode())
        return

    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    if isinstance(act, Bytes):
        send(handler, act.data, act.claimed)
        handler.close_connection = act.claimed is not None
    elif isinstance(act, Late):
        time.sleep(act.seconds)
        send(handler, completion(act.text))
    elif isinstance(act, Cut):
        send(handler, completion(act.text, "length"))
    elif isinstance(act, Drip):
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        for _ in range(round(act.seconds / 0.05)):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    else:
        send(handler, completion(act))


def send(handler, data: bytes, claimed: int | None = None) -> None:
    handler.send_header("Content-Length", str(len(data) if claimed is None else claimed))
    handler.end_headers()
    handler.wfile.write(data)
