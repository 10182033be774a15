"""What is installed, from a prefix that was moved after the installation: the library and its symbols, the examples
built against it in every way that the README names, the Python module, the manual pages, and the program itself."""

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

import support
from support import PROGRAM, Server, Skip, answer_of, expect, expect_equal, main, run, test

BUILD = os.path.dirname(os.path.abspath(PROGRAM))
WORK = tempfile.TemporaryDirectory()
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
EXAMPLES = ("ask_once", "many_streams", "event_loop")
NO_LIBRARY_PATH = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}


def do(*command, environment=None, **more):
    """Runs a command that must succeed; returns its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=WORK.name,
                          env={**NO_LIBRARY_PATH, **(environment or {})}, **more)
    expect_equal(done.returncode, 0, f"exit code of {' '.join(command)} ({done.stdout[-2000:]} {done.stderr[-2000:]})")
    return done.stdout


def install(prefix, *components):
    for component in components:
        do("cmake", "--install", BUILD, "--prefix", prefix, "--component", component)


def files_of(prefix):
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(prefix) for name in names]
    return {os.path.relpath(path, prefix) for path in paths}


@functools.lru_cache(maxsize=None)
def prefix():
    """Both components, installed in one place and moved to another."""
    first, second = os.path.join(WORK.name, "first"), os.path.join(WORK.name, "second")
    install(first, "runtime", "dev")
    os.rename(first, second)
    return second


def only(pattern):
    """The one file of the prefix that the pattern fits: lib/ may be lib64/ or lib/x86_64-linux-gnu/."""
    found = glob.glob(os.path.join(prefix(), pattern), recursive=True)
    expect_equal(len(found), 1, f"number of {pattern}")
    return found[0]


def library_folder():
    return os.path.dirname(only("lib*/**/libtandem_client.so"))


def pkg_config(*flags):
    return do("pkg-config", *flags, "tandem_client",
              environment={"PKG_CONFIG_PATH": os.path.join(library_folder(), "pkgconfig")}).split()


def compile_c(name, out, *libraries, compiler=("cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L")):
    do(*compiler, *STRICT, name, "-o", out, *pkg_config("--cflags"), *libraries)
    return os.path.join(WORK.name, out)


def example(name):
    return only(f"share/doc/**/examples/{name}.c")


def start():
    """The installed program with an installed configuration."""
    support.PROGRAM = os.path.join(prefix(), "bin", "tandem")
    server = Server(config=os.path.join(prefix(), "share", "tandem", "configs", "cpu-x1.yaml"))
    support.PROGRAM = PROGRAM
    server.tcp = f"{server.host}:{server.tcp_port}"
    return server


def expect_answers(programs, server, environment=None):
    """Each of the three examples, by name, answers as the model does."""
    out = do(programs["ask_once"], server.tcp, "What is 407 - 1295?", environment=environment)
    expect_equal(answer_of(out), "-888", "the answer")
    lines = do(programs["many_streams"], server.tcp, environment=environment).splitlines()
    expect_equal(len(lines), 64, "answers")
    for line in lines:
        a, b = map(int, re.match(r"What is (\d+) \+ (\d+)\?", line).groups())
        expect_equal(answer_of(line), str(a + b), f"the answer in {line!r}")
    out = do(programs["event_loop"], server.tcp, environment=environment, input="What is 20 + 30?\nWhat is 5 * 6?\n")
    pieces = re.findall(r"^(\d+): (.*)$", out, re.MULTILINE)
    for number, answer in (("1", "50"), ("2", "30")):
        text = "".join(piece for of, piece in pieces if of == number)
        expect_equal(answer_of(text), answer, f"answer {number}")


@test
def components_hold_what_they_should():
    runtime, both = os.path.join(WORK.name, "runtime"), files_of(prefix())
    install(runtime, "runtime")
    alone = files_of(runtime)
    expect(not any(re.search(r"\.(h|a|pc|c|cmake)$|client\.so$|\.3\.gz$", name) for name in alone), f"runtime: {alone}")
    for pattern in ("bin/tandem", r"lib.*/libtandem_client\.so\.0", r".*/tandem_client\.py",
                    r"share/man/man1/tandem\.1\.gz", r"share/tandem/configs/h100-x2\.yaml",
                    r"share/tandem/configs/models/tandem-r1-tiny/model\.safetensors"):
        expect(any(re.fullmatch(pattern, name) for name in alone), f"no {pattern} in runtime")
    for pattern in (r"include/tandem/(client|loop|epoll|uv)\.h", r"lib.*/libtandem_client\.(a|so)",
                    r"lib.*/pkgconfig/tandem_client\.pc", r"lib.*/cmake/tandem/tandem-config(-version)?\.cmake",
                    r"share/man/man3/tandem_client\.3\.gz", r"share/doc/tandem/examples/.*\.(c|txt)"):
        expect(any(re.fullmatch(pattern, name) for name in both - alone), f"no {pattern} in dev")
    headers = {name for name in both if name.startswith("include/")}
    expect_equal(len(headers), 4, f"headers ({headers})")


@test
def only_versioned_public_symbols_are_visible():
    lines = do("nm", "-D", "--defined-only", only("lib*/**/libtandem_client.so")).splitlines()
    names = [line.split()[-1] for line in lines]
    expect("tandem_client_create@@TANDEM_0.1" in names, f"symbols: {names}")
    for name in names:
        expect(re.fullmatch(r"tandem_\w+@@TANDEM_\d+\.\d+|TANDEM_\d+\.\d+(@@TANDEM_\d+\.\d+)?", name), f"symbol {name}")
    lines = do("nm", "-g", "--defined-only", only("lib*/**/libtandem_client.a")).splitlines()
    names = [line.split()[-1] for line in lines if " " in line]
    expect(names and all(name.startswith("tandem_") for name in names), f"symbols of the archive: {names}")


@test
def libraries_and_program_name_no_places():
    for name in ("lib*/**/libtandem_client.so.0", "lib*/**/tandem/tandem"):
        entries = do("readelf", "-d", only(name))
        expect("RPATH" not in entries and "RUNPATH" not in entries, f"{name}: {entries}")
    needed = re.findall(r"NEEDED.*\[(.*)\]", do("readelf", "-d", only("lib*/**/libtandem_client.so.0")))
    expect(all(re.match(r"(libc|ld-linux.*)\.so", name) for name in needed), f"needs {needed}")


@test(seconds=120)
def examples_are_built_by_pkg_config():
    shared = {name: compile_c(example(name), name, *pkg_config("--libs")) for name in EXAMPLES}
    archive = os.path.join(library_folder(), "libtandem_client.a")
    static = {name: compile_c(example(name), f"{name}_static", archive) for name in EXAMPLES}
    server = start()
    expect_answers(shared, server, {"LD_LIBRARY_PATH": library_folder()})
    expect_answers(static, server)
    server.stop()


@test(seconds=120)
def examples_are_built_by_cmake():
    source = os.path.join(WORK.name, "cmake")
    shutil.copytree(os.path.dirname(example("ask_once")), source)
    with open(os.path.join(source, "CMakeLists.txt"), "a") as file:
        file.write("add_executable(static ask_once.c)\ntarget_link_libraries(static PRIVATE tandem::client_static)\n")
    do("cmake", "-G", "Ninja", "-S", source, "-B", f"{source}/build", f"-DCMAKE_PREFIX_PATH={prefix()}")
    do("cmake", "--build", f"{source}/build")
    programs = {name: f"{source}/build/{name}" for name in EXAMPLES}
    server = start()
    expect_answers(programs, server)
    expect_answers({**programs, "ask_once": f"{source}/build/static"}, server)
    server.stop()


@test
def headers_are_cpp_too():
    if shutil.which("c++") is None:
        raise Skip("no C++ compiler")
    with open(os.path.join(WORK.name, "plain.cc"), "w") as file:
        file.write("#include <tandem/client.h>\n#include <tandem/epoll.h>\n#include <tandem/uv.h>\n"
                   "int main() {\n    struct tandem_client *client;\n    struct tandem_options options = {};\n"
                   "    return tandem_client_create(&options, &client) == TANDEM_MISUSE ? 0 : 1;\n}\n")
    program = compile_c("plain.cc", "plain", *pkg_config("--libs"), compiler=("c++", "-std=c++11"))
    do(program, environment={"LD_LIBRARY_PATH": library_folder()})


@test
def the_python_module_finds_the_library():
    server = start()
    code = (f"import tandem_client\nwith tandem_client.Client(['{server.tcp}']) as client:\n"
            "    stream = client.generate(messages=[{'role': 'user', 'content': 'What is 12 + 30?'}], temperature=0)\n"
            "    print(''.join(event.text for event in stream))\n")
    folder = os.path.dirname(only("lib*/**/tandem_client.py"))
    out = do(sys.executable, "-B", "-c", code, environment={"PYTHONPATH": folder})
    expect_equal(answer_of(out), "42", "the answer")
    server.stop()


@test
def the_program_finds_what_lies_in_the_prefix():
    server = start()
    expect_equal(answer_of(server.chat("What is 12 * 34?")["message"]["content"]), "408", "the answer")
    server.stop()
    tandem = os.path.join(prefix(), "bin", "tandem")
    shown = do(tandem, "config", "show", os.path.join(prefix(), "share", "tandem", "configs", "h100-x2.yaml"))
    expect(f"model: {prefix()}/share/tandem/configs/models/tandem-r1-tiny\n" in shown, shown)
    plugin = os.path.join(BUILD, "tests", "cpu_as_cuda.so")
    if not os.access(plugin, os.R_OK):
        raise Skip(f"{plugin} is not there: build the target all")
    installed = os.path.join(os.path.dirname(only("lib*/**/tandem/tandem")), "tandem_cuda13.so")
    shutil.copy(plugin, installed)
    cards = do(tandem, "probe")
    os.remove(installed)
    expect(cards.startswith("card 0: Test Card 0"), cards)


@test
def manual_pages_are_well_formed():
    pages = glob.glob(os.path.join(prefix(), "share", "man", "man*", "*.gz"))
    expect_equal(len(pages), 2, "pages")
    checks = {"man": ["man", "--warnings", "-E", "UTF-8", "-l"], "mandoc": ["mandoc", "-T", "lint", "-W", "warning"]}
    found = [command for program, command in checks.items() if shutil.which(program)]
    for page in pages:
        for command in found:
            done = subprocess.run([*command, page], capture_output=True, text=True, timeout=60,
                                  env={**os.environ, "MANWIDTH": "80", "PAGER": "cat", "MAN_KEEP_FORMATTING": "0"})
            complaints = done.stderr if command[0] == "man" else done.stdout + done.stderr
            expect_equal((done.returncode, complaints), (0, ""), f"{' '.join(command)} {page}")
        if page.endswith("tandem_client.3.gz"):
            text = do("gzip", "-dc", page)
            header = open(only("include/tandem/client.h")).read()
            for name in sorted(set(re.findall(r"TANDEM_API [^;(]*?(tandem_\w+)\(", header))):
                expect(f"Fn {name} " in text, f"{page} says nothing of {name}")
    if not found:
        raise Skip("neither man nor mandoc is installed")


if __name__ == "__main__":
    main()
