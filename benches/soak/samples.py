"""What the processes hold: memory, descriptors, shared memory, processes; and whether that grows."""

import os
import pathlib
import statistics

PAGE = os.sysconf("SC_PAGE_SIZE")


def children():
    """The processes of this machine by parent, with their states."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            found.setdefault(int(fields[1]), []).append((int(entry), fields[0]))
    return found


def below(root, by_parent):
    """All processes below one, with their states."""
    members, parents = [], [root]
    while parents:
        next_ones = [child for parent in parents for child in by_parent.get(parent, [])]
        members += next_ones
        parents = [pid for pid, _ in next_ones]
    return members


def memory(pid):
    """KiB resident, its share, and its own that no file backs."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name[:-1]] = int(value)
    return {"rss": fields["Rss"], "pss": fields["Pss"], "anonymous": fields["Anonymous"]}


def descriptors(pid):
    """How many, and the memory files among them with their sizes in KiB, by inode."""
    number, files = 0, {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        number += 1
        try:
            if os.readlink(entry.path).startswith("/memfd:"):
                status = os.stat(entry.path)
                files[status.st_ino] = status.st_blocks // 2
        except OSError:
            pass
    return number, files


def started(pid):
    """When a process began, in ticks: which of those that had this pid it is."""
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])


def take(at, served, status, kind):
    """One line for each process that is looked at."""
    by_parent = children()
    lines, shared = [], {}
    pids = [("supervisor", "", served.process.pid, f"upgrade {status['upgrades']}")]
    for service in status["services"]:
        for worker in service["workers"]:
            if worker["state"] == "accepting":
                pids.append(("worker", service["name"], worker["pid"], ""))
    pids.append(("metrics", "", served.metrics.pid, ""))
    pids += [("metrics worker", "", pid, "") for pid, _ in by_parent.get(served.metrics.pid, [])]
    for role, service, pid, life in pids:
        try:
            number, files = descriptors(pid)
            line = {"at": at, "kind": kind, "role": role, "service": service, "fds": number, **memory(pid),
                    "life": f"{pid} {started(pid)} {life}"}
        except OSError:
            continue
        lines.append(line)
        if role in ("supervisor", "worker"):
            shared |= files
    processes = below(served.process.pid, by_parent)
    leaves = sum(1 for _ in served.cgroup.glob("**/")) - 1 if served.cgroup else 0
    lines.append({
        "at": at, "kind": kind, "role": "all", "service": "", "life": "", "processes": len(processes),
        "zombies": sum(state == "Z" for _, state in processes), "shared": sum(shared.values()), "memfds": len(shared),
        "cgroups": leaves, "files": sum(1 for _ in served.directory.iterdir()),
        "cpu": cpu(served.process.pid) + cpu(served.metrics.pid),
    })
    return lines


def cpu(pid):
    """Seconds of a process and of all below it that have ended and were waited for."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def slope(points):
    """Growth per hour of (life, seconds, value), and its standard error: one line for all lives, each from where it begins."""
    lives = {}
    for life, at, value in points:
        lives.setdefault(life, []).append((at / 3600, value))
    xs, ys, used = [], [], 0
    for members in lives.values():
        if len(members) > 2:
            used += 1
            mean_x, mean_y = (statistics.fmean(part) for part in zip(*members))
            xs += [x - mean_x for x, _ in members]
            ys += [y - mean_y for _, y in members]
    square = sum(x * x for x in xs)
    free = len(xs) - used - 1
    if free < 1 or square == 0:
        return None
    grown = sum(x * y for x, y in zip(xs, ys)) / square
    left = sum((y - grown * x) ** 2 for x, y in zip(xs, ys))
    return grown, (left / free / square) ** 0.5
