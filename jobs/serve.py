"""Serve a model over HTTP: tags, embeddings, and a page to try it.

python jobs/serve.py --checkpoint data/demo/runs/RUN/average
python jobs/serve.py --checkpoint MIT/ast-finetuned-audioset-10-10-0.4593 --port 8080
python jobs/serve.py --checkpoint models:/audioset-ast@champion --root data/demo
python jobs/serve.py --checkpoint data/demo/runs/RUN/average --host 0.0.0.0 --token-file token.txt
"""

import sys

import tyro

from jobs.command_line.cli import CommandLine
from jobs.service.settings import ServeConfig


def serve() -> ServeConfig:
    """Serve a model over HTTP with Ray Serve, with a page to try it."""
    return ServeConfig(checkpoint=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.service.serve:serve_model", {"serve": serve})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
