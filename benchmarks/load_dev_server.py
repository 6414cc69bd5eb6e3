"""Requests of several clients to `mrcnn serve --dev` on this machine: errors, times, memory.

    python benchmarks/load_dev_server.py EXPORT PICTURE...      # EXPORT: the OUTPUT of mrcnn export

It times the model alone first, then starts the server, asks with each picture once, and lets every client ask
as fast as it is answered. It ends after --seconds, and fails when a request did.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np
import requests

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples" / "serving"))

import client_rest

ALONE = """
import json, pathlib, sys, time
import tensorflow as tf
folder, repeats, *pictures = sys.argv[1:]
version = max(int(path.name) for path in pathlib.Path(folder).iterdir() if path.name.isdecimal())
ask = tf.saved_model.load(f"{folder}/{version}").signatures["serving_default"]
encoded = [tf.constant([pathlib.Path(picture).read_bytes()]) for picture in pictures]
times = []
for turn in range(int(repeats) + 1):
    for image in encoded:
        start = time.perf_counter()
        {name: value.numpy() for name, value in ask(image_bytes=image).items()}
        times += [time.perf_counter() - start] * (turn > 0)
print(json.dumps(times))
"""


def memory(process):
    """Resident memory of a process, MiB."""
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def start_server(folder):
    """The process of the server, and its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "keras_mrcnn", "serve", str(folder), "--dev", "--port", str(port)]
    process, address = subprocess.Popen(command), f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            requests.get(f"{address}/v1/models/{folder.name}", timeout=60)
            return process, address
        except requests.ConnectionError:
            time.sleep(0.5)
            if process.poll() is not None:
                break
    process.kill()
    raise SystemExit("The server did not start.")


def client(address, name, encoded, first, deadline):
    """What one client saw until the deadline: seconds of each answer, and errors."""
    seconds, errors = [], []
    while time.monotonic() < deadline:
        image = encoded[(first + len(seconds) + len(errors)) % len(encoded)]
        start = time.perf_counter()
        try:
            client_rest.ask(address, name, image)
            seconds.append(time.perf_counter() - start)
        except (SystemExit, requests.RequestException) as error:
            errors.append(str(error))
    return seconds, errors


def load(process, address, name, encoded, clients, length):
    """Seconds, errors and (time, MiB) samples of all clients together."""
    start = time.monotonic()
    samples = []
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        waiting = [
            pool.submit(client, address, name, encoded, number, start + length) for number in range(clients)
        ]
        while not all(answer.done() for answer in waiting):
            samples.append((time.monotonic() - start, memory(process)))
            time.sleep(1)
        seconds, errors = zip(*(answer.result() for answer in waiting))
    return sum(seconds, []), sum(errors, []), samples


def quantiles(seconds):
    """ "p50 ..., p99 ..., longest ...", milliseconds."""
    p50, p99, longest = (1000 * np.percentile(seconds, share) for share in (50, 99, 100))
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {longest:.0f} ms"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=5, help="of each picture, for the model alone")
    given = parser.parse_args()
    folder = given.export.resolve()
    command = [sys.executable, "-c", ALONE, str(folder), str(given.repeats), *given.pictures]
    alone = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    encoded = [pathlib.Path(picture).read_bytes() for picture in given.pictures]
    process, address = start_server(folder)
    try:
        for image in encoded:
            client_rest.ask(address, folder.name, image)
        seconds, errors, samples = load(process, address, folder.name, encoded, given.clients, given.seconds)
    finally:
        process.terminate()
        process.wait(120)
    print(f"{os.cpu_count()} cores, {given.clients} clients, {given.seconds:.0f} s, {len(encoded)} pictures")
    print(f"model alone, {len(alone)} calls: {quantiles(alone)}")
    print(f"requests: {len(seconds)} answered, {len(errors)} errors")
    if seconds:
        print(f"  {quantiles(seconds)}; {len(seconds) / given.seconds:.2f} a second")
    for error, count in collections.Counter(errors).most_common(5):
        print(f"  {count} x {error}")
    shown = [samples[round(share * (len(samples) - 1))] for share in np.linspace(0, 1, 7)]
    print("server's memory, MiB: " + ", ".join(f"{size:.0f} at {when:.0f} s" for when, size in shown))
    sys.exit(bool(errors or not seconds))


if __name__ == "__main__":
    main()
