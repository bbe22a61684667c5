"""Log-probabilities of a frozen model: computed once, and kept in a file for later runs.

A file is named by a hash of all that its numbers depend on, so it can be wrong only if the code
that scores has changed: whoever changes it deletes the folder.
"""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from harness.ranks import gather_objects
from model.qwen import Policy
from model.sharding import whole_weights


def load_or_compute(file: Path, compute: Callable[[], Tensor], accelerator) -> Tensor:
    """The tensor in `file`; if it is not there, it is computed and saved.

    All ranks load, or all compute: one that computed alone would wait for the others for ever.
    """
    if all(gather_objects(file.exists(), accelerator)):
        accelerator.print(f"reference log-probs: {file}")
        return load_file(file)["logp_ref"]

    logp_ref = compute()
    if accelerator.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name that no other process has: another run may write the same file.
        partial = file.with_name(f"{uuid.uuid4().hex}.partial")
        save_file({"logp_ref": logp_ref}, partial)
        partial.replace(file)
    return logp_ref


def reference_key(policy: Policy, data_digest: str, accelerator) -> str:
    """A hash of precision, data, suppressed ids and weights; each rank hashes a part of these."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    digests = {}
    for i, (name, weight) in enumerate(whole_weights(policy)):
        if i % world_size == rank:
            digests[name] = hashlib.sha256(as_bytes(weight)).hexdigest()
    all_digests = {}
    for digests_of_rank in gather_objects(digests, accelerator):
        all_digests |= digests_of_rank

    weights = str(sorted(all_digests.items()))
    suppressed = hashlib.sha256(as_bytes(policy.suppressed)).hexdigest()
    depends_on = [str(accelerator.mixed_precision), data_digest, suppressed, weights]
    return hashlib.sha256("/".join(depends_on).encode()).hexdigest()


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(uint8).numpy().tobytes()
