"""Runs `tokenize` in processes that are killed; a script for a test.

It loads the model once and forks, so that an attempt costs no start:
``python tests/kill_tokenize.py MODE SOURCE OUT``. It prints, as JSON, how many
attempts were killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.inference import PretrainedFocalCodec

SEED = 5
KILLS = 8


def attempt(
    source: Path,
    out: Path,
    interface: PretrainedFocalCodec,
    prepare: Callable[[], object] = lambda: None,
    kill_after: float | None = None,
) -> bool:
    """Run once, in a process of its own; True when it was killed."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            prepare()
            tokenize(
                source,
                out,
                interface,
                workers=0,
                items_per_shard=4,
                max_failures=0.5,
            )
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"ended with {code}")
    return code != 0


def kill_at_rename(number: int, after: bool) -> None:
    """Have this process killed around its n-th rename."""
    rename, calls = os.replace, 0

    def replace(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def main() -> None:
    """Kill until it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("renames", "random"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not live on in a fork
    interface = PretrainedFocalCodec.from_pretrained(
        "tests/parity/offline_50hz", run_opts={"device": "cpu"}
    )
    pa.array([0.5])  # imports what each attempt would
    begun = time.monotonic()
    attempt(args.source, args.out / "whole", interface)
    seconds = time.monotonic() - begun
    killed = 0
    if args.mode == "renames":
        for after in (False, True):
            number = 0
            while True:
                number += 1
                out = args.out / f"{number}-{after}"
                if not attempt(
                    args.source,
                    out,
                    interface,
                    lambda n=number, a=after: kill_at_rename(n, a),
                ):
                    shutil.rmtree(out)
                    break
                killed += 1
                attempt(args.source, out, interface)
    else:
        generator = random.Random(SEED)
        folders = 0
        while killed < KILLS or folders < 3:
            out, before = args.out / str(folders), killed
            while killed < before + KILLS and attempt(
                args.source,
                out,
                interface,
                kill_after=generator.uniform(0, seconds),
            ):
                killed += 1
            attempt(args.source, out, interface)
            folders += 1
            # The machine may have been busier when the time was taken.
            seconds *= 0.8 if killed == before else 1.0
    print(json.dumps({"killed": killed}))


if __name__ == "__main__":
    main()
