# SPDX-License-Identifier: Apache-2.0
"""`pytest tests/golden --records DIR` checks any folder of golden records."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--records",
        action="append",
        default=None,
        metavar="DIR",
        help="folder of golden records, searched for *.json.gz; may be given several times",
    )
