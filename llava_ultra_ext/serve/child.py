"""``python -m llava_ultra_ext.serve.child FOLDER MODULE …``: one program of the launcher, as ``python -m MODULE …``.

LLaVA-Ultra is on in it, whether the environment enables it or not; LLaVA's log files go to FOLDER, since LLaVA writes
them where it runs; and it ends with its launcher, however that ends: then its standard input does.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

from llava_ultra_ext.activate import arm


def _end_with_the_launcher() -> None:
    """Our choice: a pipe and not Linux's PR_SET_PDEATHSIG, which follows a thread and exists on Linux only."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Runs the module as ``__main__``, with the arguments behind it."""
    folder, module, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]  # before the current folder is another one
    os.chdir(folder)
    arm()
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
