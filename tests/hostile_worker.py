"""Loads folders, each in a process of its own that is watched: what it raises, its time and memory, what it touches.

Run as a program: ``hostile_worker.py GOOD_FOLDER < jobs.json > results.json``. A job is {folder, outside, marker,
route, limit, timeout}, the last two in seconds of CPU and of waiting; ``route`` says what is done with it: "ours",
"timm", or one of PROBES, which do what no load may.
"""

import contextlib
import ctypes
import io
import json
import os
import resource
import select
import signal
import struct
import sys
import sysconfig
import time

LIBRARIES = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
FORBIDDEN = (
    *("socket.", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
    *(
        "os.fork",
        "pty.spawn",
        "urllib.Request",
        "ftplib.",
        "smtplib.",
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
    ),
    *("os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.utime", "os.putenv", "os.kill", "tempfile."),
    *("shutil.", "sqlite3.", "webbrowser.", "code.__new__", "os.setxattr", "os.mkfifo"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook for one folder: what is done beyond reading it and Python's libraries is noted, and refused."""

    def __init__(self, folder, readable):
        self.folder = os.path.realpath(folder)
        self.readable = tuple(os.path.join(path, "") for path in readable)
        self.violations = []
        self.active = True
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.active:
            return
        self.active = False  # not for what this hook itself does
        try:
            found = self.judge(event, arguments)
        finally:
            self.active = True
        if found:
            self.violations.append(found[:300])
            raise PermissionError(found)

    def judge(self, event, arguments):
        if event == "open" and not isinstance(arguments[0], int):
            return self.judge_open(*arguments)
        if event in ("os.listdir", "os.scandir", "os.chdir") and isinstance(arguments[0], str | bytes):
            return None if self.may_read(arguments[0], 0) else f"{event} {arguments[0]!r}"
        if event == "exec" and os.path.realpath(str(arguments[0].co_filename)).startswith(self.folder + os.sep):
            return f"exec of {arguments[0].co_filename!r}"
        return f"{event} {arguments!r}" if event.startswith(FORBIDDEN) else None

    def judge_open(self, path, mode, flags):
        if (flags or 0) & WRITES or set(mode or "r") & set("wax+"):
            return None if os.fspath(path) == os.devnull else f"open for writing {path!r}"
        return None if self.may_read(path, flags or 0) else f"open {path!r}"

    def may_read(self, path, flags):
        path = os.path.abspath(os.fsdecode(path))
        if flags & os.O_NOFOLLOW and os.path.islink(path):
            return True  # it fails
        real = os.path.realpath(path)
        if real == self.folder or real.startswith(self.folder + os.sep):
            return True
        return not path.startswith(self.folder + os.sep) and os.path.join(path, "").startswith(self.readable)


class Opened:
    """Linux's inotify on one directory: names of what any code, C or Rust as well, opens in it."""

    def __init__(self, directory):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        if libc.inotify_add_watch(self.fd, os.fsencode(directory), 0x20) < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {directory}")

    def names(self):
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            data = b""
        os.close(self.fd)
        found, at = set(), 0
        while at < len(data):
            _, _, _, length = struct.unpack_from("iIII", data, at)
            found.add(os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0")) or ".")
            at += 16 + length
        return sorted(found)


def load_ours(job):
    import rst_hub

    return rst_hub.from_pretrained(job["folder"])


def load_through_timm(job):
    import timm

    return timm.create_model(f"local-dir:{job['folder']}", pretrained=True)


def connect(job):
    import socket

    socket.create_connection(("127.0.0.1", 9), timeout=1)


def unpickle(job):
    import pickle

    pickle.loads(b"cos\nsystem\n(Vtrue\ntR.")


def run_planted(job):
    sys.path.insert(0, job["folder"])
    __import__("planted")


def load_in_c(job):
    libc = ctypes.CDLL(None)
    libc.open(os.fsencode(os.path.join(job["outside"], "secret")), os.O_RDONLY)


def allocate(job):
    import numpy

    numpy.ones(300 * 2**17)


def work(job):
    while time.process_time() < job["started"] + 0.3:
        pass


def refuse(message):
    import rst_hub

    raise rst_hub.RstHubError(message)


def fail(job):
    raise ValueError(job["folder"])


PROBES = {
    "allocate": allocate,
    "sleep": lambda job: time.sleep(60),
    "work": work,
    "write": lambda job: open(job["marker"], "w").close(),
    "read": lambda job: open(os.path.join(job["outside"], "secret")).close(),
    "read in C": load_in_c,
    "connect": connect,
    "unpickle": unpickle,
    "import": run_planted,
    "start": lambda job: os.system("true"),
    "die": lambda job: os.abort(),
    "raise": fail,
    "refuse at length": lambda job: refuse("\ud800 x " * 2501),
    "refuse with escapes": lambda job: refuse("\x1b[2J"),
}
ROUTES = {"ours": load_ours, "timm": load_through_timm, **PROBES}


def memory(key):
    """Return a size of /proc/self/status in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def load(job, readable, before):
    """Return what became of one job: runs in a process of its own, which takes ``before`` MB."""
    os.chdir(job["folder"])
    sys.stdout = io.StringIO()
    limit = int(memory("VmSize") + 8000) << 20  # so that no folder hurts the machine
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watch = Watch(job["folder"], readable)
    error, started = None, time.process_time()
    try:
        ROUTES[job["route"]]({**job, "started": started})
    except BaseException as raised:
        error = raised
    seconds = time.process_time() - started  # waiting is not counted, but ended by the parent
    watch.active = False
    # the peak of a forked process begins with what it has at the fork
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    text = "" if error is None else str(error)
    return {
        "outcome": "loaded" if error is None else "raised",
        "types": [] if error is None else [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__],
        "message": text[:500],
        "length": len(text),
        "printable": all(letter.isprintable() for letter in text),
        "seconds": round(seconds, 3),
        "megabytes": round(peak, 1),
        "violations": watch.violations,
    }


def watched(job, readable):
    """Return what became of one job, of which nothing can hurt this process."""
    opened = Opened(job["outside"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with open(writing, "w") as pipe:
            before = memory("VmRSS")
            print(before, file=pipe, flush=True)
            try:
                json.dump(load(job, readable, before), pipe)
            except BaseException as error:
                json.dump({"outcome": f"the harness failed: {error!r}"}, pipe)
        os._exit(0)
    os.close(writing)
    answer, due = b"", time.monotonic() + job["timeout"]
    while select.select([reading], [], [], max(0, due - time.monotonic()))[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            break
        answer += part
    else:
        os.kill(child, signal.SIGKILL)
        answer += json.dumps({"outcome": "hangs", "seconds": job["timeout"]}).encode()
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    result = {"outcome": f"dies with status {status}", "types": [], "message": "", "length": 0, "printable": True}
    before, _, told = answer.partition(b"\n")
    result |= {"seconds": usage.ru_utime, "megabytes": usage.ru_maxrss / 1024 - float(before), "violations": []}
    result |= json.loads(told or "{}")
    result["violations"] += [f"opens {name!r} outside of the folder" for name in opened.names()]
    result["violations"] += ["runs code that the folder brings"] if os.path.exists(job["marker"]) else []
    return result


def quickest(job, readable):
    """Return the quickest of up to three goes at a job within its limit: what else the machine does only adds time."""
    results = []
    while len(results) < 3 and all(result["seconds"] >= job["limit"] for result in results):
        results.append(watched(job, readable))
    quick = min(results, key=lambda result: result["seconds"])
    return quick | {"violations": [violation for result in results for violation in result["violations"]]}


def main():
    import timm  # noqa: F401

    import rst_hub

    here = os.path.dirname(os.path.abspath(__file__))
    package = os.path.dirname(os.path.abspath(rst_hub.__file__))
    readable = [*LIBRARIES, *map(os.path.realpath, LIBRARIES), package, here, "/proc", "/sys"]
    jobs = json.load(sys.stdin)
    for route in {job["route"] for job in jobs.values()} - set(PROBES):
        ROUTES[route]({"folder": sys.argv[1]})  # what is imported late is imported now
    with contextlib.suppress(rst_hub.RstHubError):
        rst_hub.from_pretrained(here)
    json.dump({name: quickest(job, readable) for name, job in jobs.items()}, sys.stdout)


if __name__ == "__main__":
    main()
