"""What programs of tests do to copy themselves, as text for a process of its own.

Owns the copy and the wait for its end. Refuses to know what a copy does.
"""

from __future__ import annotations

from typing import Final

COPY: Final = '''
import os, sys

def copy(call):
    if (pid := os.fork()) == 0:
        try:
            call()
            code = 0
        except SystemExit:
            raise  # of a copy of this copy
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        # Not os._exit: what is registered for the end runs, and the interpreter frees what it has.
        sys.exit(code)
    return pid

def join(*pids):
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
'''
