"""What the soak's clients have seen, and what the server says that they should have."""

import collections
import http.client
import re
import threading
import time
from urllib.parse import urlparse


class Counts:
    """Shared by all clients."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tasks = collections.Counter()
        # By method, route and status: answers whose headers came. The server counts each of them.
        self.answers = collections.Counter()
        # By method and route: requests that were left before there was an answer. It may have counted them.
        self.left_early = collections.Counter()
        # Generations whose answer came whole.
        self.whole = 0
        self.reasons = collections.Counter()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        # Answers that a text of the client's ended; the engine may be a token or two ahead of it.
        self.stopped_short = 0
        # Generations whose time was over, and those that the client left, with and without an answer begun.
        self.late = 0
        self.left = 0
        self.left_unseen = 0
        # The most that generations which did not end well can have had generated, and of prompts.
        self.lost_tokens = 0
        self.lost_prompts = 0
        # Times that the server closed the connection of a client that stalled.
        self.let_go = 0
        self.garbled = 0
        self.faults = []

    def began(self, task):
        with self.lock:
            self.tasks[task] += 1

    def answered(self, method, route, status):
        with self.lock:
            self.answers[method, route, status] += 1

    def unanswered(self, method, route):
        with self.lock:
            self.left_early[method, route] += 1

    def finished(self, usage, reasons, is_short=False):
        """A generation that ended well: tokens of prompt and answer, and why its choices ended."""
        with self.lock:
            self.whole += 1
            self.prompt_tokens += usage[0]
            self.generated_tokens += usage[1]
            self.stopped_short += is_short
            # With several choices the last to end counts, and which that was does not show.
            self.reasons["any" if len(set(reasons)) > 1 or is_short else reasons[0]] += 1

    def lost(self, what, most_tokens, most_prompt):
        """A generation that did not: `late`, `left` or `left_unseen`."""
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)
            self.lost_tokens += most_tokens
            self.lost_prompts += most_prompt

    def add(self, name):
        with self.lock:
            setattr(self, name, getattr(self, name) + 1)

    def fault(self, text):
        with self.lock:
            self.faults.append(text)

    def report(self):
        statuses = collections.Counter()
        for (_, _, status), count in self.answers.items():
            statuses[status] += count
        return [
            "tasks: " + ", ".join(f"{name} {count}" for name, count in sorted(self.tasks.items())),
            "answers: " + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
            + f"; left before an answer: {self.left_early.total()}; no HTTP at all: {self.garbled}",
            f"generations: {self.whole} whole ({dict(self.reasons)}), {self.left + self.left_unseen} left, {self.late} late; "
            f"{self.prompt_tokens} prompt tokens and {self.generated_tokens} generated tokens in whole ones",
            f"clients that stalled and were let go: {self.let_go}",
        ]


class Scrape:
    """The server's metrics at one time."""

    LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
    LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, url):
        connection = http.client.HTTPConnection(urlparse(url).netloc, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        self.values = {}
        for line in text.splitlines():
            if match := self.LINE.match(line):
                labels = tuple(sorted(self.LABEL.findall(match["labels"] or "")))
                self.values[match["name"], labels] = float(match["value"])

    @classmethod
    def settled(cls, url, patience=60):
        """When nothing waits or runs, and no connection but this one is open."""
        end = time.monotonic() + patience
        while True:
            scrape = cls(url)
            busy = {name: scrape[name] for name in ["edgelm_num_requests_running", "edgelm_num_requests_waiting"]}
            busy["edgelm_connections"] = scrape["edgelm_connections"] - 1
            if not any(busy.values()):
                return scrape
            if time.monotonic() > end:
                raise SystemExit(f"the server is not at rest {patience} s after the last request: {busy}")
            time.sleep(0.2)

    def __getitem__(self, name):
        return self.values.get((name, ()), 0)

    def by_label(self, name):
        """All values of a metric, by their labels."""
        return {labels: value for (other, labels), value in self.values.items() if other == name}


def compare(before, after, counts):
    """What the server counted between two scrapes, against what its clients saw: a line for each difference. Exact where no
    request was left before its end."""
    faults = []

    def grown(name):
        return int(after[name] - before[name])

    def within(what, value, least, most):
        if not least <= value <= most:
            span = least if least == most else f"{least} to {most}"
            faults.append(f"{what}: the server counted {value}, its clients {span}")

    requests(before, after, counts, within)
    ended = {}
    was = before.by_label("edgelm_request_success_total")
    for labels, value in after.by_label("edgelm_request_success_total").items():
        ended[dict(labels)["finished_reason"]] = int(value - was.get(labels, 0))
    left = counts.left + counts.left_unseen
    for reason in ["stop", "length"]:
        within(f"generations that ended with {reason}", ended.get(reason, 0),
               counts.reasons[reason], counts.reasons[reason] + counts.reasons["any"] + left)
    success, cancelled, late = sum(ended.values()), grown("edgelm_cancelled_requests_total"), grown("edgelm_late_requests_total")
    within("generations that ended well", success, counts.whole, counts.whole + left)
    within("generations that were left", cancelled, 0, left)
    within("generations that were late", late, counts.late, counts.late + left)
    # Every one of them has an end, and one only.
    known = counts.whole + counts.late + counts.left
    within("generations", success + cancelled + late, known, known + counts.left_unseen)
    within("end-to-end times", grown("edgelm_e2e_request_latency_seconds_count"), success, success + cancelled + late)
    # The engine may be ahead of a text that ends an answer by what a pass brings.
    ahead = 8 * counts.stopped_short
    within("generated tokens", grown("edgelm_generation_tokens_total"),
           counts.generated_tokens, counts.generated_tokens + counts.lost_tokens + ahead)
    within("prompt tokens", grown("edgelm_prompt_tokens_total"),
           counts.prompt_tokens, counts.prompt_tokens + counts.lost_prompts)
    for name in ["engine_panics", "engine_stalls", "engine_restarts", "health_mismatches", "audit_failures"]:
        within(name, grown(f"edgelm_{name}_total"), 0, 0)
    return faults


# What the soak and its clients' libraries ask for themselves.
OWN = {"/metrics", "/grpc.reflection.v1alpha.ServerReflection/{*method}"}


def requests(before, after, counts, within):
    """Answers by method, route and status."""
    was = before.by_label("edgelm_http_requests_total")
    seen = collections.Counter()
    for labels, value in after.by_label("edgelm_http_requests_total").items():
        labels = dict(labels)
        key = labels["method"], labels["route"], int(labels["status"])
        if labels["route"] not in OWN:
            seen[key] += int(value - was.get(tuple(sorted(labels.items())), 0))
    excess = collections.Counter()
    for key in seen.keys() | counts.answers.keys():
        if key[1] in OWN:
            continue
        beyond = seen[key] - counts.answers[key]
        if beyond > 0:
            excess[key[:2]] += beyond
        else:
            within(f"answers of {key}", seen[key], counts.answers[key], counts.answers[key])
    for key, count in excess.items():
        within(f"answers of {key} beyond those seen", count, 0, counts.left_early[key])
