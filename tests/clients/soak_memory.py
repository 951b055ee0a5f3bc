"""Memory, threads and open files of a process while the soak runs."""

import os
import statistics
import threading
import time

# The share of the time in which caches may still fill.
WARM_UP = 0.2
# Below this many minutes of soak, memory is told but not judged: caches may still be filling.
JUDGED_MINUTES = 10
# How far memory may move in all the time after the warm-up, and files and threads at any time after it.
FLAT = 0.02
MORE_FILES = 200
MORE_THREADS = 64


class Watch:
    """Looks every 10 seconds, or twenty times."""

    def __init__(self, pid, seconds):
        self.pid, self.seconds = pid, seconds
        self.interval = min(10.0, seconds / 20)
        self.begin = time.monotonic()
        self.samples = []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.look()
        self.thread.start()

    def look(self):
        fields = {}
        with open(f"/proc/{self.pid}/status") as status:
            for line in status:
                name, _, value = line.partition(":")
                fields[name] = value
        anonymous = int(fields["RssAnon"].split()[0]) * 1024
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        self.samples.append((time.monotonic() - self.begin, anonymous, int(fields["Threads"]), files))

    def run(self):
        while not self.end.wait(self.interval):
            try:
                self.look()
            except (FileNotFoundError, ProcessLookupError):
                return

    def stop(self):
        """Lines of a report, and faults."""
        self.end.set()
        self.thread.join()
        warm = [sample for sample in self.samples if sample[0] >= WARM_UP * self.seconds]
        if len(warm) < 4:
            return [], [f"process {self.pid} is gone, or the soak was too short to look at its memory"]
        times, memory = [sample[0] for sample in warm], [sample[1] for sample in warm]
        median = statistics.median(memory)
        slope = statistics.linear_regression(times, memory).slope
        growth = slope * (times[-1] - times[0]) / median
        mib = 1 << 20
        lines = [
            f"RssAnon in {len(warm)} samples after a warm-up of {WARM_UP:.0%}: min {min(memory) / mib:.2f}, median "
            f"{median / mib:.2f}, max {max(memory) / mib:.2f} MiB; slope {slope * 3600 / mib:+.3f} MiB/h, {growth:+.2%} over the time",
            f"threads: {warm[0][2]} to {warm[-1][2]}; open files: {warm[0][3]} to {warm[-1][3]}, at most {max(s[3] for s in warm)}",
        ]
        faults = []
        if self.seconds < JUDGED_MINUTES * 60:
            lines.append(f"memory is not judged below {JUDGED_MINUTES} minutes: caches may still fill")
        elif growth > FLAT:
            faults.append(f"memory grows: {growth:+.2%} of its median, by a line through all samples")
        if warm[-1][3] > self.samples[0][3] + MORE_FILES or warm[-1][2] > self.samples[0][2] + MORE_THREADS:
            faults.append(f"threads and open files grow: {self.samples[0][2:]} at first, {warm[-1][2:]} at the end")
        return lines, faults
