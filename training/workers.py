"""A fleet in several processes, each with the base in memory and a company of users at a time.

Owns the processes: how many fit, how they start (from a forkserver, `forking.py`, which imports
once for all of them), and that they end with the one that started them. Refuses the
training, which is `fleet`'s. A small model does not keep two cores busy with one user: two
processes of one thread each are faster than one of two.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import psutil
import torch

from training.config import BAPOConfig
from training.errors import Stopped, TrainingError
from training.fleet import COMPANY, Judge, Outcome, Publish, keep, of_shard, train_company
from training.forking import begin, cores, threads_of
from training.model import ResidentBase, load_base
from training.progress import Tick, silent
from training.users import UserData, Users

ROOM_A_WORKER = 2**30
"""Bytes that a process takes beside its model: interpreter, torch, activations."""
BYTES_A_BYTE = 4
"""Memory for each byte of weights on disk: bf16 there, float32 here, as much again in use."""
COMPANIES_A_WORKER = 4
"""At least, where there are users enough, so that none waits long for the last."""

MakePublish = Callable[[ResidentBase], Publish | None]
MakeJudge = Callable[[ResidentBase], Judge]


def fitting_workers(model: str, users: int) -> int:
    """How many processes this machine's cores and free memory carry; one where there is a GPU."""
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    if torch.accelerator.is_available() or not weights:
        return 1
    carried = psutil.virtual_memory().available // (ROOM_A_WORKER + BYTES_A_BYTE * weights)
    return max(1, min(cores(), int(carried), users))


def train_fleet_with(
    count: int,
    model: str,
    users: Users,
    out: Path,
    config: BAPOConfig,
    *,
    publishing: MakePublish,
    judging: MakeJudge | None = None,
    shard: tuple[int, int] = (0, 1),
    tick: Tick = silent,
) -> Iterator[Outcome]:
    """`train_fleet` in `count` processes; what becomes of each user, as it is known.

    `publishing` and `judging` make each process its way to publish and its gate, and can be
    pickled. Raises Stopped after Ctrl-C, once every process has ended in order, and
    TrainingError where one died; the same call goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = max(1, min(COMPANY, len(users) // (COMPANIES_A_WORKER * count)))
    mine = of_shard(users, shard)
    begin(count)
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=_become_worker,
        initargs=(threads_of(count), model, config, publishing, judging),
    )
    running: set[Future[list[Outcome]]] = set()
    try:
        while True:
            while len(running) < 2 * count and (company := list(islice(mine, size))):
                running.add(pool.submit(_train_company, company, out, config))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                for outcome in future.result():
                    keep(outcome, out)
                    tick(1)
                    yield outcome
    except (KeyboardInterrupt, Stopped) as error:
        for worker in multiprocessing.active_children():
            worker.terminate()  # ends an idle one, and asks a busy one to stop after its step
        raise Stopped("The fleet was stopped; run it again to go on.") from error
    except BrokenProcessPool as error:
        raise TrainingError("A worker was killed; run the fleet again to go on.") from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[ResidentBase, Judge | None, Publish | None]
"""What a worker process has in memory; set as it starts."""


def _become_worker(
    threads: int,
    model: str,
    config: BAPOConfig,
    publishing: MakePublish,
    judging: MakeJudge | None,
) -> None:
    global _worker
    torch.set_num_threads(threads)  # fewer may have come to be than it was begun for
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    base = load_base(model, cpu=config.use_cpu, four_bit=config.load_in_4bit)
    _worker = base, judging(base) if judging else None, publishing(base)
    gc.collect()
    gc.freeze()  # nobody looks through it for every user anew


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _train_company(company: list[UserData], out: Path, config: BAPOConfig) -> list[Outcome]:
    base, judge, publish = _worker
    return list(train_company(base, company, out, config, judge=judge, publish=publish))
