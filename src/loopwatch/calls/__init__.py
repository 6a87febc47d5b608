"""Which synchronous calls block an event loop: ``EventLoopMonitor`` and its two engines."""
