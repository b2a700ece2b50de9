"""Training and evaluation on many devices and in many processes.

Read `processes` first (joining processes, barriers, key-value exchange, failure propagation), then `device_map` (one
per-device function mapped by pmap or shard_map), then `collectives` (reductions and exchanges that such a function calls;
the only part that model code imports).
"""
