# SPDX-License-Identifier: Apache-2.0
"""The command line: `visionattn train | evaluate | predict | convert | export | benchmark | study | zoo | …`."""

from collections.abc import Sequence

# Commands are listed in the order of these imports.
from visionattn.cli import training  # isort: skip
from visionattn.cli import files  # isort: skip
from visionattn.cli import measuring  # isort: skip
from visionattn.cli import listing  # isort: skip
from visionattn.cli._common import advice, app

__all__ = ["advice", "app", "files", "listing", "main", "measuring", "training"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments`, or the process's own."""
    app(args=None if arguments is None else list(arguments), prog_name="visionattn")
