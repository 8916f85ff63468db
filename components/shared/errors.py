"""The errors that users see, each as one line and with the exit status of its kind."""


class SecvecError(Exception):
    """A failure a user can act on: what is wrong, where, and what would be accepted, in one line.

    Every step and the command turn it into a single line on standard error and exit status 1;
    anything else that is raised is a defect of secvec and keeps its traceback.

    Attributes:
        status: Exit status of the step that ends with it.
    """

    status = 1

    def __init__(self, problem: str, *, where: str = "", accepted: str = "") -> None:
        parts = [f"{where}: {problem}" if where else problem]
        if accepted:
            parts.append(f"accepted: {accepted}")
        line = "; ".join(parts)
        # One line whatever a path, a row or a server's answer contained.
        super().__init__("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line))


class OutOfMemory(SecvecError):
    """The device's or the machine's memory did not suffice: more of it, or smaller passes, would do."""

    status = 4


class Terminated(SecvecError):
    """Somebody asked the process to end (SIGTERM) and it did so in order: to run again is to go on."""

    status = 143  # 128 + SIGTERM, as a shell has it
