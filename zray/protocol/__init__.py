"""What processes say to each other, and how that becomes bytes."""

import sys

_UNNEEDED = "typing_extensions"
"""msgspec imports it where there is one, and takes nothing from it that ``typing`` of Python 3.11 lacks. It
takes a third as long to import as msgspec itself, and a third of a MiB in each process."""


def _import_msgspec() -> None:
    if _UNNEEDED in sys.modules or len(sys._current_frames()) > 1:  # another thread may just import it
        import msgspec

        return
    sys.modules[_UNNEEDED] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[_UNNEEDED]


_import_msgspec()
