r"""Bring a teacher's published scores into a store, for --train.teachers.

python jobs/teachers.py import --root data/audioset --name passt --scores passt_enemble_logits_mAP_495.npy \
    --index fname_to_index.pkl --stated-map 0.495
python jobs/teachers.py list --root data/audioset
"""

import sys

import tyro

from jobs.launch.cli import CommandLine
from jobs.launch.config.training import ImportTeacher, ListTeachers


def import_teacher() -> ImportTeacher:
    """Match scores with a snapshot's clips by id, grade them by its labels, and keep them."""
    return ImportTeacher(name=tyro.MISSING, scores=tyro.MISSING)


COMMAND_LINE = CommandLine(
    {
        ImportTeacher: "jobs.launch.teachers:import_teacher",
        ListTeachers: "jobs.launch.teachers:show_teachers",
    },
    {"import": import_teacher, "list": ListTeachers},
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
