"""Kill runs at random moments, resume them, and compare: `make chaos`.

    python tests/chaos.py --trials 50 --ranks_trials 10

A trial starts a stage, kills it (SIGKILL) after a random time, resumes it, kills that as well, and
so on, until it ends by itself. Then weights, samples and metrics must be bit-equal to those of a
run that was never killed, but for what a clock decides.

A stage runs in a fork of this process, where everything is imported already. What a fork does from
there is what the command does: it reads its command line and runs the stage. Without the seconds of
importing, nearly all kills hit the run itself.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

import build_prefs  # noqa: E402
import dpo_sft  # noqa: E402
import evaluate  # noqa: E402
import grpo  # noqa: E402
from harness.cli import parse_cli, run_stage  # noqa: E402
from harness.run import read_jsonl  # noqa: E402

BASE = str(Path(__file__).parent.parent / "toy" / "base")
BY_A_CLOCK = ("step_s", "gen%", "time")
MOST_KILLS = 6  # of one trial; then it is left to end
SECONDS_TO_NOTICE = 60  # in which a rank must see that another one is gone


@dataclass(frozen=True)
class Command:
    """A stage with its arguments."""

    name: str
    stage: object  # its module
    arguments: list[str]


def commands(pairs: Path) -> list[Command]:
    """The four commands, each a few seconds long, with a checkpoint or a part in most of them."""
    small = "--steps 4 --prompts_per_step 4 --group_size 4 --max_examples 12 --save_every 1"
    return [
        Command("grpo", grpo, [*small.split(), *"--sample_every 1 --max_new_tokens 24".split()]),
        Command("build_prefs", build_prefs,
                ["--zero", BASE, *"--max_examples 96 --sample_batch 64".split()]),
        Command("dpo_sft", dpo_sft,
                ["--pairs", str(pairs), *"--batch_pairs 8 --max_steps 5 --save_every 1".split()]),
        Command("evaluate", evaluate,
                ["--models", f"base={BASE},again={BASE}",
                 *"--items 12 --pass_items 4 --pass_samples 4 --sample_batch 12".split()]),
    ]  # fmt: skip


# --- Processes -----------------------------------------------------------------------------------


def fork(command: Command, folder: Path, *more: str, rank: int = 0, ranks: int = 1, port: int = 0,
         log: Path | None = None, limit_bytes: int | None = None) -> int:
    """Start the stage in a fork. Returns the id of its process.

    log           a file for what it prints
    limit_bytes   no file may grow beyond this: a disk that is full
    """
    process = os.fork()
    if process:
        return process

    code = 1
    try:
        with open(log or os.devnull, "a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        if ranks > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                MASTER_ADDR="localhost", MASTER_PORT=str(port),
            )  # fmt: skip
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        torch.set_num_threads(1)
        argv = [*command.arguments, "--run_dir", str(folder), *more]
        run_stage(command.stage.main, parse_cli(command.stage.Config, "", argv))
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, seconds: float) -> int | None:
    """The exit status of a process, None if it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


