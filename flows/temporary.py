"""A Prefect server for one command, over the database in PREFECT_HOME, on loopback.

Prefect would start one itself, but only when the first flow runs, and it loads the whole server into the flow's own
process too. This one gets ready while the command loads the rest, which makes a first run seconds quicker.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

START_SECONDS = 180  # where it has its database still to make, on a machine under load
STOP_SECONDS = 5  # what it gets to end by itself, as Prefect gives it
# As Prefect's own temporary one: no UI, and only the services that a flow needs.
SERVER = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


def start() -> tuple[str, Callable[[], None]]:
    """The API address of a new server, and what ends it: called when this process ends, if not before.

    Not before a flow's process ends, since Prefect hands over its last logs and events then. Whoever asks the server
    before it is ready waits, for its socket listens from the start.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        # A session of its own: after Ctrl-C the flow has still to tell it how it ended.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            env=os.environ | SERVER,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )

    def end() -> None:
        atexit.unregister(end)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_SECONDS)  # closes its input, and so it learns that nobody asks any more
        process.kill()
        process.wait()

    atexit.register(end)
    return address, end


def main() -> None:
    """Serve on the socket of that number until the input ends."""
    import uvicorn

    app = "prefect.server.api.server:create_app"
    server = uvicorn.Server(uvicorn.Config(app, factory=True, log_level="error", lifespan="on"))

    def end() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True
        time.sleep(STOP_SECONDS)
        os._exit(1)  # its starter is gone, perhaps, and ends it no more

    threading.Thread(target=end, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
