"""How fast `lowshot serve` starts, teaches and predicts, and whether its memory stays flat.

    python -m tests.benchmarks.serve runs/base.safetensors photos/hat

Starts the server as a command of its own, in turn with `import torch`; teaches it five photos, each
time a class that it does not know; sends photos from several clients at once, one and several a
request, in turns with `predict`'s own loop over the same files; and sends many requests more while
it watches the memory of the server.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np

from lowshot_cli.checkpoint.format import load
from lowshot_cli.environment import pick_device
from lowshot_cli.evaluation.predict import predict
from lowshot_cli.models.embedder import fused
from tests.benchmarks.start import TORCH, measured

CLIENTS, MIB = 8, 2**20
FORM = "multipart/form-data; boundary=B"
# Photos in a request.
EACH = (1, 8)


@contextmanager
def serving(checkpoint: Path) -> Iterator[tuple[int, int, float]]:
    """A server of a copy of a model: its port, its process, and seconds until it answered."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(checkpoint, Path(name) / "base.safetensors")
        command = ["-m", "lowshot_cli", "serve", "--workdir", name, "--port", "0", "--json"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        port = int(address.rstrip("/").rpartition(":")[2])
        for path in ("/", "/model"):
            ask(HTTPConnection("127.0.0.1", port), "GET", path)
        try:
            yield port, process.pid, time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def ask(
    connection: HTTPConnection, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg"
) -> bytes:
    """The body of an answer, which must be a good one."""
    connection.request(method, path, body, {"Content-Type": kind})
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    return content


def form(photos: Sequence[Path]) -> bytes:
    """A form with photos, for the boundary B."""
    head = '--B\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
    parts = [head.format(photo.name).encode() + photo.read_bytes() + b"\r\n" for photo in photos]
    return b"".join(parts) + b"--B--\r\n"


def teach(port: int, photos: Sequence[Path], rounds: int) -> list[float]:
    """Seconds to teach five photos and predict another with the new model, for each round."""
    connection, body, found = HTTPConnection("127.0.0.1", port), form(photos[:5]), []
    other = photos[5].read_bytes()
    for number in range(rounds):
        started = time.perf_counter()
        ask(connection, "POST", f"/classes/new{number}", body, FORM)
        ask(connection, "POST", "/predict", other)
        found.append(time.perf_counter() - started)
        ask(connection, "POST", "/undo")
    return found


def ask_many(port: int, bodies: Sequence[bytes], count: int) -> tuple[float, list[float]]:
    """Requests a second from several clients, and the seconds that each answer took."""

    def client(number: int) -> list[float]:
        connection, took = HTTPConnection("127.0.0.1", port), []
        for body in islice(cycle(bodies), number, count, CLIENTS):
            started = time.perf_counter()
            ask(connection, "POST", "/predict", body, FORM)
            took.append(time.perf_counter() - started)
        return took

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        took = [one for part in pool.map(client, range(CLIENTS)) for one in part]
    return count / (time.perf_counter() - started), took


def own_rate(checkpoint: Path, files: Sequence[Path]) -> Callable[[], float]:
    """Measures images a second of the loop of `predict`, once it is warm."""
    model = load(checkpoint)
    network = fused(model.network(pick_device("cpu")))

    def rate() -> float:
        started = time.perf_counter()
        count = len(list(predict(model, network, files)))
        return count / (time.perf_counter() - started)

    rate()
    return rate


def compare(
    own_rate: Callable[[], float],
    port: int,
    bodies: Sequence[bytes],
    each: int,
    count: int,
    rounds: int,
) -> None:
    """Measure images a second of `predict` and of `count` requests, in turns, and print them."""
    rates, took = [], []
    for _ in range(rounds):
        own, (served, seconds) = own_rate(), ask_many(port, bodies, count)
        rates.append((own, each * served))
        took += seconds
    own, served = (median(one[side] for one in rates) for side in (0, 1))
    ratio = median(served / own for own, served in rates)
    p50, p99 = (1000 * float(np.quantile(took, share)) for share in (0.5, 0.99))
    print(
        f"POST /predict, {CLIENTS} clients, photos in a request {each}: {served:.0f} images/s, "
        f"predict {own:.0f}, ratio {ratio:.2f}; an answer takes {p50:.0f} ms (p50), {p99:.0f} ms "
        "(p99)"
    )


def resident(process: int) -> float:
    """MiB of memory that a process has."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / MIB


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a base model")
    parser.add_argument("photos", type=Path, help="folder of photos of another class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=400, help="predicted in each round")
    parser.add_argument("--requests", type=int, default=10_000, help="while memory is watched")
    options = parser.parse_args()
    files = sorted(path for path in options.photos.iterdir() if path.suffix == ".jpg")
    starts, torches = [], []
    for _ in range(options.rounds):
        torches.append(measured(("-c", TORCH))[0])
        with serving(options.checkpoint) as (_, _, seconds):
            starts.append(seconds)
    print(
        f"start to the page and its model: {median(starts):.2f} s, importing PyTorch "
        f"{median(torches):.2f} s, beyond it {median(starts) - median(torches):.2f} s"
    )
    rate = own_rate(options.checkpoint, list(islice(cycle(files), options.images)))
    with serving(options.checkpoint) as (port, process, _):
        taught = teach(port, files, options.rounds)
        print(
            f"teaching five photos and predicting another: first {1000 * taught[0]:.0f} ms, "
            f"median {1000 * median(taught):.0f} ms"
        )
        for each in EACH:
            bodies = [form(list(islice(cycle(files), n, n + each))) for n in range(len(files))]
            compare(rate, port, bodies, each, options.images // each, options.rounds)
        bodies = [form([file]) for file in files]
        memory = [resident(process)]
        for _ in range(2):
            ask_many(port, bodies, options.requests // 2)
            memory.append(resident(process))
        said = ", ".join(f"{one:.0f}" for one in memory)
        print(f"{options.requests:,} requests: memory at start, middle and end {said} MiB")


if __name__ == "__main__":
    main()
