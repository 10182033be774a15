"""What the scripts of this folder share. Importing it makes tests/e2e/support.py importable."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))


def used_mib():
    """Memory in use on each card, of all processes."""
    done = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def plan_lines(server):
    """The start-up table: weights, KV and other memory of each rank, blocks, interconnect."""
    lines = server.errors().splitlines()
    return [line.strip() for line in lines if line.startswith("  ") and line.strip()]
