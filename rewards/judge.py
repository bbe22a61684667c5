"""A language model that answers yes or no, where rules cannot decide."""

import hashlib
import json
import os
import re
import time
from pathlib import Path

REFUSED = (401, 403, 404)  # HTTP: no valid key, no permission, no such URL or model


class Judge:
    """A model behind an OpenAI-compatible endpoint.

    url         --judge_url
    model       name of the model at that endpoint
    cache       folder of the answers, one file per question: --resume asks nothing twice
    retries     how often a question is asked until there is a clear answer
    timeout_s   seconds to wait for one answer

    The key comes from the environment variable JUDGE_API_KEY and is never written anywhere.
    Raises ValueError if HF_HUB_OFFLINE is set, since the client then sends nothing.
    """

    def __init__(
        self, url: str, model: str, cache: Path, retries: int = 3, timeout_s: float = 30.0
    ):
        # Imported only with a judge: this import takes a second or two.
        from huggingface_hub import InferenceClient, constants

        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                "--judge_url: HF_HUB_OFFLINE is set, so the judge cannot be asked; unset it"
            )
        api_key = os.environ.get("JUDGE_API_KEY")
        self.client = InferenceClient(base_url=url, api_key=api_key, timeout=timeout_s)
        self.url = url
        self.model = model
        self.cache = cache
        self.retries = retries
        cache.mkdir(parents=True, exist_ok=True)

    def yes(self, question: str) -> bool | None:
        """The answer to a yes-or-no question, from the cache or from the model.

        Returns None if there was no clear answer; None is not cached.
        Raises ValueError if the endpoint refuses the key or does not know the URL or the model.
        """
        key = hashlib.sha256(f"{self.model}\n{question}".encode()).hexdigest()
        file = self.cache / f"{key}.json"
        if file.exists():
            return json.loads(file.read_text())["yes"]

        verdict = self.ask(question)
        if verdict is not None:
            # The ranks share the cache. With a rename, no rank reads a file that is half written.
            partial = file.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps({"question": question, "yes": verdict}))
            os.replace(partial, file)
        return verdict

    def ask(self, question: str) -> bool | None:
        """Ask the model, again after a failure or an unclear answer. See `yes`."""
        for attempt in range(self.retries):
            if attempt > 0:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                reply = self.client.chat_completion(
                    messages=[{"role": "user", "content": question}],
                    model=self.model,
                    max_tokens=8,
                    temperature=0.0,
                )
            except Exception as error:  # any error of the network: perhaps it works the next time
                self.stop_if_refused(error)
                continue

            verdict = parse_verdict(reply.choices[0].message.content or "")
            if verdict is not None:
                return verdict
        return None

    def stop_if_refused(self, error: Exception) -> None:
        """Raise ValueError for an error that a retry cannot mend: a wrong key, URL or model."""
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in REFUSED:
            raise ValueError(
                f"--judge_url {self.url}: the judge refused the request (HTTP {status}); check "
                "--judge_url, --judge_model and the environment variable JUDGE_API_KEY"
            ) from error


def parse_verdict(reply: str) -> bool | None:
    """True or False if the first word of the reply is yes or no, else None.

    >>> parse_verdict("Yes, it is."), parse_verdict("no"), parse_verdict("Perhaps yes")
    (True, False, None)
    """
    words = re.findall(r"[a-z]+", reply.lower())
    first_word = words[0] if words else ""
    return {"yes": True, "no": False}.get(first_word)


def make_judge(cfg, folder: Path) -> Judge | None:
    """The judge of a stage's settings, its cache in `folder`; None without --judge_url."""
    if not cfg.judge_url:
        return None
    return Judge(cfg.judge_url, cfg.judge_model, folder / "judge")
