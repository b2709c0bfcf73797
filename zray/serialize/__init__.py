"""Values, arguments, errors and functions as bytes. See ``values`` and ``functions``."""
