"""What `launcher/quickstart.sh` says before it builds anything; with --cuda a script is in the place of nvidia-smi."""

import os
import subprocess
import tempfile

from support import ROOT, expect, expect_equal, main, test


def quickstart(nvidia_smi):
    """Runs it where nvidia-smi is this shell script; returns (exit code, standard error)."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "nvidia-smi")
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\n{nvidia_smi}\n")
        os.chmod(path, 0o755)
        done = subprocess.run(["launcher/quickstart.sh", "--cuda", "--once"], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, env=dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}"))
    return done.returncode, done.stderr


@test
def cards_that_are_not_served_are_named():
    for script, parts in (("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
                           ["Driver/library version mismatch", "does not list the cards"]),
                          ("true", ["the driver shows no cards"]),
                          ("echo '6.1, 535.183.01'", ["sm_61 with driver 535 is not served", "sm_70"]),
                          ("echo '7.0, 418.67'", ["sm_70 with driver 418 is not served", "450"])):
        code, errors = quickstart(script)
        expect_equal(code, 1, f"exit code of {script!r} ({errors})")
        for part in parts:
            expect(part in errors, f"{part!r} is not in {errors!r}")


@test
def a_flag_without_its_value_gets_the_usage():
    done = subprocess.run(["launcher/quickstart.sh", "--model"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    expect_equal(done.returncode, 2, f"exit code ({done.stderr})")
    expect("launcher/quickstart.sh --model smollm2" in done.stderr, done.stderr)


if __name__ == "__main__":
    main()
