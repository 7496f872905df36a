"""The `lichen` command, also as `python -m lichen`: Ctrl-C is one word from the first import on."""

import sys


def main() -> None:
    try:
        from lichen.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
