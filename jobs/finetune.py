"""Fine-tune a model on your own sounds, given as a table of files or one folder per class.

python jobs/finetune.py --data sounds.csv --init MIT/ast-finetuned-audioset-10-10-0.4593
python jobs/finetune.py --data recordings/ --size tiny --no-use-gpu

sounds.csv has the columns path,labels (labels separated by ;) and optionally start,end (seconds) and split (train,
valid, eval or test). Without splits, a fifth of the files is held out for evaluation.
"""

import sys

from jobs.command_line.cli import CommandLine
from jobs.own_sounds.settings import FinetuneConfig


def preset() -> FinetuneConfig:
    """Fine-tune a model on your own sounds.

    Command: python jobs/finetune.py --data sounds.csv --init MIT/ast-finetuned-audioset-10-10-0.4593
    Cost: 1,600 samples of 783 GFLOP for 50 clips of 10 s, and 200,000 samples for 50,000 clips.
    Result: accuracy on the held-out files if each clip has one label, else mAP. Both depend on the sounds.
    """
    return FinetuneConfig()


COMMAND_LINE = CommandLine("jobs.own_sounds.finetune:finetune", {"finetune": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