# --- What must be equal --------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, object]:
    """What a run leaves, by file name: bytes, or records without what a clock decides."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if not file.is_file() or name in (".lock", "config.json", "curves.png", "report.png"):
            continue
        if name.startswith(("judge/", "tensorboard/")):
            continue
        if name in ("metrics.jsonl", "samples.jsonl"):
            records = read_jsonl(file)
            found[name] = [without_clock(record) for record in records]
        elif file.suffix == ".pt":
            found[name] = repr(torch.load(file, weights_only=True))
        else:
            found[name] = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return found


def without_clock(record: dict) -> str:
    return json.dumps({name: value for name, value in record.items() if name not in BY_A_CLOCK})


def difference(folder: Path, whole: Path) -> list[str]:
    """The names of the files that are not equal."""
    a, b = contents(folder), contents(whole)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


# --- Trials --------------------------------------------------------------------------------------


def flags_to_go_on(folder: Path) -> list[str]:
    """--resume, once the run has written its settings; before that there is no run yet."""
    return ["--resume"] if (folder / "config.json").exists() else []


def trial(command: Command, whole: Path, folder: Path, seconds: float, rng: random.Random) -> str:
    """Kill and resume one run until it ends. Returns "" or what is wrong."""
    log = folder.with_suffix(".log")
    kills = 0
    while True:
        process = fork(command, folder, *flags_to_go_on(folder), log=log)
        limit = rng.uniform(0, seconds) if kills < MOST_KILLS else 600
        code = wait(process, limit)
        if code is None:
            kill(process)
            kills += 1
            continue
        if code != 0:
            return f"ended with {code} after {kills} kills: {log.read_text()[-2000:]}"
        wrong = difference(folder, whole)
        return f"{wrong} differ after {kills} kills" if wrong else ""


def ranks_trial(
    command: Command, whole: Path, folder: Path, seconds: float, rng: random.Random
) -> str:
    """Kill one of two ranks: the other must end soon, with a sentence. Then resume both."""
    kills = 0
    while True:
        log, port, more = folder.with_suffix(f".log{kills}"), free_port(), flags_to_go_on(folder)
        both = [fork(command, folder, *more, rank=rank, ranks=2, port=port, log=log)
                for rank in (0, 1)]  # fmt: skip
        victim = rng.choice(both)
        limit = rng.uniform(0, seconds) if kills < 3 else 600
        code = wait(victim, limit)
        if code is not None:
            break

        kill(victim)
        kills += 1
        other = both[1 - both.index(victim)]
        began = time.monotonic()
        code = wait(other, SECONDS_TO_NOTICE)
        if code is None:
            kill(other)
            return f"the other rank did not notice in {SECONDS_TO_NOTICE} s: {log.read_text()}"
        said = log.read_text()
        if code != 0 and "another process of this run has ended" not in said:
            return f"the other rank ended with {code}, without the sentence: {said[-2000:]}"
        print(f"    the other rank ended after {time.monotonic() - began:.1f} s", flush=True)

    codes = [code, wait(both[1 - both.index(victim)], 600)]
    if codes != [0, 0]:
        return f"ended with {codes}: {log.read_text()[-2000:]}"
    wrong = difference(folder, whole)
    return f"{wrong} differ after {kills} kills" if wrong else ""


def full_disk(command: Command, folder: Path) -> str:
    """No file may grow beyond a size that the optimizer's state passes: the old checkpoint stays.

    Returns "" or what is wrong.
    """
    log = folder.with_suffix(".log")
    code = wait(fork(command, folder, "--steps", "2", log=log), 600)
    if code != 0:
        return f"the run itself ended with {code}: {log.read_text()[-2000:]}"
    before = contents(folder)

    code = wait(fork(command, folder, "--resume", log=log, limit_bytes=100_000), 600)
    said = log.read_text()
    if code == 0 or "could not be written" not in said:
        return f"ended with {code}, and said {said[-2000:]}"
    after = contents(folder)
    for name in before:
        if name.startswith("step_00002") or name == "state.pt":
            if before[name] != after.get(name):
                return f"{name} has changed"

    code = wait(fork(command, folder, "--resume", log=log), 600)
    return "" if code == 0 else f"did not go on: {log.read_text()[-2000:]}"


def unbroken(command: Command, folder: Path, ranks: int = 1) -> float:
    """Run the stage once without a kill. Returns its seconds."""
    log, port = folder.with_suffix(".log"), free_port()
    began = time.monotonic()
    processes = [fork(command, folder, rank=rank, ranks=ranks, port=port, log=log)
                 for rank in range(ranks)]  # fmt: skip
    codes = [wait(process, 600) for process in processes]
    if any(codes):
        sys.exit(f"{command.name} ended with {codes}: {log.read_text()}")
    return time.monotonic() - began


def make_pairs(folder: Path) -> Path:
    """Pairs for dpo_sft.py to train on."""
    pairs = folder / "pairs"
    command = Command("pairs", build_prefs, ["--zero", BASE, "--max_examples", "96"])
    unbroken(command, pairs)
    return pairs


def run_trials(command: Command, count: int, root: Path, rng: random.Random, ranks: int = 1) -> int:
    """So many trials of one command. Returns how many failed."""
    if not count:
        return 0
    whole = root / f"{command.name}_{ranks}_whole"
    seconds = unbroken(command, whole, ranks)
    print(f"{command.name}, {ranks} rank(s): unbroken in {seconds:.1f} s", flush=True)

    failed = 0
    for i in range(count):
        folder = root / f"{command.name}_{ranks}_{i}"
        work = trial if ranks == 1 else ranks_trial
        wrong = work(command, whole, folder, seconds, rng)
        print(f"  {i + 1}: {wrong or 'equal'}", flush=True)
        failed += bool(wrong)
        if not wrong:
            shutil.rmtree(folder)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="over the four commands")
    parser.add_argument("--ranks_trials", type=int, default=10, help="of grpo.py on two ranks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    everything = commands(make_pairs(root))
    failed = 0
    for i, command in enumerate(everything):
        share = len(range(i, args.trials, len(everything)))
        failed += run_trials(command, share, root, rng)
    failed += run_trials(everything[0], args.ranks_trials, root, rng, ranks=2)

    wrong = full_disk(everything[0], root / "full")
    print(f"full disk: {wrong or 'the old checkpoint is whole'}")
    failed += bool(wrong)
    if failed:
        sys.exit(f"{failed} trials failed; their folders are in {root}")
    shutil.rmtree(root)
    print("all trials are equal")


if __name__ == "__main__":
    main()
