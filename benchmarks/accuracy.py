"""How right loopwatch is: hundreds of faults of known line, cause and length, at random phase, around the threshold.

Each trial blocks a watched loop once, in one of the contexts, for a length drawn below or above the threshold; the
truth is measured in the blocking function itself.  Printed for each kind of fault: blocks seen and due, false reports
(all as counts), the error of the duration in milliseconds (median and largest), and in percent how often the stack,
the blamed line and the cause were right.  ``--check`` exits with 1 when a bar of the project's specification is missed.

Run: ``python benchmarks/accuracy.py [--trials 30] [--kinds regex,time_sleep] [--check]``
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from machine import describe_machine
from targets.contexts import CONTEXTS
from targets.faults import FAULTS
from targets.trials import Outcome, run_trial

THRESHOLDS = (0.02, 0.05, 0.2)
HEAD = "| kind | trials | due | once | missed or twice | false | error ms, median | largest | stack | culprit | cause |"
RIGHT = 99.0  # percent


def wanted_length(threshold: float, above: bool) -> float:
    """A length drawn on one side of the threshold, clear of the zone in which either answer is right."""
    if above:
        low = max(1.02 * threshold, threshold + 0.002) * 1.03
        return random.uniform(low, max(1.6 * threshold, low + 0.01))
    return random.uniform(0.5 * threshold, min(0.98 * threshold, threshold - 0.002) * 0.97)


class Tally:
    """What the trials of one kind add up to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.trials = self.due = self.once = self.wrong = self.false = self.machine = self.grey = 0
        self.errors: list[float] = []  # seconds
        self.late = 0  # durations outside of the tolerance
        self.stacks = self.culprits = self.causes = 0
        self.misses: list[str] = []

    def add(self, outcome: Outcome) -> None:
        self.trials += 1
        count = len(outcome.blocks)
        self.machine += len(outcome.stalls)
        if outcome.too_short:
            self.false += count
            if count:
                self.misses.append("FALSE " + outcome.describe())
            return
        if not outcome.due:
            self.grey += 1
            return
        self.due += 1
        if count != 1:
            self.wrong += 1
            self.misses.append(f"{count} REPORTS " + outcome.describe())
            return
        self.once += 1
        self.errors.append(outcome.error)
        late = not outcome.duration_right
        self.late += late
        self.stacks += outcome.stack_right
        self.culprits += outcome.culprit_right
        self.causes += outcome.cause_right
        if late or not (outcome.stack_right and outcome.culprit_right and outcome.cause_right):
            said = f"error {outcome.error * 1e3:+.2f} ms, stack {outcome.stack_right}, "
            said += f"culprit {outcome.culprit_right}, cause {outcome.cause_right} "
            self.misses.append(said + outcome.describe())

    def percent(self, count: int) -> float:
        return 100.0 * count / self.once if self.once else 100.0

    def row(self) -> str:
        median = statistics.median(self.errors) * 1e3 if self.errors else 0.0
        largest = max(self.errors, key=abs) * 1e3 if self.errors else 0.0
        parts = (self.stacks, self.culprits, self.causes)
        shares = " | ".join(f"{self.percent(n):.1f} %" if self.once else "-" for n in parts)
        counts = f"{self.trials} | {self.due} | {self.once} | {self.wrong} | {self.false}"
        return f"| {self.name} | {counts} | {median:+.2f} | {largest:+.2f} | {shares} |"

    def failures(self) -> list[str]:
        """The bars that this kind misses, in words."""
        found = []
        if not self.due:
            found.append(f"{self.name}: no trial came to be due, nothing was measured; use more --trials")
        if self.wrong:
            found.append(f"{self.name}: {self.wrong} of {self.due} blocks not reported exactly once")
        if self.false:
            found.append(f"{self.name}: {self.false} false reports")
        if self.late:
            found.append(f"{self.name}: {self.late} of {self.once} durations off by more than 2 ms and 1 %")
        shares = (("stack", self.stacks), ("culprit", self.culprits), ("cause", self.causes))
        for what, count in shares:
            if self.percent(count) < RIGHT:
                found.append(f"{self.name}: {what} right in {self.percent(count):.1f} %, bar {RIGHT:.0f} %")
        return found


def add_up(tallies: list[Tally]) -> Tally:
    total = Tally("all")
    for tally in tallies:
        for field in ("trials", "due", "once", "wrong", "false", "machine", "grey", "late"):
            setattr(total, field, getattr(total, field) + getattr(tally, field))
        for field in ("stacks", "culprits", "causes"):
            setattr(total, field, getattr(total, field) + getattr(tally, field))
        total.errors += tally.errors
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30, help="trials of each kind (default 30)")
    parser.add_argument("--kinds", default=",".join(FAULTS), help="comma-separated kinds of fault (default: all)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="whose loop (default asyncio)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random lengths and phases")
    parser.add_argument("--verbose", action="store_true", help="describe every trial that went wrong")
    options = parser.parse_args()
    unknown = set(options.kinds.split(",")) - set(FAULTS)
    if unknown:
        parser.error(f"unknown kinds {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    random.seed(seed)

    make_loop = None
    if options.loop == "uvloop":
        import uvloop

        make_loop = uvloop.new_event_loop
    tallies = {name: Tally(name) for name in options.kinds.split(",")}
    for trial in range(options.trials):
        for name, tally in tallies.items():
            threshold = THRESHOLDS[trial % len(THRESHOLDS)]
            above = trial % 2 == 0
            context = random.choice(list(CONTEXTS))
            pause = random.uniform(0.001, 0.06)
            gc.collect()
            length = wanted_length(threshold, above)
            tally.add(run_trial(FAULTS[name], context, threshold, length, pause, make_loop))
        print(f"\r{trial + 1}/{options.trials} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    print(f"## Accuracy\n\n{describe_machine()}; {options.loop}; seed {seed}\n")
    print(HEAD + "\n" + "| --- |" + " ---: |" * 10)
    total = add_up(list(tallies.values()))
    for tally in [*tallies.values(), total]:
        print(tally.row())
    print(
        f"\n{total.grey} trials fell between the two bars, or above only because others had the CPU: both answers are "
        "right there, and they are not counted as due; "
        f"{total.machine} stalls were told apart (process stopped, CPU starved)."
    )
    if options.verbose:
        for tally in tallies.values():
            print("".join(miss + "\n" for miss in tally.misses), end="")
    failures = [failure for tally in tallies.values() for failure in tally.failures()]
    print("\nBars missed:" if failures else "\nNo bar missed.")
    for failure in failures:
        print("- " + failure)
    return 1 if failures and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
