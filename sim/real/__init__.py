"""Small programs on real processes, run beside the simulation: to calibrate it, and to see how far it is off.

Only this package of ``sim`` uses the public ``zray``, and only in processes of their own.
"""
