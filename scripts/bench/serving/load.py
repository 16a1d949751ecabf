#!/usr/bin/env python3
"""needle-serve under load: lost and mixed-up replies, throughput against the bare engine, what HTTP adds to a request.

usage: load.py [--bin build/release/bin] [--model FILE.needle] [--clients 32] [--workers N] [--requests 2000] [--alone 500] [--seconds 60]
               [--streams PERCENT] [--embeddings PERCENT] [--ranks PERCENT] [--json]

First one client asks the server: nothing waits, so what neither the queue nor the model took is what HTTP, JSON and the prompt's
checks add; in turns with it a socket without a server does the same work, which says how much of that is the machine's. Then, in eight turns, the bare engine answers the questions on as many threads as the server has workers, and all clients
ask the server at once; they share the machine with it. Each reply must repeat its request's tag and carry the calls that the bare
engine made for the same question; one that does not counts as wrong, one that does not come whole as lost. --streams, --embeddings and --ranks make that
many of a hundred requests of those kinds, for the bare engine, too; a stream is whole if each of its events came, in order and under its
own id. Every part ends after its
requests or --seconds, whichever comes first.
Without --model: the tests' small trained model, which is the hardest case: the model takes least.
Exit code 1 if a reply was lost, wrong or refused.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

KINDS = ["streams", "embeddings", "ranks"]
ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/server"))
from serving import Server  # noqa: E402


def cpu_ms(process):
    """CPU time of a process so far, its threads' all together."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--serve", default="", help="more options of needle-serve, in one word: \"--workers 3\"")
    parser.add_argument("--server-workers", type=int, help="of the server, if others than the bare engine's")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--alone", type=int, default=500)
    parser.add_argument("--engine-requests", type=int, default=100_000, help="at most, of the bare engine")
    parser.add_argument("--seconds", type=float, default=60)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, help="of a hundred requests")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    options = parser.parse_args()
    probe = str(options.bin / "needle-load-probe")
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            subprocess.run([probe, "--write-models", folder], check=True, env={**os.environ, "NEEDLE_SOURCE_DIR": str(ROOT)})
            options.model = folder + "/model.needle"
        with Server(str(options.bin / "needle-serve"), "-m", options.model, "--workers", str(options.server_workers or options.workers), *options.serve.split()) as server:
            result = subprocess.run([probe, "--model", options.model, "--port", str(server.port), "--threads", str(options.workers)] +
                                    [word for name in ["clients", "requests", "alone", "engine-requests", "seconds", *KINDS]
                                     for word in (f"--{name}", str(getattr(options, name.replace("-", "_"))))],
                                    capture_output=True, text=True)
            if result.returncode != 0:
                sys.exit(result.stderr)
            report = json.loads(result.stdout)
            report["server_cpu_ms"] = cpu_ms(server.process.pid) / (report["server_requests"] + report["alone_requests"])
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"bare engine   {report['engine_per_second']:9.1f} requests/s on {options.workers} threads ({report['engine_requests']} requests)")
        print(f"needle-serve  {report['server_per_second']:9.1f} requests/s, {options.clients} clients ({report['server_requests']} requests): "
              f"{100 * report['throughput_share']:.1f} % of the bare engine")
        print(f"  latency     p50 {report['server_latency_ms']['p50']:.2f} ms, p99 {report['server_latency_ms']['p99']:.2f} ms")
        print(f"one client    p50 {report['alone_latency_ms']['p50']:.3f} ms, p99 {report['alone_latency_ms']['p99']:.3f} ms ({report['alone_requests']} requests)")
        print(f"  added       p50 {report['alone_overhead_ms']['p50']:.3f} ms, p99 {report['alone_overhead_ms']['p99']:.3f} ms to what the model took")
        print(f"  bare socket p50 {report['bare_socket_overhead_ms']['p50']:.3f} ms, p99 {report['bare_socket_overhead_ms']['p99']:.3f} ms, in turns with it")
        print(f"CPU           {report['engine_cpu_ms']:.2f} ms a request in the bare engine, {report['server_cpu_ms']:.2f} ms in the server, "
              f"{report['client_cpu_ms']:.2f} ms in the clients")
        print(f"replies       {report['lost']} lost, {report['wrong']} wrong, {report['refused']} refused")
    return 1 if report["lost"] + report["wrong"] + report["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
