"""Tries every wall of the sandbox from inside and says which ones hold. Nothing here does harm where they do not."""
import errno
import json
import os
import socket
import sys

given = json.load(sys.stdin)
held = {}


def refused(call, *numbers):
    """Whether a call fails, with one of these errors where some are named."""
    try:
        call()
    except OSError as error:
        return not numbers or error.errno in numbers
    return False


def create(folder):
    path = os.path.join(folder, "quant-sandbox-probe")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.remove(path)


held["files of the host"] = not any(os.path.exists(path) for path in given["hidden"])

read_only = ["/", "/dev", "/dev/shm", os.path.dirname(os.__file__), os.path.dirname(sys.executable)]
held["read-only files"] = all(refused(lambda path=path: create(path), errno.EROFS) for path in read_only)


files = ["/tmp/quant-sandbox-probe-%d" % number for number in range(3)]


def fill():
    for path in files:
        with open(path, "xb", buffering=0) as file:
            for _ in range(8):
                piece = memoryview(bytes(given["scratch"] // 16))
                while piece:
                    piece = piece[file.write(piece):]


held["size of the scratch"] = refused(fill, errno.ENOSPC)
for path in filter(os.path.exists, files):
    os.remove(path)

held["network"] = refused(lambda: socket.create_connection(("127.0.0.1", given["port"]), timeout=2).close())
held["open files of the host"] = all(refused(lambda fd=fd: os.fstat(fd), errno.EBADF) for fd in range(3, 256))
held["processes of the host"] = refused(lambda: os.kill(given["pid"], 0), errno.ESRCH)


def fork_too_many():
    """Children that wait for the end of a pipe; never more than a few above the limit."""
    read, write = os.pipe()
    children = []
    try:
        for _ in range(given["processes"] + 2):
            child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            children.append(child)
    finally:
        os.close(write)
        for child in children:
            os.waitpid(child, 0)


held["number of processes"] = refused(fork_too_many, errno.EAGAIN)

try:
    bytearray(2 * given["memory"])
    held["memory"] = False
except MemoryError:
    held["memory"] = True

try:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):
    # Without ctypes a program has no way to make these calls but through the interpreter's own functions.
    libc = None
if libc is not None:
    new_user, private = 0x10000000, 0
    held["namespaces"] = libc.unshare(new_user) == -1
    held["shared memory"] = libc.shmget(private, 4096, 0o600) == -1
if hasattr(os, "memfd_create"):
    held["memory files"] = refused(lambda: os.close(os.memfd_create("probe")))

print(json.dumps(held))
