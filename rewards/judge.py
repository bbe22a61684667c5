"""A language model that answers yes or no, where rules cannot decide."""

import hashlib
import json
import os
import re
import time
from pathlib import Path


class Judge:
    """A model behind an OpenAI-compatible endpoint.

    The key comes from the environment variable JUDGE_API_KEY and is never written anywhere. Answers
    are cached on disk, so that a run repeated asks nothing twice.
    """

    def __init__(
        self, url: str, model: str, cache: Path, retries: int = 3, timeout_s: float = 30.0
    ):
        from huggingface_hub import InferenceClient, constants

        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                "--judge_url: HF_HUB_OFFLINE is set, so the judge cannot be asked; unset it"
            )
        api_key = os.environ.get("JUDGE_API_KEY")
        self.client = InferenceClient(base_url=url, api_key=api_key, timeout=timeout_s)
        self.model, self.cache, self.retries = model, cache, retries
        cache.mkdir(parents=True, exist_ok=True)

    def yes(self, question: str) -> bool | None:
        """Ask. True or False; None if no clear answer could be had."""
        key = hashlib.sha256(f"{self.model}\n{question}".encode()).hexdigest()
        file = self.cache / f"{key}.json"
        if file.exists():
            return json.loads(file.read_text())["yes"]

        for attempt in range(self.retries):
            try:
                reply = self.client.chat_completion(
                    messages=[{"role": "user", "content": question}],
                    model=self.model,
                    max_tokens=8,
                    temperature=0.0,
                )
            except Exception:  # whatever the HTTP stack raises: the judge is not there
                time.sleep(0.5 * 2**attempt)
                continue

            words = re.findall(r"[a-z]+", (reply.choices[0].message.content or "").lower())
            if words and words[0] in ("yes", "no"):
                verdict = words[0] == "yes"
                file.write_text(json.dumps({"question": question, "yes": verdict}))
                return verdict
        return None


def make_judge(cfg, folder: Path) -> Judge | None:
    """The judge of a stage's settings, its cache in `folder`; None without --judge_url."""
    if not cfg.judge_url:
        return None
    return Judge(cfg.judge_url, cfg.judge_model, folder / "judge")
