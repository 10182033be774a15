"""The Debian packages: builds them, asks lintian, installs them in a fresh Debian (debootstrap, root and the network
are needed), builds and runs the examples there, removes them, and looks for what is left. Prints what it saw."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile

from support import ROOT, Skip, answer_of, expect, expect_equal, main, test

BUILD = os.path.join(ROOT, "build", "package")
SUITE = "bookworm"
TOOLS = "gcc,libc6-dev,pkgconf,cmake,make,python3"
PACKAGES = ("tandem", "libtandem-client0", "libtandem-client-dev", "python3-tandem-client")
# Not of packages: what apt, dpkg and ldconfig write for themselves.
IGNORED = ("var/lib/dpkg/", "var/lib/apt/", "var/cache/apt/", "var/cache/ldconfig/", "var/cache/debconf/", "var/log/",
           "etc/ld.so.cache")
APT = "apt-get -y -q -o Dpkg::Use-Pty=0"
EXAMPLES = "/usr/share/doc/libtandem-client-dev/examples"


def do(*command, **more):
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, **more)
    expect_equal(done.returncode, 0, f"exit code of {' '.join(command)} ({done.stdout[-3000:]})")
    return done.stdout


def build():
    """Returns the packages' files."""
    for old in glob.glob(os.path.join(BUILD, "*.deb")):
        os.remove(old)
    do("cmake", "--preset", "package", cwd=ROOT)
    do("cmake", "--build", "--preset", "package", cwd=ROOT)
    do("cpack", cwd=BUILD)
    debs = sorted(glob.glob(os.path.join(BUILD, "*.deb")))
    expect_equal(len(debs), len(PACKAGES), "packages")
    return debs


def show(title, text):
    print(f"--- {title}\n{text.rstrip()}", flush=True)


class Debian:
    """A fresh Debian in a folder."""

    def __init__(self, folder, debs):
        self.folder = folder
        do("debootstrap", "--variant=minbase", f"--include={TOOLS}", SUITE, folder)
        for deb in debs:
            shutil.copy(deb, os.path.join(folder, "tmp"))
        self.mounts = [os.path.join(folder, "proc")]
        do("mount", "-t", "proc", "proc", self.mounts[0])

    def run(self, command):
        """A shell command inside, with nothing of this host's environment but the way to the network."""
        environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        environment.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", DEBIAN_FRONTEND="noninteractive")
        return do("chroot", self.folder, "/bin/sh", "-ec", command, env=environment)

    def files(self):
        found = set()
        for folder, folders, names in os.walk(self.folder):
            if folder == self.folder:
                folders.remove("proc")
            for name in folders + names:
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if not f"{path}/".startswith(IGNORED) and not path.startswith(IGNORED):
                    found.add(path)
        return found

    def free(self):
        for mount in self.mounts:
            do("umount", mount)


# Examples, Python module and program of the installed packages, as a user would build and run them.
BUILD_EXAMPLES = f"""
cd /tmp
for example in ask_once many_streams event_loop; do
    cc -Wall -Wextra -Werror {EXAMPLES}/$example.c -o $example $(pkg-config --cflags --libs tandem_client)
done
cmake -S {EXAMPLES} -B cmake
cmake --build cmake
"""
RUN_EXAMPLES = """
cd /tmp
tandem serve /usr/share/tandem/configs/cpu-x2.yaml --set http.port=0 --set tcp.port=0 >ready 2>errors &
server=$!
until grep -q ^ready ready; do kill -0 $server; sleep 0.1; done
address=$(sed 's/.*tcp=//' ready)
./ask_once $address 'What is 407 - 1295?'
./many_streams $address | wc -l
cmake/ask_once $address 'What is 12 * 34?'
echo 'What is 5 * 6?' | cmake/event_loop $address | sed 's/^1: //' | tr -d '\n'
echo
python3 - $address <<END
import sys
from tandem_client import Client
with Client([sys.argv[1]]) as client:
    events = client.generate(messages=[{"role": "user", "content": "What is 20 + 3?"}], temperature=0)
    print("".join(event.text for event in events))
END
kill $server
wait $server
rm -r ready errors cmake ask_once many_streams event_loop
"""


def use(debian):
    debian.run(BUILD_EXAMPLES)
    out = debian.run(RUN_EXAMPLES)
    show("the examples by pkg-config and CMake, and the Python module, ask the packaged program", out)
    expect_equal([answer_of(line) for line in out.splitlines()], ["-888", "64", "408", "30", "23"], "answers")


@test(seconds=3600)
def packages_are_built_checked_installed_and_removed():
    for program in ("cpack", "dpkg-shlibdeps", "debootstrap"):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")
    if os.geteuid() != 0:
        raise Skip("not root")
    debs = build()
    for deb in debs:
        fields = do("dpkg-deb", "--field", deb, "Depends", "Installed-Size")
        show(os.path.basename(deb), fields + do("dpkg-deb", "-c", deb))
    if shutil.which("lintian"):
        done = subprocess.run(["lintian", "--profile", "debian", "--allow-root", "--pedantic", "-I", *debs],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        show("lintian", done.stdout)
        expect("\nE: " not in f"\n{done.stdout}", "lintian sees errors")
    with tempfile.TemporaryDirectory() as folder:
        debian = Debian(folder, debs)
        try:
            before = debian.files()
            show("apt-get install", debian.run(f"{APT} install --no-install-recommends /tmp/*.deb"))
            print(f"{len(debian.files() - before)} files and folders are new")
            use(debian)
            show("apt-get purge", debian.run(f"{APT} purge --autoremove {' '.join(PACKAGES)}"))
            left, gone = debian.files() - before, before - debian.files()
            print(f"left: {sorted(left)}; gone: {sorted(gone)}")
            expect(not left and not gone, "the removal is not clean")
        finally:
            debian.free()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
