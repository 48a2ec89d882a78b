"""What has to be true: all the time, and when it rests."""

import asyncio
import collections
import time

import samples

COUNTERS = ["accepted", "completed", "timeouts", "crashes", "penalties", "cpu_us", "bytes_in", "bytes_out", "workers_died",
            "served_warm", "log_records_dropped"]


class Checks:
    """Counts against each other, the log, the clients and the kernel."""

    def __init__(self, served, load, actions):
        self.served, self.load, self.actions = served, load, actions
        self.before, self.wrong, self.rests = {}, [], 0
        self.most_missing = collections.Counter()
        self.last = {}

    def fail(self, words):
        self.wrong.append(f"{time.strftime('%H:%M:%S')} {words}")
        print(self.wrong[-1], flush=True)

    def forwards(self, status):
        """No counter goes backwards."""
        for service in status["services"]:
            key = (service["name"], service["counted_since_unix_ms"])
            now = {name: service[name] for name in COUNTERS} | {f"refused {why}": n for why, n in service["refused"].items()}
            for times in ("durations", "waits", "warm_ups"):
                now |= {f"{times} {n}": count for n, count in enumerate(service[times]["within"])}
            for name, value in now.items():
                if value < self.before.get(key, {}).get(name, 0):
                    self.fail(f"{key[0]}: {name} went from {self.before[key][name]} to {value}")
            self.before[key] = now

    async def at_rest(self):
        """Whether it comes to rest; says what does not add up then."""
        self.rests += 1
        deadline = time.monotonic() + 50
        while self.load.live and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        deadline = time.monotonic() + 15
        while True:
            status = await self.served.call("GetStatus")
            self.forwards(status)
            restless = self.restless(status)
            if not restless:
                break
            if time.monotonic() > deadline:
                self.fail("does not come to rest: " + "; ".join(restless))
                return False
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.3)
        status = await self.served.call("GetStatus")
        connections = (await self.served.call("ListConnections"))["connections"]
        self.served.read_log()
        self.last = {service["name"]: service for service in status["services"]}
        active = sum(service["active"] for service in status["services"])
        if len(connections) != active:
            self.fail(f"{len(connections)} connections are listed, and {active} are active")
        if status["bans"]:
            self.fail(f"{status['bans']} bans are left")
        if status["log_records_dropped"]:
            self.fail(f"{status['log_records_dropped']} records were dropped")
        for service in status["services"]:
            if service["name"] != "extra":
                self.adds_up(service)
        self.processes(status)
        return True

    def restless(self, status):
        """What is not as it has to be when nobody calls."""
        found = []
        for service in status["services"]:
            wanted = len(self.load.held) if service["name"] == "held" else 0
            for name, expected in (("active", wanted), ("queued", 0), ("left_behind", 0)):
                if service[name] != expected:
                    found.append(f"{service['name']} has {service[name]} {name}, not {expected}")
            states = collections.Counter(worker["state"] for worker in service["workers"])
            if states["accepting"] != len(service["workers"]) and not wanted:
                found.append(f"{service['name']} has workers {dict(states)}")
        if status["state"] != "running":
            found.append(f"it is {status['state']}")
        return found

    def adds_up(self, service):
        name, records = service["name"], self.served.records
        if service["accepted"] != service["completed"] + service["active"]:
            self.fail(f"{name}: {service['accepted']} accepted, {service['completed']} completed, {service['active']} active")
        # Who was taken from the queue by a worker, or served by a process, that was killed before it could say so.
        kills = sum(1 for _, _, why in self.load.windows[name] if "killed" in why)
        if name not in ("stream", "datagrams"):
            self.near(name, "connects that nobody counted",
                      self.load.connected[name] - service["accepted"] - sum(service["refused"].values()), kills)
        reused = 20 * kills if name == "reused" else kills
        self.near(name, "completed without a record", service["completed"] - records[name, "completed"], reused)
        for what in ("bytes_in", "bytes_out", "timeouts"):
            if service[what] != records[name, what]:
                self.fail(f"{name}: {what} are {service[what]} in the status and {records[name, what]} in the log")
        # Each record has whole milliseconds.
        rounded = service["cpu_us"] / 1000 - records[name, "cpu_ms"]
        if not -1 <= rounded <= records[name, "completed"] + 1:
            self.fail(f"{name}: {service['cpu_us']} µs in the status, {records[name, 'cpu_ms']} ms in the log")

    def near(self, name, what, number, most):
        self.most_missing[what] += max(0, number - self.most_missing[name, what])
        self.most_missing[name, what] = max(number, self.most_missing[name, what])
        if not 0 <= number <= most:
            self.fail(f"{name}: {number} {what}; up to {most} can be explained")

    def processes(self, status):
        """As many as the status says, and none that nobody has waited for."""
        below = samples.below(self.served.process.pid, samples.children())
        zombies = [pid for pid, state in below if state == "Z"]
        if zombies:
            self.fail(f"{len(zombies)} processes that have ended were not waited for")
        wanted = sum(len(service["workers"]) + service["spares"] + service["active"] for service in status["services"])
        if len(below) != wanted:
            self.fail(f"{len(below)} processes, and the status has {wanted}")

    def summary(self):
        served = self.load.outcomes["good", "served"]
        others = {f"{who} {how}": n for (who, how), n in sorted(self.load.outcomes.items()) if (who, how) != ("good", "served")}
        return f"{served} served, {others}; {sum(self.actions.done.values())} actions; {len(self.wrong)} wrong, " \
               f"{len(self.load.unexplained)} unexplained, {len(self.actions.failed)} failed"
