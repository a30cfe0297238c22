"""Tests of accelerated models with older transformers, each in a folder of its own: versions.py [VERSION ...]

A version is installed with what it needs into a scratch folder that stands before the environment's own packages.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("4.48.3", "4.57.3", "5.6.2")
TESTS = ("tests/integrations/test_live_parity.py", "tests/integrations/test_live_objects.py")


def run(version: str) -> bool:
    """Whether the tests pass with that version."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, f"transformers=={version}"]
        subprocess.run(command, check=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        found = subprocess.run(
            [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert found.stdout.strip() == version, f"{found.stdout} was imported, not {version}"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    chosen = sys.argv[1:] or VERSIONS
    failed = [version for version in chosen if not run(version)]
    print(f"failed with transformers {', '.join(failed)}" if failed else f"passed with {', '.join(chosen)}")
    sys.exit(bool(failed))
