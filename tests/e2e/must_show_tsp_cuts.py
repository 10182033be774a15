"""Long run: connections of the stream protocol cut at 10,000 random byte positions (CUTS=N for another number) under 64
streams. Every answer must equal the uncut one, id by id and byte by byte; a SUBMIT that is sent twice runs once."""

import os
import time

from support import Server, expect, expect_equal, main, test
from tsp_client import STREAMS
from tsp_load import Load
from tsp_proxy import Proxy

CUTS = int(os.environ.get("CUTS", "10000"))
MEAN_BYTES = 2500
SEED = 20261125


@test(seconds=7200)
def cut_connections_lose_nothing():
    server = Server(config="configs/cpu-x1.yaml")
    proxy = Proxy((server.host, server.tcp_port), MEAN_BYTES, SEED)
    load = Load(server, proxy.address, SEED, credits=(None, 5, 40), doubled=0.5)
    start = time.monotonic()
    while proxy.cuts < CUTS and not load.failures:
        time.sleep(0.2)
    load.stop()
    seconds = time.monotonic() - start
    metrics = server.metrics()
    ran = metrics["tandem_tcp_submits_total"] - load.metrics_before["tandem_tcp_submits_total"]
    expect_equal(ran, load.answers, "requests that ran")
    expect(proxy.cuts >= CUTS, f"{proxy.cuts} cuts")
    resumes = metrics["tandem_stream_resumes_total"]
    print(f"     {proxy.cuts} cuts in {seconds:.0f} s, {load.answers} answers over {STREAMS} streams, {resumes:.0f} "
          f"resumes and repeated SUBMITs, 0 differences; {ran:.0f} requests ran")
    proxy.stop()
    server.stop()


if __name__ == "__main__":
    main()
