"""The same work over many tasks, in this process or in others that are handed what it needs once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from liber_feast.allocator import keep_freed_memory
from liber_feast.errors import ConfigError

_T = TypeVar("_T")
_R = TypeVar("_R")


@contextmanager
def shared_work(
    work: Callable[[_T], _R], *, processes: int, broken: str
) -> Iterator[Callable[[Iterable[_T]], Iterator[tuple[_T, _R]]]]:
    """Give what does `work` on tasks and yields each with what came of it: in this process, or in `processes` others.

    `work` goes to each process once, with all that it holds. In others tasks end in any order.

    Raises:
        ConfigError: a process was ended from outside; the message is `broken`.
    """
    if processes == 1:
        yield lambda tasks: ((task, work(task)) for task in tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_hold, initargs=(work,)) as pool:
        try:
            yield lambda tasks: _in_processes(pool, tasks, broken=broken)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_processes(pool: ProcessPoolExecutor, tasks: Iterable[_T], *, broken: str) -> Iterator[tuple[_T, Any]]:
    futures = {pool.submit(_do_held, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ConfigError(broken) from error


_held: list[Callable[[Any], Any]] = []
"""The work of a process of `shared_work`."""


def _hold(work: Callable[[Any], Any]) -> None:
    keep_freed_memory()
    _held[:] = [work]


def _do_held(task: object) -> object:
    return _held[0](task)
