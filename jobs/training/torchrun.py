"""Run torchrun with the exit code of its ranks, which is 75 if they saved after SIGTERM.

python -m jobs.training.torchrun --nproc-per-node 8 jobs/train.py audioset_full --root /data/audioset

torchrun itself forwards SIGTERM to its ranks and waits for them, but then exits with 1 and a traceback, as if they had
failed. A scheduler could then not distinguish a run to resume from a broken run.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pipeline.errors import StoppedError


def main() -> int:
    try:
        run.main()
    except SignalException:
        return StoppedError.exit_code
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
