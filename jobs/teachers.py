r"""Import published scores of a teacher model, or make scores with your own models, for --train.teachers.

python jobs/teachers.py import --root data/audioset --name passt --scores passt_enemble_logits_mAP_495.npy \
    --index fname_to_index.pkl --stated-map 0.495
python jobs/teachers.py make --root data/audioset --name mine --checkpoints A B C --split unbalanced_train
python jobs/teachers.py list --root data/audioset
"""

import sys

import tyro

from jobs.checkpoints.teacher_settings import ImportTeacher, ListTeachers, MakeTeacher
from jobs.command_line.cli import CommandLine


def import_teacher() -> ImportTeacher:
    """Match published scores to a snapshot's clips, grade them against the labels, and store them."""
    return ImportTeacher(name=tyro.MISSING, scores=tyro.MISSING)


def make_teacher() -> MakeTeacher:
    """Score splits with one or several models, grade the mean by the labels, and store it."""
    return MakeTeacher(name=tyro.MISSING, checkpoints=tyro.MISSING)


COMMAND_LINE = CommandLine(
    {
        ImportTeacher: "jobs.checkpoints.teachers:import_teacher",
        MakeTeacher: "jobs.checkpoints.teachers:make_teacher",
        ListTeachers: "jobs.checkpoints.teachers:show_teachers",
    },
    {"import": import_teacher, "make": make_teacher, "list": ListTeachers},
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
