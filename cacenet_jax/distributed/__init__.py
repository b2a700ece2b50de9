"""Training and evaluation on multiple devices and in multiple processes.

Read `processes` first (joining processes, barriers, key-value exchange, failure propagation), then `device_map` (one
per-device function mapped by pmap or shard_map), then `collectives` (reductions and exchanges for use inside such a
function; the only module that model code imports). `progress` shows in process 0 how far a long loop is.
"""
