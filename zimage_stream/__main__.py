"""Entry point of the command ``zimage`` and of ``python -m zimage_stream``."""

from __future__ import annotations

from zimage_stream.cli import interrupt


def main() -> None:
    """Run the command line; at any time, Ctrl-C ends it with exit code 130."""
    interrupt.exit_at_once()
    from zimage_stream.cli.main import main as run

    try:
        run()
    except SystemExit as ended:
        interrupt.exit_if_interrupted(ended.code)
        raise
    finally:
        interrupt.exit_at_once()


if __name__ == "__main__":
    main()
