"""`python -m minigan` and the command `minigan`: the command line, if what it needs is installed."""

import sys

from minigan.errors import ExtraError
from minigan.extras import needs


def main() -> int:
    """Run the command line on the arguments of the process; gives the exit code."""
    try:
        needs("typer", "cli")
        needs("rich", "cli")
    except ExtraError as error:
        print(f"minigan: the command line needs more packages: {error}", file=sys.stderr)
        return 1
    try:
        from minigan import cli  # not at the top: it imports typer

        return cli.main()
    except KeyboardInterrupt:  # before the command line has its own handler
        print("minigan: stopped by SIGINT", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
