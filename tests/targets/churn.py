"""A program that makes life hard for whoever reads its stacks from outside.

Its main thread makes and frees code objects, recurses deeply, runs generators,
raises through many frames and collects garbage, while other threads start and
end; the watchdog samples the main thread as fast as it can.  Ends with one
line: how many samples were taken.

usage: churn.py SAMPLES
"""

import gc
import sys
import threading

from loopwatch import _core


def recurse(depth: int) -> int:
    return 0 if depth == 0 else 1 + recurse(depth - 1)


def made_code(number: int) -> int:
    space: dict[str, object] = {}
    names = "\n".join(f"    x{i} = {i} + n" for i in range(number % 50))
    exec(f"def f(n):\n{names or '    pass'}\n    return (lambda: n)()\n", space)
    return space["f"](number)  # type: ignore[operator,no-any-return]


def generated(depth: int):  # type: ignore[no-untyped-def]
    if depth:
        yield from generated(depth - 1)
    yield depth


def raised(depth: int) -> None:
    if depth == 0:
        raise KeyError("bottom")
    try:
        raised(depth - 1)
    except KeyError:
        raise


def one_round(number: int) -> None:
    for i in range(20):
        made_code(number + i)
    recurse(100 + number % 700)
    for _ in generated(30):
        pass
    try:
        raised(40)
    except KeyError:
        pass
    thread = threading.Thread(target=recurse, args=(50,))
    thread.start()
    thread.join()
    if number % 50 == 0:
        gc.collect()


def main() -> None:
    wanted = int(sys.argv[1])
    sys.setrecursionlimit(3000)
    _core.stress_sampling(threading.get_ident(), 1)
    number = 0
    while _core.watchdog_info()["samples"] < wanted:
        one_round(number)
        number += 1
    _core.stress_sampling(0, 0)
    info = _core.watchdog_info()
    print("samples", info["samples"], "failed", info["failed_reads"], "rounds", number)


if __name__ == "__main__":
    main()
