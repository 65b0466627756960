"""Runs commands that meet a full disk, each in a fork, so that the imports are paid for once.

stdin is a JSON list of jobs: the folder to work in, the arguments of autointerp, where the files may not grow any more
(`at`: run, report or export), and to what size (`bytes`; None: without limit). Each child leaves `stderr` and `code`.
"""

import json
import os
import resource
import sys
import traceback
from typing import Any

import torch

from autointerp import cli, export, report, sweep


def limit(n: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def limit_when_called(module: Any, n: int) -> None:
    write = module.write

    def limited(*given: Any) -> Any:
        limit(n)
        return write(*given)

    module.write = limited


def child(job: dict[str, Any]) -> int:
    os.chdir(job["folder"])
    # The limit is for files of the command: what it says goes into a pipe.
    sys.argv = ["autointerp", *job["arguments"]]
    sweep.CHECKPOINT_SECONDS = -1.0 if job["checkpoints"] else 1e9
    if job["bytes"] is not None:
        if job["at"] == "run":
            limit(job["bytes"])
        else:
            limit_when_called({"report": report, "export": export}[job["at"]], job["bytes"])
    try:
        cli.main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(sys.stdin.read()):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            code = child(job)
            sys.stderr.flush()
            os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        status = os.waitpid(pid, 0)[1]
        ended = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": ended, "stderr": said.decode(errors="replace")}), flush=True)


if __name__ == "__main__":
    main()
