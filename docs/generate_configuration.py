"""Write ``docs/configuration.md`` and ``baseline_config.yaml`` from the fields declared in ``denoise.config``.

python docs/generate_configuration.py           write both
python docs/generate_configuration.py --check   write nothing; exit 1 when a committed file is stale
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from denoise.config.reference import baseline_yaml, configuration_markdown

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """Write or check both files below ``root``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md and baseline_config.yaml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args(arguments).check
    stale = [
        path
        for path, text in (
            (root / "docs" / "configuration.md", configuration_markdown()),
            (root / "baseline_config.yaml", baseline_yaml()),
        )
        if not _holds(path, text, write=not check)
    ]
    for path in stale:
        sys.stderr.write(f"{path} is stale; run `python docs/generate_configuration.py` and commit the result\n")
    return 1 if stale else 0


def _holds(path: Path, text: str, *, write: bool) -> bool:
    if write:
        path.write_text(text, encoding="utf-8")
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
