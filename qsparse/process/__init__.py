"""The life of a process: how it is started, watched, asked to stop, and how it ends."""
