"""Takes the limits on, then becomes the program. Runs inside the sandbox, before anything untrusted does."""
import os
import resource
import sys

memory, cpu, scratch, processes, length = (int(argument) for argument in sys.argv[1:6])

# The program stands at the begin of stdin; what follows is its input, so not a byte more may be read.
with open("/tmp/program.py", "wb") as program:
    while length:
        piece = os.read(0, min(length, 1 << 16))
        if not piece:
            sys.exit("the program ends early")
        program.write(piece)
        length -= len(piece)

# Files that the caller left open pass through bubblewrap; none is for the program.
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
os.closerange(3, most if most > 0 else 1 << 20)

for name, soft, hard in (
    ("AS", memory, memory),
    # The first is a signal that can be caught, the second is not.
    ("CPU", cpu, cpu + 1),
    ("FSIZE", scratch, scratch),
    ("NPROC", processes, processes),
    ("NOFILE", 256, 256),
    ("CORE", 0, 0),
    ("MSGQUEUE", 0, 0),
    ("MEMLOCK", 0, 0),
):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (soft, hard))
# That all went well, and that what follows is the program's.
os.write(1, b"\x06")
# No cache of bytecode; nothing of a user's own packages.
os.execv(sys.executable, [sys.executable, "-B", "-s", "/tmp/program.py"])
