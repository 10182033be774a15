"""The Wireshark dissector over a capture of a real run: it sees every frame that the client saw, field by field, and
every checksum right. Needs tshark and the right to capture on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import tempfile

import tsp_codec as tsp
from support import ROOT, Server, Skip, expect, expect_equal, main, test, wait_for
from tsp_client import Connection, Request

SCRIPT = os.path.join(ROOT, "tests", "wireshark", "tandem_stream.lua")


def dissect(capture, port):
    """Every frame as (type, flags, stream, crc_ok, [field, ...]), in the order of the capture."""
    done = subprocess.run(["tshark", "-X", f"lua_script:{SCRIPT}", "-d", f"tcp.port=={port},tandem_stream", "-r", capture,
                           "-Y", "tandem_stream", "-T", "json", "--no-duplicate-keys", "-J", "tandem_stream"],
                          capture_output=True, text=True, timeout=60)
    expect_equal(done.returncode, 0, f"tshark's exit code ({done.stderr})")
    frames = []
    for packet in json.loads(done.stdout):
        layers = packet["_source"]["layers"].get("tandem_stream", [])
        for layer in layers if isinstance(layers, list) else [layers]:
            if "tandem_stream.type" in layer:
                fields = layer.get("tandem_stream.field", [])
                frames.append((int(layer["tandem_stream.type"]), int(layer["tandem_stream.flags"], 16),
                               int(layer["tandem_stream.stream"]), layer["tandem_stream.crc_ok"],
                               fields if isinstance(fields, list) else [fields]))
    return frames


def captured(path, packets):
    """Whether such packets are in the file, which may still be written to."""
    return subprocess.run(["tshark", "-r", path, "-Y", packets], capture_output=True, timeout=60).stdout != b""


def start_capture(path, address):
    capture = subprocess.Popen(["tshark", "-q", "-i", "lo", "-f", f"tcp port {address[1]}", "-w", path],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not any("Capturing on" in line for line in capture.stderr):
        raise Skip("tshark may not capture here")

    def knocked():  # it says so before it does
        socket.create_connection(address, timeout=30).close()
        return captured(path, "tcp.flags.syn == 1")

    wait_for(knocked, "the capture's start")
    return capture


@test(seconds=120)
def a_capture_of_a_real_run_is_decoded():
    if shutil.which("tshark") is None:
        raise Skip("tshark is not installed")
    server = Server(config="configs/cpu-x1.yaml")
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "run.pcapng")
        capture = start_capture(path, (server.host, server.tcp_port))
        connection = Connection((server.host, server.tcp_port))
        client_port = connection.socket.getsockname()[1]
        request = Request([tsp.nested(7, [tsp.text(1, "user"), tsp.text(3, "What is 12 + 30?")]), tsp.f32(15, 0),
                           tsp.u32(37, 1), tsp.text(31, "END")], credit=20)
        stream = request.submit(connection)
        while True:
            frame = connection.receive()
            seen.append(frame)
            if request.take(connection, frame):
                break
        connection.send(tsp.ACK, stream)
        connection.send(tsp.RESUME, stream + 1, [(1, request.id), tsp.u64s(3, [3])])
        seen.append(connection.receive())
        connection.send(tsp.ACK, 0, [(1, request.id)])
        connection.close()
        closed = f"tcp.srcport == {client_port} && (tcp.flags.fin == 1 || tcp.flags.reset == 1)"
        wait_for(lambda: captured(path, closed), "the connection's last packet")
        capture.terminate()
        capture.wait(20)
        frames = dissect(path, server.tcp_port)
    server.stop()
    expect(all(crc_ok in ("1", "True", True) for _, _, _, crc_ok, _ in frames), "a checksum is wrong")
    from_server = [frame for frame in frames if frame[0] in (tsp.ACCEPTED, tsp.TOKENS, tsp.DONE, tsp.ERROR)]
    expect_equal([(kind, flags, stream) for kind, flags, stream, _, _ in from_server],
                 [(kind, flags, stream) for kind, flags, stream, _ in seen], "frames of the server")
    for (_, _, _, _, shown), (kind, _, _, fields) in zip(from_server, seen):
        if kind == tsp.TOKENS:
            expect(f"offset: {tsp.number(fields, 3)}" in shown, shown)
            expect(f"ids: [{' '.join(map(str, tsp.ids(fields, 5)))}]" in shown, shown)
    kinds = {frame[0] for frame in frames}
    expect({tsp.HELLO, tsp.WELCOME, tsp.SUBMIT, tsp.CREDIT, tsp.ACK, tsp.RESUME} <= kinds, f"types {kinds}")
    acks = [(stream, shown) for kind, _, stream, _, shown in frames if kind == tsp.ACK]
    expect_equal(acks, [(stream, []), (0, [f"request_id: {request.id.hex()}"])], "ACKs")
    submit = next(frame[4] for frame in frames if frame[0] == tsp.SUBMIT)
    expect(f"request_id: {request.id.hex()}" in submit and "stop: END" in submit, submit)


if __name__ == "__main__":
    main()
