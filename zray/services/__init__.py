"""The programs of a cluster: nodes, the control store, and what starts them."""

import zray.protocol as _first  # noqa: F401  # imports msgspec in its own way, before a service does
