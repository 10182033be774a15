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
EXAMPLES = "/usr/share/doc/libtandem-client-dev/examples"


def do(*command, **more):
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, **more)
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


def use(debian):
    """Examples and program of the installed packages, all inside."""
    debian.run(f"cd /tmp && for e in ask_once many_streams event_loop; do cc -Wall -Wextra -Werror {EXAMPLES}/$e.c -o $e "
               "$(pkg-config --cflags --libs tandem_client); done")
    debian.run(f"cmake -S {EXAMPLES} -B /tmp/cmake && cmake --build /tmp/cmake")
    out = debian.run("cd /tmp; tandem serve /usr/share/tandem/configs/cpu-x2.yaml --set http.port=0 --set tcp.port=0 "
                     ">ready 2>errors & until grep -q ^ready /tmp/ready; do kill -0 $!; sleep 0.1; done; "
                     "address=$(sed 's/.*tcp=//' ready); ./ask_once $address 'What is 407 - 1295?'; "
                     "./many_streams $address | wc -l; cmake/ask_once $address 'What is 12 * 34?'; "
                     "python3 -c \"from tandem_client import Client; import sys; print(''.join(event.text for event in "
                     "Client([sys.argv[1]]).generate(messages=[{'role': 'user', 'content': 'What is 5 * 6?'}], "
                     "temperature=0)))\" $address; kill $!; wait $!; rm -r ready errors cmake ask_once many_streams event_loop")
    show("the examples by pkg-config and CMake, and the Python module, ask the packaged program", out)
    lines = out.splitlines()
    expect_equal([answer_of(line) for line in lines], ["-888", "64", "408", "30"], "answers")


@test(seconds=3600)
def packages_are_built_checked_installed_and_removed():
    for program in ("cpack", "dpkg-shlibdeps", "debootstrap"):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")
    if os.geteuid() != 0:
        raise Skip("not root")
    debs = build()
    for deb in debs:
        show(os.path.basename(deb), do("dpkg-deb", "--field", deb, "Depends", "Installed-Size") + do("dpkg-deb", "-c", deb))
    if shutil.which("lintian"):
        done = subprocess.run(["lintian", "--profile", "debian", "--allow-root", "--pedantic", "-I", *debs],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        show("lintian", done.stdout)
        expect("\nE: " not in f"\n{done.stdout}", "lintian sees errors")
    with tempfile.TemporaryDirectory() as folder:
        debian = Debian(folder, debs)
        try:
            before = debian.files()
            show("apt-get install", debian.run("apt-get -o Dpkg::Use-Pty=0 install -y -q --no-install-recommends /tmp/*.deb"))
            print(f"{len(debian.files() - before)} files and folders are new")
            use(debian)
            show("apt-get purge", debian.run(f"apt-get -o Dpkg::Use-Pty=0 purge -y -q --autoremove {' '.join(PACKAGES)}"))
            left, gone = debian.files() - before, before - debian.files()
            print(f"left: {sorted(left)}; gone: {sorted(gone)}")
            expect(not left and not gone, "the removal is not clean")
        finally:
            debian.free()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
