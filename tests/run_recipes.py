"""Runs rows of a recipe table, one after another, in one process.

``python tests/run_recipes.py RUNS.json``: a list of runs, each with `name`,
`script` and `arguments`. What went wrong with a run is left in `errors.json`
beside the list, by its name; how long each took is printed. Starting a process
for each run would take longer than the runs.
"""

import functools
import json
import runpy
import sys
import time
import traceback
from pathlib import Path

import torch
from speechbrain.utils import logger


def main(path: Path) -> None:
    torch.set_num_threads(1)
    # What is installed stays the same; asking pip takes half a second.
    describe = functools.cache(logger.get_environment_description)
    logger.get_environment_description = describe
    errors = {}
    for run in json.loads(path.read_text()):
        start = time.process_time()
        sys.argv = [run["script"], *run["arguments"]]
        try:
            runpy.run_path(run["script"], run_name="__main__")
        except (Exception, SystemExit):
            errors[run["name"]] = traceback.format_exc()
        seconds = time.process_time() - start
        print(f"{seconds:6.2f} s of CPU: {run['name']}", flush=True)
    path.with_name("errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
