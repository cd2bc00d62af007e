"""The console command `audioset-ast`, with each entry point of `jobs/` as a subcommand.

audioset-ast --help
audioset-ast preprocess run --media youtube --root /data/audioset
"""

import difflib
import importlib
import pkgutil
import sys

from jobs.command_line.program import CONSOLE, ENTRY_POINTS

EXIT_USAGE = 2


def main() -> int:
    """Run the entry point that the first argument names; return its exit code."""
    name, *argv = sys.argv[1:] or [""]
    commands = [module.name for module in pkgutil.iter_modules([str(ENTRY_POINTS)]) if not module.ispkg]
    if name in commands:
        return importlib.import_module(f"jobs.{name}").COMMAND_LINE.main(argv)
    if name in ("-h", "--help", ""):
        print(_describe_commands(commands))
        return 0 if name else EXIT_USAGE
    close = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean {close[0]}?" if close else f"`{CONSOLE} --help` lists them"
    print(f"expected a command, one of {', '.join(commands)}, found {name!r}; {hint}", file=sys.stderr)
    return EXIT_USAGE


def _describe_commands(commands: list[str]) -> str:
    width = max(map(len, commands))
    summaries = ((importlib.import_module(f"jobs.{name}").__doc__ or "").partition("\n")[0] for name in commands)
    lines = (f"  {name:{width}}  {summary}" for name, summary in zip(commands, summaries, strict=True))
    return "\n".join([f"usage: {CONSOLE} COMMAND …", "", *lines, "", f"`{CONSOLE} COMMAND --help` shows its flags."])
