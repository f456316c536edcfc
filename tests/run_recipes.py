"""Runs rows of a recipe table, one after another, in one process.

``python tests/run_recipes.py RUNS.json``: a list of runs, each with `name`,
`script` and `arguments`. What went wrong with a run is left in `errors.json`
beside the list, by its name. Starting a process for each run would take longer
than the runs.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path

import torch


def main(path: Path) -> None:
    torch.set_num_threads(1)
    errors = {}
    for run in json.loads(path.read_text()):
        sys.argv = [run["script"], *run["arguments"]]
        try:
            runpy.run_path(run["script"], run_name="__main__")
        except Exception:
            errors[run["name"]] = traceback.format_exc()
    path.with_name("errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
