"""Bytes of objects: the shared arena in memory (``arena``), the files on disk (``spill``), and how
both are written (``writing``).

Who may use which bytes is decided in ``core``; this package only moves them.
"""
