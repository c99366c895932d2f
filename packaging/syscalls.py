#!/usr/bin/env python3
"""Whether the unit's SystemCallFilter lets a host do what strace saw it do.

    strace --follow-forks --output TRACE edgent-host ...
    packaging/syscalls.py packaging/edgent-host@.service TRACE
"""

import pathlib
import re
import subprocess
import sys


def calls(names):
    """System calls, with those of each named set."""
    for name in names:
        if name.startswith("@"):
            said = subprocess.run(["systemd-analyze", "syscall-filter", name], stdout=subprocess.PIPE, text=True, check=True)
            lines = [line.strip() for line in said.stdout.splitlines()[1:]]
            yield from calls(line for line in lines if line and not line.startswith("#"))
        else:
            yield name


def main():
    unit, trace = (pathlib.Path(name).read_text() for name in sys.argv[1:])
    allowed = set()
    for filtered in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        named = set(calls(filtered.removeprefix("~").split()))
        allowed = allowed - named if filtered.startswith("~") else allowed | named
    # Before the filter is there, the manager's own children did what is not the host's.
    used = set(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE))
    refused = sorted(used - allowed)
    assert len(used) > 20, f"that is no trace of a host: {sorted(used)}"
    if refused:
        sys.exit(f"the unit's filter refuses {', '.join(refused)}")
    print(f"ok: the filter allows the {len(used)} system calls that the host made")


if __name__ == "__main__":
    main()
