"""What all tests share: Ctrl-C reaches the processes that they start.

A shell that runs the tests in the background has them ignore it, and every child inherits that.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
