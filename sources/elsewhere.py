"""Responses that no model of ours sampled, for either side of the pairs of stage 2a.

    FILE.jsonl              one `{"id": ..., "response": ...}` a line, sampled by any engine
    http://HOST/v1#MODEL    an OpenAI-compatible endpoint that sees the images: for example the
                            teachers of 32B and 72B of the paper

A line of the file may also say `"truncated": true`, or `"finish_reason": "length"` as engines do.
The key of an endpoint comes from the environment variable RESPONSES_API_KEY.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from harness.endpoint import Endpoint, check_url
from harness.progress import progress
from model.prompts import chat_messages, full_question, load_image
from sources.funnel import Response


def is_elsewhere(source: str) -> bool:
    """Is this a file of responses or an endpoint, not a model?"""
    return source.endswith(".jsonl") or "://" in source


def responses_from(
    source: str, flag: str, cfg, warn: Callable[[str], None], show: bool
) -> Callable[[list[dict]], list[list[Response]]]:
    """What gives the responses of a source: a function of examples, with a list for each.

    flag    names the source in messages
    cfg     the settings of `build_prefs.py`
    show    draw a progress bar

    Raises ValueError naming the flag for a file or a URL that is none: before anything is sampled.
    """
    if "://" in source:
        endpoint, model = open_endpoint(source, flag, cfg, warn)
        return lambda examples: ask_endpoint(endpoint, examples, cfg, model if show else None)
    by_id = read_responses(Path(source), flag)
    return lambda examples: pick_responses(by_id, examples, f"{flag} {source}", warn)


# --- A file --------------------------------------------------------------------------------------


def read_responses(file: Path, flag: str) -> dict[str, list[Response]]:
    """The responses of a file by the id of their example, in order.

    Raises ValueError naming the flag, the file and the line.
    """
    if not file.is_file():
        raise ValueError(f"{flag} {file}: no such file")
    by_id = defaultdict(list)
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    example_id, response = read_line(line)
                except ValueError as error:
                    raise ValueError(f"{flag} {file}, line {number}: {error}") from error
                by_id[example_id].append(response)
    if not by_id:
        raise ValueError(f"{flag} {file}: holds no responses")
    return dict(by_id)


def read_line(line: str) -> tuple[str, Response]:
    """(id of the example, response) of a line. Raises ValueError."""
    record = json.loads(line)
    if not isinstance(record, dict) or "id" not in record:
        raise ValueError('wanted {"id": ..., "response": ...}')
    if not isinstance(record.get("response"), str):
        raise ValueError("'response' is missing or no text")
    truncated = record.get("truncated") is True or record.get("finish_reason") == "length"
    return str(record["id"]), Response(record["response"], truncated)


def pick_responses(
    by_id: dict[str, list[Response]], examples: list[dict], where: str, warn: Callable[[str], None]
) -> list[list[Response]]:
    """The responses to each example, none for one that the file does not have."""
    responses = [by_id.get(example["id"], []) for example in examples]
    without = [example["id"] for example, found in zip(examples, responses) if not found]
    if without:
        first = f"the first is {without[0]}"
        warn(f"{where}: no response to {len(without)} of {len(examples)} questions, {first}")
    return responses


# --- An endpoint ---------------------------------------------------------------------------------


def open_endpoint(source: str, flag: str, cfg, warn) -> tuple[Endpoint, str]:
    """The endpoint of `URL#MODEL`, and MODEL. Raises ValueError naming the flag."""
    url, _, model = source.partition("#")
    check_url(url, flag)
    if not model:
        raise ValueError(f"{flag} {source}: wanted URL#MODEL, the name of the model there")
    endpoint = Endpoint(
        url,
        model,
        flag=flag,
        key_name="RESPONSES_API_KEY",
        cache=Path(cfg.responses_cache),
        in_flight=cfg.judge_in_flight,
        call_s=cfg.responses_call_s,
        limit_s=cfg.responses_call_s * 10,  # of a batch, which has four requests for each place
        warn=warn,
    )
    return endpoint, model


def ask_endpoint(
    endpoint: Endpoint, examples: list[dict], cfg, title: str | None
) -> list[list[Response]]:
    """--samples responses to each example; one without a reply has the text None."""
    requests = [(i, n) for i in range(len(examples)) for n in range(cfg.samples)]
    size = 4 * endpoint.in_flight  # images are encoded batch by batch: all of them fill the memory
    responses: list[list[Response]] = [[] for _ in examples]

    starts = range(0, len(requests), size)
    for start in progress(starts, title or "", show=title is not None):
        batch = requests[start : start + size]
        replies = endpoint.ask_all([request_body(examples[i], n, cfg) for i, n in batch])
        for (i, _), reply in zip(batch, replies):
            response = Response(None, False) if reply is None else Response(reply.text, reply.cut)
            responses[i].append(response)
    return responses


def request_body(example: dict, number: int, cfg) -> dict:
    """The request for one sample. Its seed makes it another request than the other samples'."""
    images = iter(example["images"])
    question = full_question(example)
    content = []
    for part in chat_messages(question, len(example["images"]), example["id"])[0]["content"]:
        if part["type"] == "image":
            url = data_url(load_image(next(images), example["id"]))
            part = {"type": "image_url", "image_url": {"url": url}}
        content.append(part)
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": cfg.max_new_tokens,
        "temperature": cfg.temperature,
        "seed": 10_000 * cfg.seed + number,
    }


def data_url(image) -> str:
    """An image inside of a URL, as PNG, which loses nothing."""
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
