"""Images of several requests are embedded together, and each request gets its own answer."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest
import torch
from torch import Tensor

from lowshot_cli.serve.batching import MOST, Batches


class Network:
    """Embeds an image as its first number, and notes the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.free = Event(), Event()

    def __call__(self, pixels: Tensor) -> Tensor:
        self.begun.set()
        self.free.wait()
        self.sizes.append(len(pixels))
        if int(pixels.max()) > 250:
            raise RuntimeError("broken")
        return pixels.flatten(1)[:, :1].float()


def images(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def values(embeddings: Tensor) -> list[float]:
    found: list[float] = embeddings[:, 0].tolist()
    return found


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def batches(network: Network) -> Iterator[Batches]:
    made = Batches(network)
    yield made
    network.free.set()
    made.close()


def test_what_waits_is_embedded_together_and_each_gets_its_own(
    network: Network, batches: Batches
) -> None:
    first = batches.submit(images(1), values)
    network.begun.wait()
    others = [batches.submit(images(n, n + 1), values) for n in (10, 20, 30)]
    network.free.set()
    assert first.result() == [1]
    assert [one.result() for one in others] == [[10, 11], [20, 21], [30, 31]]
    assert network.sizes == [1, 6]


def test_a_batch_has_its_limit_but_for_a_request_that_is_larger(
    network: Network, batches: Batches
) -> None:
    batches.submit(images(0), values)
    network.begun.wait()
    numbers = (range(MOST - 1), range(1), range(2), range(MOST + 5), range(3))
    waiting = [batches.submit(images(*part), values) for part in numbers]
    network.free.set()
    assert [one.result() for one in waiting] == [list(part) for part in numbers]
    assert network.sizes == [1, MOST, 2, MOST + 5, 3]


def test_several_workers_share_a_batch(network: Network) -> None:
    several = Batches(network, workers=3)
    several.submit(images(0), values)
    network.begun.wait()
    numbers = [range(n) for n in (1, 9, 3)]
    waiting = [several.submit(images(*part), values) for part in numbers]
    network.free.set()
    assert [one.result() for one in waiting] == [list(part) for part in numbers]
    several.close()
    assert sorted(network.sizes) == [1, 4, 4, 5]


def test_a_batch_waits_for_requests_that_are_being_read(network: Network, batches: Batches) -> None:
    network.free.set()
    with batches.reading():
        with batches.reading():
            first = batches.submit(images(1), values)
        second = batches.submit(images(2), values)
    assert (first.result(), second.result()) == ([1], [2])
    assert network.sizes == [2]


def test_a_batch_does_not_wait_long_for_a_request_that_is_never_read(
    network: Network, batches: Batches
) -> None:
    network.free.set()
    with batches.reading():
        assert batches.submit(images(1), values).result(timeout=10) == [1]
    with pytest.raises(ValueError, match="damaged"), batches.reading():
        raise ValueError("damaged")
    assert batches.submit(images(2), values).result(timeout=10) == [2]


def test_an_answer_that_fails_concerns_its_own_request_alone(
    network: Network, batches: Batches
) -> None:
    def fail(_: Tensor) -> list[float]:
        raise ValueError("mine")

    batches.submit(images(1), values)
    network.begun.wait()
    bad, good = batches.submit(images(2), fail), batches.submit(images(3), values)
    network.free.set()
    with pytest.raises(ValueError, match="mine"):
        bad.result()
    assert good.result() == [3]


def test_a_broken_batch_is_told_to_each_and_the_next_one_works(
    network: Network, batches: Batches
) -> None:
    network.free.set()
    with pytest.raises(RuntimeError, match="broken"):
        batches.submit(images(255), values).result()
    with pytest.raises(RuntimeError, match="broken"):
        batches.submit(images(*[1] * 40, 255, *[1] * 40), values).result()
    assert batches.submit(images(4), values).result() == [4]


def test_images_of_a_client_that_has_gone_are_not_embedded(
    network: Network, batches: Batches
) -> None:
    batches.submit(images(1), values)
    network.begun.wait()
    gone, stays = batches.submit(images(2), values), batches.submit(images(3), values)
    gone.cancel()
    network.free.set()
    assert stays.result() == [3]
    assert network.sizes == [1, 1]
    assert gone.cancelled()
