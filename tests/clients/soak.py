"""Mixed traffic, well-behaved and not, for a while: soak.py URL MODEL MINUTES [--pid PID] [--clients N] [--seed N]

Keeps its own counts and compares them with /metrics at the end; with --pid, watches the memory of the process too.
Ends with status 1 if a request that was accepted was not answered, a refusal was not the one that was due, a counter differs, or
memory grows. README.md says what is exact.
"""

import argparse
import faulthandler
import random
import sys
import threading
import time

import soak_abuse
import soak_work
from soak_counts import Counts, Scrape, compare
from soak_memory import Watch
from soak_wire import PATIENCE, Refused, Wire

# Of all tasks, in parts.
WORK = [(soak_work.TASKS, 80), (soak_abuse.QUICK, 19), (soak_abuse.BURSTS, 1)]
# Clients that do nothing but wait for the server to lose its patience.
STALLERS = 3
# What follows the traffic: alone, so that every token can be accounted for.
EPILOGUE = 40


def client(wire, tasks, seed, until):
    """One client: a task after the other."""
    chance = random.Random(seed)
    kinds, weights = [kinds for kinds, _ in tasks], [weight for _, weight in tasks]
    while time.monotonic() < until:
        task = chance.choice(chance.choices(kinds, weights)[0])
        attempt(wire, task, chance)


def attempt(wire, task, chance):
    """A task; what it finds wrong, or fails with, is a fault with its name."""
    wire.counts.began(task.__name__)
    try:
        task(wire, chance)
    except Refused:
        pass
    except Exception as error:
        wire.counts.fault(f"{task.__name__}: {type(error).__name__}: {error}")


def traffic(url, model, counts, options):
    until = time.monotonic() + options.minutes * 60
    wires = [Wire(url, model, counts, until) for _ in range(options.clients + STALLERS)]
    threads = []
    for index, wire in enumerate(wires):
        tasks = WORK if index < options.clients else [(soak_abuse.STALLS, 1)]
        threads.append(threading.Thread(target=client, args=(wire, tasks, options.seed * 1000 + index, until)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for wire in wires:
        wire.close()


def epilogue(url, model, counts, seed):
    """Requests one by one, all read to the end: now every counter is known."""
    wire = Wire(url, model, counts)
    chance = random.Random(seed)
    for _ in range(EPILOGUE):
        attempt(wire, chance.choice(soak_work.EXACT), chance)
    wire.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--pid", type=int, help="of the server, on this machine")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    url = options.url.rstrip("/")
    # Whatever hangs, here or there: where it does, and status 1.
    faulthandler.dump_traceback_later(options.minutes * 60 + 2 * PATIENCE, exit=True)

    before = Scrape.settled(url)
    counts = Counts()
    watch = Watch(options.pid, options.minutes * 60) if options.pid else None
    traffic(url, options.model, counts, options)
    middle = Scrape.settled(url)
    faults = compare(before, middle, counts)
    report = counts.report()
    if watch:
        # Before the epilogue, which is another kind of traffic.
        lines, found = watch.stop()
        report += lines
        faults += found
    alone = Counts()
    epilogue(url, options.model, alone, options.seed)
    faults += compare(middle, Scrape.settled(url), alone)
    faults += counts.faults + alone.faults
    print("\n".join(report))
    for fault in faults[:50]:
        print(f"FAULT {fault}")
    print(f"soak: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
